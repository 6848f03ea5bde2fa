"""What happens to a batch at each visit, with randomness from a generator only."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .config import BINARIZE, DataConfig
from .dataset import Batch


def binarize(images: Tensor, mode: str, generator: torch.Generator | None = None) -> Tensor:
    """Images uint8 of any shape -> the same shape, with values 0 and 255 only (unless the mode is "none").

    Args:
        images: uint8.
        mode: "none"; "threshold": on from 128; "sample": on with probability pixel / 255.
        generator: where "sample" draws from; the others need none.

    Raises:
        ValueError: on another mode, or on "sample" without a generator.
    """
    if mode not in BINARIZE:
        raise ValueError(f"binarize must be one of {', '.join(BINARIZE)}, got {mode!r}")
    if mode == "none":
        return images
    if mode == "threshold":
        return (images >= 128).to(torch.uint8) * 255
    if generator is None:
        raise ValueError('binarize="sample" draws at random and needs a torch.Generator')
    draws = torch.rand(images.shape, generator=generator, device=generator.device).to(images.device)
    return (draws * 255 < images).to(torch.uint8) * 255


def augment(batch: Batch, config: DataConfig, generator: torch.Generator) -> Batch:
    """A batch as training sees it: binarised, then each image flipped left to right with probability 1/2.

    The same batch, config and generator state give the same result.  For evaluation call `binarize` alone.
    """
    images = binarize(batch.images, config.binarize, generator)
    if config.flip:
        flipped = draw_flips(len(images), generator).to(images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    return replace(batch, images=images)


def draw_flips(count: int, generator: torch.Generator) -> Tensor:
    """Which of `count` images are flipped, each with probability 1/2: bool (count,)."""
    return torch.rand(count, generator=generator, device=generator.device) < 0.5
