"""The two streams of PixelCNN++ evaluated row by row (u) and pixel by pixel (v), with the weights laid out for it.

`pixelcnnpp` has the layers and levels for whole images; each class here is the form of one of them for decoding, with a
state that it changes.  A coarser level is evaluated on its own grid only: at every second row and column.

Shape letters: B batch, W width, C features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Context
from ..kernels.rows import addmm, by_rows, convolve_row


def celu(x: Tensor) -> Tensor:
    """elu of x and of -x, side by side: (B, C, H, W) -> (B, 2C, H, W)."""
    return F.elu(torch.cat([x, -x], 1))


@dataclass
class LayerState:
    """What a layer of either stream remembers."""

    first: Tensor  # input of W_1; u: (B, 2C, 1, W) in the row before; v: (B, 2, 1 + W, 2C) there and in this row
    second: Tensor  # input of W_2, likewise
    above_first: Tensor | None  # v: (B, W, C), what W_1 takes from the row above, and the skips that are known
    above_second: Tensor | None  # v: (B, W, 2C), what W_2 does, and the class
    label: Tensor | None  # (B, 2C)


class RowLayer:
    """A layer of stream u, laid out for rows."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.first, self.second = layer.first.kernel(), layer.second.kernel()
        self.skip = layer.skip.kernel() if layer.skip is not None else None

    def init(self, like: Tensor, width: int, context: Context) -> LayerState:
        """The state before the first pixel."""
        first, second = (like.new_zeros(len(like), self.first.shape[1], 1, width) for _ in range(2))
        label = self.layer.label
        return LayerState(first, second, None, None, None if label is None else label(context.label))

    def row(self, x: Tensor, skip: Tensor | None, state: LayerState) -> Tensor:
        """(B, C, 1, W) -> (B, C, 1, W)."""
        previous, state.first = state.first, celu(x)
        hidden = map_row(torch.cat([previous, state.first], 2), self.first, self.layer.first.bias, 1)
        if skip is not None:
            hidden = hidden + map_row(celu(skip), self.skip, self.layer.skip.bias)
        previous, state.second = state.second, celu(hidden)
        gates = map_row(torch.cat([previous, state.second], 2), self.second, self.layer.second.bias, 1)
        if state.label is not None:
            gates = gates + state.label[:, :, None, None]
        return x + F.glu(gates, 1)


class PixelLayer:
    """A layer of stream v, laid out for pixels."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        first, second = layer.first.kernel(), layer.second.kernel()
        self.first_above, self.second_above = first[:, :, :1], second[:, :, :1]
        self.first, self.second = taps(first), taps(second)
        skip = layer.skip.kernel().unflatten(1, (2, -1, len(first)))  # (C, sign, skip, C, 1, 1)
        self.skip_above = skip[:, :, 0].flatten(1, 2)
        if skip.shape[2] > 1:
            self.first = torch.cat([self.first, skip[:, :, 1, :, 0, 0].flatten(1).t()])

    def init(self, like: Tensor, width: int, context: Context) -> LayerState:
        """The state before the first pixel."""
        channels = self.skip_above.shape[0]

        def zeros(*shape: int) -> Tensor:
            return like.new_zeros(len(like), *shape)

        first, second = (zeros(2, 1 + width, 2 * channels) for _ in range(2))
        label = self.layer.label
        label = None if label is None else label(context.label)
        return LayerState(first, second, zeros(width, channels), zeros(width, 2 * channels), label)

    def start_row(self, u: Tensor, state: LayerState) -> None:
        """Evaluates what the pixels of a row take from above; u (B, C, 1, W) is the finished row above."""
        skip = convolve_row(celu(u), self.skip_above, self.layer.skip.bias)
        state.above_first = next_row(state.first, self.first_above, self.layer.first.bias) + skip
        state.above_second = next_row(state.second, self.second_above, self.layer.second.bias)
        if state.label is not None:
            state.above_second = state.above_second + state.label[:, None]

    def pixel(self, x: Tensor, skip: Tensor | None, column: int, state: LayerState) -> Tensor:
        """(B, C) -> (B, C); `skip`, (B, C) if any, is the mirror's output at this pixel."""
        state.first[:, 1, column + 1] = celu(x)
        read = state.first[:, 1, column : column + 2].flatten(1)
        if skip is not None:
            read = torch.cat([read, celu(skip)], 1)
        hidden = addmm(state.above_first[:, column], read, self.first)
        state.second[:, 1, column + 1] = celu(hidden)
        read = state.second[:, 1, column : column + 2].flatten(1)
        return x + F.glu(addmm(state.above_second[:, column], read, self.second), 1)


def taps(kernel: Tensor) -> Tensor:
    """The last row of a kernel (out, in, rows, columns) as a matrix (columns * in, out)."""
    return kernel[:, :, -1].permute(2, 1, 0).flatten(0, 1).contiguous()


