"""PixelCNN++: Salimans, Karpathy, Chen, Kingma, arXiv:1701.05517.

A pixel has a mixture of M discretised logistics, whose means of later channels follow the earlier ones; R, G and B have
its exact conditionals, one by one (`priors/_logistic_mixture.py`).

The network has two streams, u of all rows above (kernels 2x3) and v of the row to the left too (2x2), at three scales:
strided convolutions lead down, transposed ones up, and each layer on the way up takes in its mirror on the way down.
A layer, of convolutions W_1 and W_2 and celu(x) = elu([x, -x]), adds y' . sigmoid(y'') to x, where

    (y', y'') = W_2 * celu(W_1 * celu(x) + S celu(skip)) + class vector.

Kernels are weight-normalised, transposed ones over the input channel.  Grey images have one channel, no coefficients.

`step` evaluates u once per row, for all its pixels, and v pixel by pixel, at the coarser scales only on their own grid.

Deviations: no initialisation by data; bins of tiny probability keep their exact value (the original takes the density
at the centre, which is not normalised); sides need not be multiples of 4; sizes are those of the authors' code (160
channels; the paper says 192).

Shape letters: B batch, H height, W width, D channels of the image, K levels, M mixtures, C features, P numbers of a
pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ClassLabels, Codes, CodeSpec, Context, Preset, Prior, Runner, check_float32, register
from ..core.checks import check_shares, check_sizes
from ..layers.weight_norm import WeightNormConv2d, WeightNormKernel
from ._logistic_mixture import LogisticMixture
from ._raster import window_above

NUM_LEVELS = 3


@dataclass(frozen=True, kw_only=True)
class PixelCNNPPConfig(ClassLabels):
    """Sizes, beside the class labels.

    width:        features of either stream
    num_residual: residual layers per scale and stream
    num_mixtures: logistic distributions in the mixture of a pixel
    dropout:      share of features dropped inside the residual layers in training
    """

    width: int = 160
    num_residual: int = 5
    num_mixtures: int = 10
    dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "width", "num_residual", "num_mixtures")
        check_shares(self, "dropout")


# ---------------------------------------------------------------- the network


def celu(x: Tensor) -> Tensor:
    """elu of x and of -x, side by side: (B, C, H, W) -> (B, 2C, H, W)."""
    return F.elu(torch.cat([x, -x], 1))


def convolution(stream: str, in_channels: int, out_channels: int, stride: int = 1) -> WeightNormConv2d:
    """Of stream "u", the row above and the row itself to both sides, or "v", up to the pixel itself."""
    size, padding = ((2, 3), (1, 1, 1, 0)) if stream == "u" else ((2, 2), (1, 0, 1, 0))
    return WeightNormConv2d(in_channels, out_channels, size, padding, stride)


class Enlarge(WeightNormKernel):
    """A transposed convolution of stride 2, cropped to the size of the finer map."""

    def __init__(self, stream: str, channels: int) -> None:
        super().__init__((channels, channels, 2, 3 if stream == "u" else 2))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, kernel: Tensor, height: int, width: int) -> Tensor:
        """(B, C, h, w) -> (B, C, H, W), with H <= 2 h and W <= 2 w; `kernel` is that of this layer."""
        enlarged = F.conv_transpose2d(x, kernel, self.bias, stride=2)[..., kernel.shape[3] - 2 :]
        return enlarged[:, :, :height, :width]


class GatedResidual(nn.Module):
    """A residual layer that takes in `num_skips` maps of C features."""

    def __init__(self, stream: str, config: PixelCNNPPConfig, num_skips: int) -> None:
        super().__init__()
        channels = config.width
        self.first = convolution(stream, 2 * channels, channels)
        self.second = convolution(stream, 2 * channels, 2 * channels)
        self.skip = WeightNormConv2d(2 * num_skips * channels, channels) if num_skips else None
        self.label = nn.Embedding(config.num_labels, 2 * channels) if config.num_labels else None
        self.dropout = config.dropout

    def forward(self, x: Tensor, skip: Tensor | None, context: Context) -> Tensor:
        hidden = self.first(celu(x))
        if skip is not None:
            hidden = hidden + self.skip(celu(skip))
        gates = self.second(F.dropout(celu(hidden), self.dropout, self.training))
        if self.label is not None:
            gates = gates + self.label(context.label)[:, :, None, None]
        return x + F.glu(gates, 1)


class Level(nn.Module):
    """Both streams at one scale, on the way down and up, and the coarser scales inside."""

    def __init__(self, config: PixelCNNPPConfig, num_levels: int) -> None:
        super().__init__()

        def layers(stream: str, count: int, num_skips: int) -> nn.ModuleList:
            return nn.ModuleList(GatedResidual(stream, config, num_skips) for _ in range(count))

        count, channels = config.num_residual, config.width
        self.down_u, self.down_v = layers("u", count, 0), layers("v", count, 1)
        self.inner = Level(config, num_levels - 1) if num_levels > 1 else None
        if self.inner is not None:
            self.shrink_u, self.shrink_v = (convolution(stream, channels, channels, 2) for stream in "uv")
            self.enlarge_u, self.enlarge_v = (Enlarge(stream, channels) for stream in "uv")
            count += 1
        self.up_u, self.up_v = layers("u", count, 1), layers("v", count, 2)

    def forward(self, u: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) twice -> the same."""
        size, skips = u.shape[2:], [(u, v)]
        for layer_u, layer_v in zip(self.down_u, self.down_v, strict=True):
            u = layer_u(u, None, context)
            v = layer_v(v, u, context)
            skips.append((u, v))
        if self.inner is None:
            skips.pop()
        else:
            u, v = self.inner(self.shrink_u(u), self.shrink_v(v), context)
            u = self.enlarge_u(u, self.enlarge_u.kernel(), *size)
            v = self.enlarge_v(v, self.enlarge_v.kernel(), *size)
        for layer_u, layer_v in zip(self.up_u, self.up_v, strict=True):
            skip_u, skip_v = skips.pop()
            u = layer_u(u, skip_u, context)
            v = layer_v(v, torch.cat([u, skip_v], 1), context)
        return u, v


