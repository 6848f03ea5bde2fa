"""Which tokens attend to which where the codes of an image follow a text, as in DALL-E (arXiv:2102.12092, B.1).

Every pattern is a set of offsets in raster order: the code at i attends to those at i - offset, without regard to
where rows begin ("wraparound"), and to the whole text before the image; a token of the text to those before it.  On
a grid of width w,

    full            0, 1, 2, ...
    row             0, 1, ..., w: back to the same column, one row up
    column          0, w, 2 w, ...: the same column of all rows above
    convolutional   r w + c for rows r = 0 .. k // 2 and columns c = -(k // 2) .. k // 2, of these the causal ones

The masks serve dense attention: they say what is seen, and save no arithmetic.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pattern = Literal["full", "row", "column", "convolutional"]


def visible(pattern: Pattern, num_before: int, height: int, width: int, kernel_size: int) -> Tensor:
    """The mask of a pattern.

    Args:
        num_before: tokens before the image.
        height, width: of the grid of codes.
        kernel_size: k of "convolutional", odd.

    Returns:
        bool (T, T) for T = num_before + height * width: whether a token (row) attends to another (column).
    """
    num_positions, reach = height * width, kernel_size // 2
    offsets = {
        "full": range(num_positions),
        "row": range(width + 1),
        "column": range(0, num_positions, width),
        "convolutional": [r * width + c for r in range(reach + 1) for c in range(-reach, reach + 1)],
    }[pattern]
    seen = torch.zeros(num_positions, dtype=torch.bool)
    seen[[offset for offset in offsets if 0 <= offset < num_positions]] = True
    position = torch.arange(num_positions)
    mask = torch.ones(num_before + num_positions, num_before + num_positions, dtype=torch.bool).tril()
    mask[num_before:, num_before:] &= seen[(position[:, None] - position).clamp(min=0)]
    return mask
