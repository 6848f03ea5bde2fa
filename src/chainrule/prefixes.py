"""Image prefixes: of an image its grey, edges or low resolution, an image too, whose codes a prior reads before those
that it models (Esser et al., arXiv:2012.09841, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import ImagePrefix, Tokenizer
from .core.values import as_tensor

STEP = 32
"""Levels, of 255, between the two sides of the faintest edge."""
REDUCTION = 4
"""How many times smaller a low resolution is, in height and width."""


def image_prefix(images: Tensor, kind: ImagePrefix) -> Tensor:
    """The prefix of images.

    Args:
        images: uint8 (B, C, H, W), C 1 or 3.
        kind: "grey", the brightness in all channels; "edges", white where the brightness has an edge of at least `STEP`
            levels, by Sobel's operator, and black elsewhere; or "low_resolution", the means of squares of 4x4 pixels.

    Returns:
        uint8 (B, C, H, W).

    Examples:
        >>> left_half = (torch.arange(8) < 4).expand(1, 3, 8, 8).to(torch.uint8) * 255
        >>> image_prefix(left_half, "edges")[0, 0, 0].tolist()
        [0, 0, 0, 255, 255, 0, 0, 0]
    """
    found = {"grey": _brightness, "edges": _edges, "low_resolution": _reduced}[kind](images.float())
    return found.round().to(torch.uint8).expand_as(images)


def prefixes_of(images: Tensor, kind: ImagePrefix, tokenizer: Tokenizer, count: int) -> Tensor:
    """The prefix of an image, (C, H, W), for all of `count` images, or of one per image: uint8 (1 or count, C, H, W).

    Raises:
        ValueError: images that the tokenizer does not take, of another number, or for a model that reads none.
    """
    if kind == "none":
        raise ValueError("this model does not draw from an image: a prefix would be ignored; leave it out")
    images = as_tensor(images, "prefix")
    images = images[None] if images.ndim == 3 else images
    tokenizer.check_images(images)
    if len(images) not in (1, count):
        raise ValueError(f"{len(images)} images were given as prefix of {count}")
    return image_prefix(images, kind)


def _brightness(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W), by the weights of ITU-R BT.601."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _edges(images: Tensor) -> Tensor:
    across = images.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4  # an upright edge gives its step
    slopes = F.conv2d(F.pad(_brightness(images), (1, 1, 1, 1), "replicate"), torch.stack([across, across.T])[:, None])
    return 255.0 * (slopes.square().sum(1, keepdim=True) >= STEP**2)


def _reduced(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    small = F.adaptive_avg_pool2d(images, (-(-height // REDUCTION), -(-width // REDUCTION)))
    return F.interpolate(small, (height, width), mode="nearest")