# ---------------------------------------------------------------- one row, one pixel at a time


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

    def __init__(self, layer: GatedResidual) -> None:
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
        hidden = F.conv2d(torch.cat([previous, state.first], 2), self.first, self.layer.first.bias, padding=(0, 1))
        if skip is not None:
            hidden = hidden + F.conv2d(celu(skip), self.skip, self.layer.skip.bias)
        previous, state.second = state.second, celu(hidden)
        gates = F.conv2d(torch.cat([previous, state.second], 2), self.second, self.layer.second.bias, padding=(0, 1))
        if state.label is not None:
            gates = gates + state.label[:, :, None, None]
        return x + F.glu(gates, 1)


class PixelLayer:
    """A layer of stream v, laid out for pixels."""

    def __init__(self, layer: GatedResidual) -> None:
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
        """Evaluates what the pixels of a row take from above, of which u (B, C, 1, W) is finished."""
        skip = F.conv2d(celu(u), self.skip_above, self.layer.skip.bias)
        state.above_first = (next_row(state.first, self.first_above, self.layer.first.bias) + skip)[:, :, 0].mT
        state.above_second = next_row(state.second, self.second_above, self.layer.second.bias)[:, :, 0].mT
        if state.label is not None:
            state.above_second = state.above_second + state.label[:, None]

    def pixel(self, x: Tensor, skip: Tensor | None, column: int, state: LayerState) -> Tensor:
        """(B, C) -> (B, C); `skip`, (B, C) if any, is the mirror's output at this pixel."""
        state.first[:, 1, column + 1] = celu(x)
        read = state.first[:, 1, column : column + 2].flatten(1)
        if skip is not None:
            read = torch.cat([read, celu(skip)], 1)
        hidden = torch.addmm(state.above_first[:, column], read, self.first)
        state.second[:, 1, column + 1] = celu(hidden)
        read = state.second[:, 1, column : column + 2].flatten(1)
        return x + F.glu(torch.addmm(state.above_second[:, column], read, self.second), 1)


def taps(kernel: Tensor) -> Tensor:
    """The last row of a kernel (out, in, rows, columns) as a matrix (columns * in, out)."""
    return kernel[:, :, -1].permute(2, 1, 0).flatten(0, 1).contiguous()


