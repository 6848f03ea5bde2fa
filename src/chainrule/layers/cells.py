"""Images whose codes each stand for a cell of factor x factor pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def check_cells(images: Tensor, channels: int, factor: int) -> None:
    """Raises ValueError unless `images` is uint8 (B, channels, H, W), H and W multiples of `factor`."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"images must be uint8 (B, {channels}, H, W), got {str(images.dtype)[6:]} {tuple(images.shape)}"
        )
    sides = images.shape[2:]
    if all(side >= factor and side % factor == 0 for side in sides):
        return
    below = [max(side // factor, 1) * factor for side in sides]
    above = [max(-(-side // factor), 1) * factor for side in sides]
    nearest = sorted({tuple(below), tuple(above)})
    raise ValueError(
        f"height and width of an image must be multiples of {factor}, got {sides[0]}x{sides[1]}; "
        f"nearest: {' and '.join(f'{height}x{width}' for height, width in nearest)}"
    )


def known_cells(mask: Tensor, factor: int) -> Tensor:
    """Cells all of whose pixels are known: bool (H, W) -> bool (H / factor * W / factor,) in raster order."""
    return mask.unfold(0, factor, factor).unfold(1, factor, factor).flatten(2).all(-1).flatten()
