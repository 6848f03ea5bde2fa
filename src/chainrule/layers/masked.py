"""Causal convolutions, cut along the line between finished rows and the row in progress.

A masked k x k convolution of PixelCNN is the sum of two: `AboveConv2d` reads complete rows, `LeftConv2d`
reads the current row up to the centre.  Kept apart, no multiplication by a masked zero is ever done, and
sampling can evaluate the first for a whole row at once and only the second per pixel.

Channels are split into D groups, one per code of a pixel (R, G, B), so that a pixel's later codes may
see its earlier ones: at the centre tap, mask "A" lets group d read groups < d, mask "B" groups <= d.
(van den Oord et al. 2016, arXiv:1601.06759, section 3.4.)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.rows import linear, side_by_side


def channel_groups(channels: int, groups: int, blocks: int = 1) -> Tensor:
    """The group of each channel, int64 (channels,), as even as possible, later groups first served.

    With blocks > 1 the channels are that many stacked maps (the gates of an LSTM), each split alike.
    """
    assert channels % blocks == 0
    per_block = channels // blocks
    if per_block < groups:
        raise ValueError(f"{per_block} channels cannot be split into {groups} groups: use at least {groups}")
    one = torch.arange(per_block) * groups // per_block
    return one.repeat(blocks)


class LeftConv2d(nn.Module):
    """Convolution over the current row, up to and including the masked centre: kernel (1, left + 1).

    Args:
        left: pixels to the left that are read.
        mask: "A" or "B", what group d of the output reads of the centre pixel.
        groups: D, codes per pixel.
        blocks: stacked maps with D groups each, of the input and of the output.
        free: trailing input channels that hold nothing of any code and are visible to all groups.
    """

    def __init__(
        self, in_channels: int, out_channels: int, left: int, mask: str, groups: int = 1,
        blocks: tuple[int, int] = (1, 1), free: int = 0, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        assert mask in ("A", "B")
        self.left = left
        with torch.device("cpu"):  # real numbers also where the model is built without any (meta device)
            source = torch.cat([channel_groups(in_channels - free, groups, blocks[0]), torch.full((free,), -1)])
            target = channel_groups(out_channels, groups, blocks[1])
            centre = source[None] < target[:, None] if mask == "A" else source[None] <= target[:, None]
            visible = torch.ones(out_channels, in_channels, 1, left + 1)
            visible[..., left] = centre[..., None].float()
        self.masked = not bool(visible.all())
        bound = 1 / math.sqrt(max(1.0, float(visible.sum()) / out_channels))
        self.register_buffer("visible", visible.to(torch.get_default_device()), persistent=False)
        self.weight = nn.Parameter(torch.empty(visible.shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def causal_weight(self) -> Tensor:
        """The kernel with the hidden part of the centre zeroed, (out, in, 1, left + 1)."""
        return self.weight * self.visible if self.masked else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        # Padding the input is faster to train, compiled, than cropping the output.
        return F.conv2d(F.pad(x, (self.left, 0)) if self.left else x, self.causal_weight(), self.bias)

    def matrix(self) -> Tensor:
        """The kernel for one pixel, ((left + 1) * in, out): rows are taps from left to centre."""
        return self.causal_weight()[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous()


class AboveConv2d(nn.Module):
    """Convolution over complete rows: kernel (rows, 2 * side + 1), ending one row above, or at the row itself.

    Args:
        rows: rows above that are read.
        side: columns to either side.
        current: whether the row itself is read too (right where x holds nothing of that row).
    """

    def __init__(
        self, in_channels: int, out_channels: int, rows: int, side: int, current: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.rows, self.side = rows, side
        shape = (out_channels, in_channels, rows + int(current), 2 * side + 1)
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        bottom = self.weight.shape[2] - 1 - self.rows
        return F.conv2d(F.pad(x, (self.side, self.side, self.rows, bottom)), self.weight, self.bias)


def window_above(inputs: Tensor, row: int, rows: int) -> Tensor:
    """The `rows` rows above `row` of (B, C, H, W), zeros beyond the border: (B, C, rows, W)."""
    return F.pad(inputs[:, :, max(0, row - rows) : row], (0, 0, max(0, rows - row), 0))


class AboveRow:
    """An `AboveConv2d` with its kernel laid out for one row after the other."""

    def __init__(self, layer: AboveConv2d) -> None:
        self.rows, self.side, self.columns = layer.rows, layer.side, layer.weight.shape[3]
        self.weight, self.bias = side_by_side(layer.weight.permute(0, 2, 3, 1).flatten(1)), layer.bias

    def at(self, inputs: Tensor, row: int) -> Tensor:
        """Row `row` of the output for (B, in, H, W), whose kernel reads finished rows only: (B, W, out)."""
        return self(window_above(inputs, row, self.rows).permute(0, 2, 3, 1))

    def __call__(self, window: Tensor) -> Tensor:
        """The output row whose kernel covers `window`, (B, kernel rows, W, in) -> (B, W, out)."""
        window = F.pad(window, (0, 0, self.side, self.side))
        taps = window.unfold(2, self.columns, 1).permute(0, 2, 1, 4, 3).flatten(2)
        return linear(taps, self.weight, self.bias)
