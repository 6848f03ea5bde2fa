"""What a prior can be conditioned on, and the check of a context against it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .checks import MAX_SIZE, check_range
from .context import Context
from .values import as_tensor, plain

ImagePrefix = Literal["none", "grey", "edges", "low_resolution"]
"""What a prior reads of an image before it draws one, see `prefixes.image_prefix`."""


@dataclass(frozen=True, kw_only=True)
class ClassLabels:
    """The fields of a config, and of `Conditions`, that describe class labels.

    num_classes: classes that can be asked for, 0 for none
    null_label:  whether one more label, the last, means "no class": the model was trained with labels dropped
    """

    num_classes: int = 0
    null_label: bool = False

    def __post_init__(self) -> None:
        check_range(self, 0, MAX_SIZE, "num_classes")
        if self.null_label and not self.num_classes:
            raise ValueError("null_label needs a model with classes: set num_classes, or leave null_label out")

    @property
    def num_labels(self) -> int:
        """Labels that the model knows: its classes and, if there is one, the label "no class"."""
        return self.num_classes + self.null_label

    def conditions(self, **others: Any) -> Conditions:
        """These labels with other conditions, the fields of `Conditions`."""
        return Conditions(num_classes=self.num_classes, null_label=self.null_label, **others)


@dataclass(frozen=True, kw_only=True)
class Conditions(ClassLabels):
    """Everything a prior is conditioned on; wrappers of a prior have the same conditions as it.

    text_length:          tokens of the text in the context, 0 for none
    text_vocab_size:      each of these tokens is below it
    joint_text:           the first grid of the codes is a text (1, L, 1) in which code 0 is padding, and the context
                          holds no text
    prefix_length:        codes of another image in the context, 0 for none
    prefix_codebook_size: each of these codes is below it
    image_prefix:         what that image is: taken from an image of the same size, by the same tokenizer as the codes
                          that are modelled; "none" for any other
    spatial_channels:     channels of the map in the context, 0 for none
    """

    text_length: int = 0
    text_vocab_size: int = 0
    joint_text: bool = False
    prefix_length: int = 0
    prefix_codebook_size: int = 0
    image_prefix: ImagePrefix = "none"
    spatial_channels: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, MAX_SIZE, "text_length", "prefix_length", "spatial_channels")

    @property
    def reads_text(self) -> bool:
        """Whether a text is part of the context or of the codes."""
        return self.joint_text or self.text_length > 0

    @property
    def reads_image(self) -> bool:
        """Whether the context holds codes of what is taken from an image, see `image_prefix`."""
        return self.image_prefix != "none"

    def check(self, context: Context, batch_size: int) -> None:
        """Raises ValueError unless a context holds these conditions for `batch_size` images, all in range."""
        self._check_label(context.label, batch_size)
        if self.text_length:
            _check_ids("text", "token ids", context.text, (batch_size, self.text_length), self.text_vocab_size)
        elif context.text is not None:
            where = ": it is the first grid of the codes" if self.joint_text else ""
            raise ValueError(f"this model takes no text in its context{where}; leave it out")
        if self.reads_image and context.prefix is None:
            raise ValueError(f"this model draws from an image ({self.image_prefix}): give one as prefix")
        if self.prefix_length:
            shape = batch_size, self.prefix_length
            _check_ids("prefix", "the codes of another image", context.prefix, shape, self.prefix_codebook_size)
        elif context.prefix is not None:
            raise ValueError("this model has no prefix of codes: it would be ignored; leave it out")

    def _check_label(self, label: Tensor | None, batch_size: int) -> None:
        if self.num_classes == 0:
            if label is not None:
                raise ValueError("this model has no classes: a label would be ignored; leave it out")
            return
        if label is None:
            raise ValueError(f"this model is conditioned on a class: give a label in 0..{self.num_labels - 1}")
        if tuple(label.shape) != (batch_size,):
            raise ValueError(f"label must be int64 ({batch_size},), got {tuple(label.shape)}")
        _check_range("label", label, self.num_labels)


def class_numbers(
    labels: int | str | Sequence[int | str] | Tensor, num_classes: int, names: Sequence[str] | None, what: str
) -> Tensor:
    """The numbers of several classes, int64 (B,), or of one, int64 ().

    Args:
        labels: one class or a sequence of classes, see `class_number`; or as an array or tensor of whole numbers, (B,),
            the numbers of a data set.
        num_classes, names, what: as for `class_number`.

    Raises:
        ValueError: no such class.
    """
    if not isinstance(labels, (np.ndarray, Tensor)) or labels.ndim == 0:
        labels = plain(labels)
        several = not isinstance(labels, (int, str, float))
        numbers = [class_number(plain(one), num_classes, names, what) for one in (labels if several else [labels])]
        return torch.tensor(numbers if several else numbers[0], dtype=torch.int64)
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "OSU":
        return class_numbers(labels.tolist(), num_classes, names, what)
    numbers = as_tensor(labels, "label")
    if numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ValueError(f"label must hold whole numbers, got {str(numbers.dtype)[6:]}")
    _check_range("label", numbers, num_classes)
    return numbers.long()


def class_number(label: int | str, count: int, names: Sequence[str] | None, what: str) -> int:
    """The number of one of `count` classes, given by name or by number.

    A name comes first, in whatever form of Unicode.  Where a name is itself a number, as of folders 1, 2 and 10,
    every number is meant as a name, and one that is no name is refused.

    Raises:
        ValueError: no such class; `what` is called so in the sentence.
    """
    if not isinstance(label, (int, str)):
        raise ValueError(f"a class is given by its name or its number, got {label!r:.40}")
    composed = [unicodedata.normalize("NFC", name) for name in names or ()]
    wanted = unicodedata.normalize("NFC", str(label))
    if wanted in composed:
        return composed.index(wanted)
    number = int(label) if isinstance(label, int) or label.isdecimal() else None
    same = [index for index, name in enumerate(composed) if name.isdecimal() and int(name) == number]
    if len(same) == 1:
        return same[0]
    if number is None or any(name.isdecimal() for name in composed):
        known = f": {', '.join(names)}" if names is not None else " only by number"
        raise ValueError(f"this {what} has no class {label!r}; it knows {count}{known}")
    if not 0 <= int(label) < count:
        raise ValueError(f"label must lie in 0..{count - 1}, got {label}")
    return int(label)


def _check_ids(name: str, what: str, ids: Tensor | None, shape: tuple[int, int], size: int) -> None:
    if ids is None or ids.dtype != torch.int64 or tuple(ids.shape) != shape:
        found = "nothing" if ids is None else f"{str(ids.dtype)[6:]} {tuple(ids.shape)}"
        raise ValueError(f"{name} must be {what}, int64 {shape}, got {found}")
    _check_range(name, ids, size)


def _check_range(name: str, values: Tensor, size: int) -> None:
    if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < size):
        raise ValueError(f"{name} must lie in 0..{size - 1}, got {int(values.min())}..{int(values.max())}")