def next_row(maps: Tensor, kernel: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """Moves maps (B, 2, 1 + W, C) on by a row; what the new row takes from the one above, (B, W / stride, out)."""
    maps[:, 0] = maps[:, 1]
    maps[:, 1] = 0
    return convolve_row(maps[:, :1].permute(0, 3, 1, 2), kernel, bias, stride=stride)


def map_row(window: Tensor, kernel: Tensor, bias: Tensor, side: int = 0, stride: int = 1) -> Tensor:
    """`convolve_row` as a map, (B, out, 1, W')."""
    return convolve_row(window, kernel, bias, side, stride).mT.unsqueeze(2)


@dataclass
class LevelState:
    """What the layers of one scale keep."""

    down_u: list[LayerState]
    down_v: list[LayerState]
    up_u: list[LayerState]
    up_v: list[LayerState]
    inner: LevelState | None
    last_u: Tensor  # (B, C, 1, W), what the way down gave in the row before
    last_v: Tensor  # (B, 2, 1 + W, C), there and in this row
    above: Tensor  # (B, w, C), what the coarser scale takes from the row before
    coarse_u: Tensor  # (B, C, 2, W), what it gave for this pair of rows
    coarse_v: Tensor  # (B, 2, 2 w, C)


class LevelRunner:
    """A Level laid out for rows and pixels."""

    def __init__(self, level: nn.Module) -> None:
        self.level = level
        self.down_u, self.up_u = ([RowLayer(layer) for layer in layers] for layers in (level.down_u, level.up_u))
        self.down_v, self.up_v = ([PixelLayer(layer) for layer in layers] for layers in (level.down_v, level.up_v))
        self.inner = None
        if level.inner is not None:
            self.inner = LevelRunner(level.inner)
            self.shrink_u, self.shrink_v = level.shrink_u.kernel(), level.shrink_v.kernel()
            self.shrink_taps = taps(self.shrink_v)
            self.enlarge_u, kernel = level.enlarge_u.kernel(), level.enlarge_v.kernel()
            self.enlarge_v = kernel.permute(0, 2, 3, 1).flatten(1)  # (in, row * column * out)
            self.enlarge_bias = level.enlarge_v.bias.repeat(4)

    def init(self, like: Tensor, width: int, context: Context) -> LevelState:
        """The state before the first pixel."""
        channels, half = self.down_u[0].first.shape[0], (width + 1) // 2

        def zeros(*shape: int) -> Tensor:
            return like.new_zeros(len(like), *shape)

        return LevelState(
            *([layer.init(like, width, context) for layer in layers]
              for layers in (self.down_u, self.down_v, self.up_u, self.up_v)),
            None if self.inner is None else self.inner.init(like, half, context),
            zeros(channels, 1, width), zeros(2, 1 + width, channels), zeros(half, channels),
            zeros(channels, 2, width), zeros(2, 2 * half, channels),
        )  # fmt: skip

    def start_row(self, u: Tensor, row: int, state: LevelState) -> Tensor:
        """Stream u of a row, (B, C, 1, W) -> the same."""
        skips = [u]
        for layer_u, layer_v, state_u, state_v in zip(
            self.down_u, self.down_v, state.down_u, state.down_v, strict=True
        ):
            u = layer_u.row(u, None, state_u)
            layer_v.start_row(u, state_v)
            skips.append(u)
        if self.inner is None:
            skips.pop()
        else:
            above = next_row(state.last_v, self.shrink_v[:, :, :1], self.level.shrink_v.bias, 2)
            if row % 2 == 0:
                state.above = above
                coarse = map_row(torch.cat([state.last_u, u], 2), self.shrink_u, self.level.shrink_u.bias, 1, 2)
                coarse = self.inner.start_row(coarse, row // 2, state.inner)
                state.coarse_u = by_rows(lambda x: self.level.enlarge_u(x, self.enlarge_u, 2, u.shape[3]), coarse)
            state.last_u = u
            u = state.coarse_u[:, :, row % 2 : row % 2 + 1]
        for layer_u, layer_v, state_u, state_v in zip(self.up_u, self.up_v, state.up_u, state.up_v, strict=True):
            u = layer_u.row(u, skips.pop(), state_u)
            layer_v.start_row(u, state_v)
        return u

    def pixel(self, v: Tensor, row: int, column: int, state: LevelState) -> Tensor:
        """Stream v of a pixel, (B, C) -> (B, C)."""
        skips = [v]
        for layer, own in zip(self.down_v, state.down_v, strict=True):
            v = layer.pixel(v, None, column, own)
            skips.append(v)
        if self.inner is None:
            skips.pop()
        else:
            state.last_v[:, 1, column + 1] = v
            if row % 2 == column % 2 == 0:
                read = state.last_v[:, 1, column : column + 2].flatten(1)
                coarse = addmm(state.above[:, column // 2], read, self.shrink_taps)
                coarse = self.inner.pixel(coarse, row // 2, column // 2, state.inner)
                fine = addmm(self.enlarge_bias, coarse, self.enlarge_v)
                state.coarse_v[:, :, column : column + 2] = fine.unflatten(1, (2, 2, -1))
            v = state.coarse_v[:, row % 2, column]
        for layer, own in zip(self.up_v, state.up_v, strict=True):
            v = layer.pixel(v, skips.pop(), column, own)
        return v
