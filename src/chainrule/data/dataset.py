"""A data set of images held as one array, and a batch of it."""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from .account import Account


@dataclass(frozen=True)
class Batch:
    """Images uint8 (B, C, H, W), with labels int64 (B,) and B texts where the data set has them."""

    images: Tensor
    labels: Tensor | None = None
    texts: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageDataset:
    """N images of one size, all in memory or in a memory-mapped file.

    Attributes:
        images: uint8 (N, C, H, W).  From the cache it is a private map of the file: writing to it
            changes neither the file nor any other process.
        labels: int64 (N,) in 0..num_classes-1, or None.
        texts: N captions, or None.
        class_names: one name per class, or None when the source has none.
        num_classes: number of classes, or None without labels.
        name: what the user called it; a folder's own name, never its whole path.
        skipped: the images of the source that could not be read and are therefore missing here.
        account: what was used of the split that this is part of, what was left out, and why.
        path: the whole path of the folder or archive that the user named, or None; known on this machine only.
    """

    images: Tensor
    labels: Tensor | None = None
    texts: list[str] | None = None
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    name: str = "images"
    skipped: list[str] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    path: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the sha256 of shape, pixels, labels and texts."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for chunk in self.images.split(4096):
            digest.update(chunk.contiguous().numpy())
        if self.labels is not None:
            digest.update(b"labels")
            digest.update(self.labels.contiguous().numpy())
        for text in self.texts or ():
            digest.update(b"text" + text.encode() + b"\0")
        return digest.hexdigest()[:16]

    def batch(self, indices: Tensor) -> Batch:
        """The images at `indices`, int64 (B,) in 0..N-1, copied, with their labels and texts."""
        return Batch(
            self.images[indices],
            None if self.labels is None else self.labels[indices],
            None if self.texts is None else [self.texts[index] for index in indices.tolist()],
        )

    def spread(self, limit: int | None) -> Tensor:
        """Indices of `limit` images at equal distances, or of all if there are fewer or no limit: int64 (N,)."""
        count = len(self) if limit is None else min(limit, len(self))
        return torch.arange(count) * len(self) // max(count, 1)

    def slice(self, start: int, stop: int) -> ImageDataset:
        """The images start..stop-1, sharing memory with this data set; `skipped` and `account` are of the whole."""
        return replace(
            self,
            images=self.images[start:stop],
            labels=None if self.labels is None else self.labels[start:stop],
            texts=None if self.texts is None else self.texts[start:stop],
        )

    def select(self, indices: Tensor) -> ImageDataset:
        """The images at `indices`, int64 (B,), copied; `skipped` and `account` are of the whole."""
        return replace(self, **vars(self.batch(indices)))

    def matched(self, names: Sequence[str] | None, count: int, whose: str) -> ImageDataset:
        """The data set with the class numbers of something else, which has `count` classes: matched by name.

        Classes of the other that have no images here are named in a warning; so are numbers without names.

        Args:
            names: of the classes of the other, in the order of their numbers; None: they have none.
            count: their number; with 0, labels do not matter and stay.
            whose: what has them, for messages.

        Raises:
            ValueError: images of a class that the other does not have.
        """
        if self.labels is None or not count or self.class_names == names:
            return self
        if self.class_names is None or names is None:
            without = self.name if self.class_names is None else whose
            warnings.warn(f"classes are matched by number: {without} has no names of classes", stacklevel=2)
            return replace(self, class_names=names) if self.num_classes == count else self
        own, wanted = ([unicodedata.normalize("NFC", name) for name in each] for each in (self.class_names, names))
        used = set(self.labels.unique().tolist())
        if unknown := [name for number, name in enumerate(own) if name not in wanted and number in used]:
            raise ValueError(
                f"{self.name} has images of the class {', '.join(unknown)}, which {whose} does not know; it knows "
                f"{', '.join(wanted)}; rename the class or leave its images out"
            )
        if missing := [name for name in wanted if name not in own]:
            warnings.warn(f"{self.name} has no images of the class {', '.join(missing)} of {whose}", stacklevel=2)
        numbers = torch.tensor([wanted.index(name) if name in wanted else -1 for name in own])
        return replace(self, labels=numbers[self.labels], class_names=tuple(names), num_classes=count)
