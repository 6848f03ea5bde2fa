"""PixelCNN++: Salimans, Karpathy, Chen, Kingma, arXiv:1701.05517.

A pixel has a mixture of M discretised logistics, whose means of later channels follow the earlier ones; R, G and B have
its exact conditionals, one by one (`priors/_logistic_mixture.py`).

The network has two streams, u of all rows above (kernels 2x3) and v of the row to the left too (2x2), at three scales:
strided convolutions lead down, transposed ones up, and each layer on the way up takes in its mirror on the way down.
A layer, of convolutions W_1 and W_2 and celu(x) = elu([x, -x]), adds y' . sigmoid(y'') to x, where

    (y', y'') = W_2 * celu(W_1 * celu(x) + S celu(skip)) + class vector.

Kernels are weight-normalised, transposed ones over the input channel.  Grey images have one channel, no coefficients.

The runner evaluates u once per row, for all its pixels, and v pixel by pixel (`priors/_pixelcnnpp_rows.py`).

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
from ..kernels.rows import addmm
from ..layers.masked import window_above
from ..layers.weight_norm import WeightNormConv2d, WeightNormKernel
from ._logistic_mixture import LogisticMixture
from ._pixelcnnpp_rows import LevelRunner, LevelState, celu, map_row

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
                v = addmm(v, left, self.input_left[:, :, 1, 0].t())
            v = self.level.pixel(v, here.row, here.column, state.level)
            state.numbers = addmm(prior.out.bias, F.elu(v), self.out)
        state.t += 1
        return prior.mixture(state.numbers).logits(state.pixel, here.depth, codebook_size), state

    def start_row(self, row: int, state: PixelCNNPPState) -> None:
        """Evaluates what the pixels of `row` take from the finished rows."""
        prior, window = self.prior, window_above(state.inputs, row, 2)
        left = map_row(window[:, :, 1:], self.input_left[:, :, :1], prior.input_left.bias)
        above = F.pad(left, (1, -1))
        if row == 0:
            u = torch.zeros_like(above)
        else:
            above = above + map_row(window[:, :, 1:], self.input_above, prior.input_above.bias, 1)
            u = map_row(window, self.input_u, prior.input_u.bias, 1)
        state.above = above[:, :, 0].mT
        self.level.start_row(u, row, state.level)