def next_row(maps: Tensor, kernel: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """Moves maps (B, 2, 1 + W, C) on by a row; what the new row takes from the one above, (B, out, 1, W / stride)."""
    maps[:, 0] = maps[:, 1]
    maps[:, 1] = 0
    return F.conv2d(maps[:, :1].permute(0, 3, 1, 2), kernel, bias, stride)


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

    def __init__(self, level: Level) -> None:
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
                state.above = above[:, :, 0].mT
                window = F.pad(torch.cat([state.last_u, u], 2), (1, 1))
                coarse = F.conv2d(window, self.shrink_u, self.level.shrink_u.bias, 2)
                coarse = self.inner.start_row(coarse, row // 2, state.inner)
                state.coarse_u = self.level.enlarge_u(coarse, self.enlarge_u, 2, u.shape[3])
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
                coarse = torch.addmm(state.above[:, column // 2], read, self.shrink_taps)
                coarse = self.inner.pixel(coarse, row // 2, column // 2, state.inner)
                fine = torch.addmm(self.enlarge_bias, coarse, self.enlarge_v)
                state.coarse_v[:, :, column : column + 2] = fine.unflatten(1, (2, 2, -1))
            v = state.coarse_v[:, row % 2, column]
        for layer, own in zip(self.up_v, state.up_v, strict=True):
            v = layer.pixel(v, skips.pop(), column, own)
        return v


PRESETS = {  # the published code has 160 features, the paper 192
    "cifar10": Preset(PixelCNNPPConfig(), CodeSpec.single(32, 32, 3, 256)),
    "cifar10-paper": Preset(PixelCNNPPConfig(width=192), CodeSpec.single(32, 32, 3, 256)),
}


@register(
    "priors",
    "pixelcnnpp",
    PixelCNNPPConfig,
    PRESETS,
    small={"width": 48, "num_residual": 3, "num_mixtures": 5, "dropout": 0.1},
)
class PixelCNNPP(Prior):
    """Two streams at three scales, and a mixture of discretised logistics per pixel of grey or colour images."""

    def __init__(self, spec: CodeSpec, config: PixelCNNPPConfig) -> None:
        super().__init__(spec, config.conditions())
        self.config, self.grid = config, spec.only
        depth, channels = self.grid.depth, config.width
        if depth not in (1, 3):
            raise ValueError(
                f"PixelCNN++ models grey or colour pixels; this tokenizer gives {depth} codes per position"
            )
        self.input_u = WeightNormConv2d(depth + 1, channels, (2, 3), (1, 1, 1, 0))
        self.input_above = WeightNormConv2d(depth + 1, channels, (1, 3), (1, 1, 0, 0))
        self.input_left = WeightNormConv2d(depth + 1, channels, (2, 1), (0, 0, 1, 0))
        self.level = Level(config, NUM_LEVELS)
        self.out = WeightNormConv2d(channels, config.num_mixtures * (1 + depth * (3 if depth == 3 else 2)))

    def numbers(self, codes: Codes, context: Context) -> Tensor:
        """What the network says of every pixel: codes -> (B, H, W, P)."""
        weight = self.out.direction
        values = (codes[0] * (2 / (self.grid.codebook_size - 1)) - 1).to(weight.dtype).permute(0, 3, 1, 2)
        inputs = F.pad(values, (0, 0, 0, 0, 0, 1), value=1.0)
        u = F.pad(self.input_u(inputs), (0, 0, 1, -1))
        v = F.pad(self.input_above(inputs), (0, 0, 1, -1)) + F.pad(self.input_left(inputs), (1, -1))
        return self.out(F.elu(self.level(u, v, context)[1])).permute(0, 2, 3, 1)

    def mixture(self, numbers: Tensor) -> LogisticMixture:
        """In at least float32: masses are differences of nearly equal numbers."""
        numbers = numbers if numbers.dtype == torch.float64 else numbers.float()
        return LogisticMixture.of(numbers, self.grid.depth, self.config.num_mixtures)

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        mixture = self.mixture(self.numbers(codes, context))
        depth, codebook_size = self.grid.depth, self.grid.codebook_size
        return (torch.stack([mixture.logits(codes[0], d, codebook_size) for d in range(depth)], 3),)

    def log_prob_grids(self, codes: Codes, context: Context = Context()) -> tuple[Tensor, ...]:
        """As in `Prior`, from the masses of these codes alone: no (B, H, W, D, K) is laid out."""
        self.spec.check(codes)
        self.check_context(context, codes[0].shape[0])
        mixture, grid = self.mixture(self.numbers(codes, context)), self.grid
        sums = [mixture.joint(codes[0], d, grid.codebook_size).logsumexp(-1) for d in range(grid.depth + 1)]
        return (torch.stack(sums, -1).diff(dim=-1),)

    def runner(self, precision: str = "float32") -> PixelCNNPPRunner:
        check_float32(self, precision)
        return PixelCNNPPRunner(self)


@dataclass
class PixelCNNPPState:
    """What a `PixelCNNPPRunner` remembers."""

    t: int
    inputs: Tensor  # (B, D + 1, H, W), values of the codes known so far, and ones
    pixel: Tensor  # int64 (B, D), codes of the pixel in progress
    numbers: Tensor  # (B, P), its mixture
    above: Tensor  # (B, W, C), what stream v begins with in this row, but for the pixel to the left
    level: LevelState


class PixelCNNPPRunner(Runner):
    """A PixelCNN++ laid out for rows and pixels."""

    def __init__(self, prior: PixelCNNPP) -> None:
        super().__init__(prior)
        self.level = LevelRunner(prior.level)
        self.input_u, self.input_above = prior.input_u.kernel(), prior.input_above.kernel()
        self.input_left = prior.input_left.kernel()
        self.out = prior.out.matrix()

    def start(self, batch_size: int, context: Context) -> PixelCNNPPState:
        prior, grid, weight = self.prior, self.prior.grid, self.prior.out.direction
        inputs = weight.new_zeros(batch_size, grid.depth + 1, grid.height, grid.width)
        inputs[:, -1] = 1
        return PixelCNNPPState(
            0, inputs, torch.zeros(batch_size, grid.depth, dtype=torch.int64, device=weight.device),
            weight.new_zeros(batch_size, prior.out.magnitude.shape[0]),
            weight.new_zeros(batch_size, grid.width, prior.config.width),
            self.level.init(inputs, grid.width, context),
        )  # fmt: skip

    def advance(self, previous: Tensor, state: PixelCNNPPState) -> tuple[Tensor, PixelCNNPPState]:
        prior, codebook_size = self.prior, self.prior.grid.codebook_size
        if state.t > 0:
            last = prior.spec.position(state.t - 1)
            value = previous * (2 / (codebook_size - 1)) - 1
            state.inputs[:, last.depth, last.row, last.column] = value.to(state.inputs)
            state.pixel[:, last.depth] = previous
        here = prior.spec.position(state.t)
        if here.column == here.depth == 0:
            self.start_row(here.row, state)
        if here.depth == 0:
            v = state.above[:, here.column]
            if here.column > 0:
                left = state.inputs[:, :, here.row, here.column - 1]
                v = torch.addmm(v, left, self.input_left[:, :, 1, 0].t())
            v = self.level.pixel(v, here.row, here.column, state.level)
            state.numbers = torch.addmm(prior.out.bias, F.elu(v), self.out)
        state.t += 1
        return prior.mixture(state.numbers).logits(state.pixel, here.depth, codebook_size), state

    def start_row(self, row: int, state: PixelCNNPPState) -> None:
        """Evaluates what the pixels of `row` take from the finished rows."""
        prior, window = self.prior, window_above(state.inputs, row, 2)
        left = F.conv2d(window[:, :, 1:], self.input_left[:, :, :1], prior.input_left.bias)
        above = F.pad(left, (1, -1))
        if row == 0:
            u = torch.zeros_like(above)
        else:
            above = above + F.conv2d(window[:, :, 1:], self.input_above, prior.input_above.bias, padding=(0, 1))
            u = F.conv2d(window, self.input_u, prior.input_u.bias, padding=(0, 1))
        state.above = above[:, :, 0].mT
        self.level.start_row(u, row, state.level)
