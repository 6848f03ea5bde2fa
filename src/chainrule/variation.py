"""Variations of an image: a share of its codes is drawn again, and the others stay.

Each code that is drawn is drawn from the prior, given all codes before it, kept and new.  Kept codes that come later
are taken into account by particles, as in a completion.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .core.values import as_mask, as_tensor
from .decoding import Known
from .pipeline import OnImage, Pipeline


def vary(model: Pipeline, image: Tensor, strength: float = 0.4, n: int = 1, **options: Any) -> Tensor:
    """Draws variations of an image.

    Args:
        image: uint8 (C, H, W), of the model's size.
        strength: the share of codes that is drawn again, see `kept`.
        n: number of variations.
        options: label, text, negative, seed, particles and the fields of `decoding.Sampling`, as in
            `Pipeline.complete`; and `on_image`, as in `redraw`.

    Returns:
        uint8 (n, C, H, W).

    Raises:
        ValueError: a strength out of range, or an image of another size.
    """
    return redraw(model, image, kept(model, strength), n, **options)


def kept(model: Pipeline, strength: float) -> Tensor:
    """Where a variation keeps the codes of an image: bool (H, W), False at a share of the positions of codes.

    The positions are those of the coarsest grid, so that finer codes go with the coarser ones under them.  They lie all
    over the image and depend on the strength alone: a greater one takes the same positions, and more.

    Args:
        strength: the share, above 0 and at most 1; at least one position is taken.

    Raises:
        ValueError: a strength out of range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    grid, (_, height, width) = model.tokenizer.spec.grids[0], model.tokenizer.image_shape
    order = torch.randperm(grid.height * grid.width, generator=torch.Generator().manual_seed(0))
    positions = torch.ones(grid.height * grid.width, dtype=torch.bool)
    positions[order[: max(1, round(strength * len(order)))]] = False
    rows, columns = torch.arange(height) * grid.height // height, torch.arange(width) * grid.width // width
    return positions.view(grid.height, grid.width)[rows[:, None], columns]


def redraw(
    model: Pipeline, image: Tensor, mask: Tensor, n: int = 1, on_image: OnImage | None = None, **options: Any
) -> Tensor:
    """Draws codes of an image again, n times; the others are those of the whole image, and all are decoded together.

    Args:
        image: uint8 (C, H, W), of the model's size.
        mask: bool (H, W), True where codes are kept.
        on_image: see `Pipeline.sample`.
        options: as in `vary`.

    Returns:
        uint8 (n, C, H, W).

    Raises:
        ValueError: an image or a mask of another size or type.
    """
    known, prefix = kept_codes(model, image, mask, n), model.own_prefix(image)
    request = model.request(n, known=known, prefix=prefix, **options)
    return model.decode(request.draw(request.sampling.runner(model.prior), model.watch(on_image)))


def kept_codes(model: Pipeline, image: Tensor, mask: Tensor, n: int) -> Known:
    """The codes of an image, for `n` variations that keep those where the mask is True; see `redraw`.

    Raises:
        ValueError: an image or a mask of another size or type.
    """
    image, mask = as_tensor(image, "image"), as_mask(mask)
    model.tokenizer.check_images(image[None])
    codes = model.tokenizer.spec.flatten(model.tokenizer.encode(image[None].to(model.device)))
    return Known(codes.expand(n, -1), model.tokenizer.known_codes(mask))
