"""Tokenizers that stay as they are, and the codes of a whole data set, computed once and kept on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import Codes, GridSpec, ImagePrefix, Tokenizer
from ...data import ImageDataset, binarize
from ...data.shards import Part, PartWriter, StoredCodes, cached_parts, in_one
from ...prefixes import image_prefix
from ...progress import progress
from ...saving.model import tokenizer_hash
from ...zoo import load_tokenizer
from .examples import Examples

IMAGES_AT_ONCE = 32
PART = 4096
"""Images whose codes are written at once."""


def fit_to(tokenizer: Tokenizer, examples: Examples) -> Tokenizer:
    """A trained tokenizer for the size of these images, see `Tokenizer.at_size`.

    Raises:
        ValueError: a size that it cannot have, or another number of channels.
    """
    channels, height, width = examples.training.image_shape
    if channels == tokenizer.image_shape[0]:
        try:
            return tokenizer.at_size(height, width)
        except ValueError as error:
            name = examples.training.name
            raise ValueError(f"the images of {name} are {height}x{width}: {error}; set data.size") from error
    check_shape(tokenizer, examples)
    return tokenizer


def check_shape(tokenizer: Tokenizer, examples: Examples) -> None:
    """Raises ValueError unless a tokenizer is for images of this size and number of channels."""
    wanted, found = tokenizer.image_shape, examples.training.image_shape
    if found != wanted:
        raise ValueError(
            f"the tokenizer is for images {wanted}, those of {examples.training.name} are {found} (channels, height, "
            "width); set data.size and data.channels"
        )


def open_tokenizer(path: str, wanted: str | None) -> tuple[Tokenizer, str]:
    """A trained tokenizer and its hash; raises ValueError unless the hash is the wanted one, where one is wanted."""
    tokenizer = load_tokenizer(path)
    found = tokenizer_hash(tokenizer)
    if wanted not in (None, found):
        raise ValueError(
            f"the tokenizer in {path} is another than that of the recipe (sha256 {found[:12]}…, not {wanted[:12]}…); "
            "give its path alone to train on it"
        )
    return tokenizer, found


@torch.no_grad()
def encode(tokenizer: Tokenizer, images: Tensor) -> Codes:
    """Codes of images, in the precision of the tokenizer's weights also under autocast."""
    with torch.autocast(images.device.type, enabled=False):
        return tokenizer.encode(images)


def cached_codes(
    tokenizer: Tokenizer, dataset: ImageDataset, mode: str, flipped: bool, device: torch.device, quiet: bool,
    prefix: ImagePrefix = "none",
) -> StoredCodes:  # fmt: skip
    """The codes of all images, narrow whole numbers; see `cached_rows`.

    Args:
        tokenizer: in evaluation mode; moved to the device.
        dataset: the images.
        mode: how they are binarised, "none" or "threshold".
        flipped: whether these are the codes of the mirror images.
        device: where to compute; "meta" gives codes without content.
        quiet: whether to show no bar.
        prefix: whether these are the codes of a prefix of each image.
    """
    assert mode != "sample", "codes of images that differ at each visit cannot be kept"
    grids = tokenizer.spec.grids
    if device.type == "meta":
        return tuple(torch.zeros(()).expand(len(dataset), *grid.shape) for grid in grids)

    def codes(images: Tensor) -> Codes:
        images = binarize(images, mode)
        images = (images.flip(-1) if flipped else images).to(device)
        return encode(tokenizer.to(device), images if prefix == "none" else image_prefix(images, prefix))

    what = "Encoding mirror images" if flipped else "Encoding images"
    what += "" if prefix == "none" else f" ({prefix})"
    key = ["codes", tokenizer_hash(tokenizer), dataset.fingerprint, mode, flipped]
    key += [] if prefix == "none" else [prefix]
    return cached_rows(codes, dataset, [narrowest(grid) for grid in grids], key, what, quiet)


def cached_rows(
    function: Callable[[Tensor], Sequence[Tensor]], dataset: ImageDataset, dtypes: Sequence[type[np.generic]],
    key: Sequence[Any], what: str, quiet: bool,
) -> StoredCodes:  # fmt: skip
    """What a function makes of all images, in memory-mapped files; made by the first call, with a bar.

    The files are made in parts, see `chainrule.data.shards`: several processes share the work, and one that is killed
    loses a part.

    Args:
        function: from images uint8 (B, C, H, W) to arrays with B rows each.
        dataset: the images.
        dtypes: in which the arrays are kept.
        key: JSON values of all that the arrays depend on.
        what: is said beside the bar.
        quiet: whether to show no bar.
    """
    starts = range(0, len(dataset), PART)
    with progress(what, len(dataset), "images", quiet) as done:

        def build(number: int, folder: Path) -> None:
            writer, first = PartWriter(folder, dtypes), starts[number]
            last = min(first + PART, len(dataset))
            for start in range(first, last, IMAGES_AT_ONCE):
                stop = min(start + IMAGES_AT_ONCE, last)
                writer.add([rows.cpu().numpy() for rows in function(dataset.images[start:stop])])
                done(stop)
            writer.close()

        return read_codes([Part(folder) for folder in cached_parts(key, list(starts), build)])


def read_codes(parts: Sequence[Part]) -> StoredCodes:
    """The codes of several parts, one after the other."""
    return tuple(in_one(grids) for grids in zip(*(part.arrays() for part in parts), strict=True))


def narrowest(grid: GridSpec) -> type[np.integer]:
    """The type of the fewest bytes that holds the codes of a grid."""
    if grid.codebook_size <= 1 << 8:
        return np.uint8
    return np.int16 if grid.codebook_size <= 1 << 15 else np.int32
