"""PixelRNN: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel Recurrent Neural Networks", arXiv:1601.06759.

    p(x) = prod_i p(x_i,R | x_<i) p(x_i,G | x_<i, x_i,R) p(x_i,B | x_<i, x_i,R, x_i,G)

A 7x7 convolution of mask A gives a map of 2h features; each layer adds to it an LSTM that runs over the image,

    z = W_is x + W_ss h(before);   (o, f, i, g) = z;   c = f * c(before) + i * g;   h = o * tanh(c)
    x <- x + W_1x1(2h) h

and two layers of (relu, 1x1) of mask B and a K-way softmax per channel follow; K = 2 is the Bernoulli of
binary images.  What differs is where an LSTM comes from and what it reads:

  Row LSTM         goes down the rows; W_is reads the pixel and its left neighbour (a 3x1 convolution of mask B),
                   W_ss three states of the row above: context is a triangle above the pixel.
  Diagonal BiLSTM  one goes along anti-diagonals from the left, one from the right; W_is reads the pixel, W_ss the
                   states beside and above.  The second is moved down a row so as not to see the future, and added.
                   Context is every earlier pixel but one: the last of the row above reaches only the columns
                   below it that the 7x7 covers, as mask A hides it from the features where the second begins.

Inside a pixel, features (and each of the four gates) are split into one group per code, R, G, B; W_is and the
1x1 convolutions let group d read groups <= d there, W_ss reads earlier pixels and is not masked.

Multi-scale (section 2.3): one network models every f-th pixel of every f-th row, a second one the whole image; the
small image, through a deconvolution, adds a 1x1 map to the gates of all its layers.  The codes of the second that
the first has drawn are certain there (the paper leaves open what becomes of them), so that the product of the two
is an exact likelihood of the image.

Deviations: the initial states are zero, not learned, since constant channels (ones, coordinates) beside the
pixels say where borders are; forget gates begin with a bias of 1; the way back to 2h features has no bias, which
the next gates have; class conditioning adds a learned vector to the gates of each layer.

Shape letters: B batch, D codes per pixel, H height, W width, K vocabulary, h hidden features.  Maps are
(B, H, W, features) here, for the scans and the 1x1 products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ClassLabels, Codes, CodeSpec, Context, GridSpec, Position, Preset, check_float32, register
from ..core.checks import MAX_SIZE, check_range, check_sizes
from ..kernels.chain import Chain, Link, Part
from ..kernels.rows import addmm, linear, matmul
from ..kernels.scan import NUM_TAPS, lstm_cell, lstm_scan, neighbours_above
from ..layers.masked import AboveRow, LeftConv2d
from ._cascade import Cascade, certain
from ._raster import ChainRunner, InputConv2d, RasterPrior, head_links


@dataclass(frozen=True, kw_only=True)
class PixelRNNConfig(ClassLabels):
    """Sizes, beside the class labels.

    num_layers:    LSTM layers
    width:         h, the states of an LSTM; the map between the layers has 2 h features
    head_width:    features between the two last layers
    residual:      whether a layer's output is added to its input; only the paper's network for ImageNet 64x64 does not
    embedding_dim: width of a learned vector per code, for codes without an order; 0 for the levels of pixels
    """

    num_layers: int = 12
    width: int = 128
    head_width: int = 1024
    residual: bool = True
    embedding_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "num_layers", "width", "head_width")
        check_range(self, 0, MAX_SIZE, "embedding_dim")


@dataclass
class LayerState:
    """What a layer remembers of the row in progress, as views of what `NetworkState` keeps."""

    condition: Tensor  # (B, H or 1, W or 1, gates), what label and spatial condition add
    inputs: Tensor  # (B, W, 2h), the layer's input; from the next column on still that of the row above
    h: Tensor  # (B, W, h), states, likewise
    c: Tensor  # (B, W, h), cells, likewise
    above: Tensor  # (B, W, 4h), what this row's gates take from the row above
    beside: Tensor  # (B, W, h); row: the cells of the row above; diagonal: the second direction's states, moved down


@dataclass(frozen=True)
class Parts:
    """Where a layer's numbers at a pixel lie; of two parts, the second is one pixel to the left, zeros at first."""

    work: Part  # 4h numbers
    inputs: tuple[Part, Part]
    h: tuple[Part, Part]
    c: tuple[Part, Part]
    above: Part
    beside: Part
    out: Part  # 2h numbers, the layer's result


class Scan(nn.Module):
    """One LSTM over the map: its weights and its order."""

    def __init__(self, hidden: int, groups: int, order: str, mirrored: bool = False) -> None:
        super().__init__()
        self.order, self.mirrored = order, mirrored
        left = 1 if order == "row" else 0
        self.input = LeftConv2d(2 * hidden, 4 * hidden, left, "B", groups, blocks=(1, 4))
        taps = NUM_TAPS[order]
        bound = (taps * hidden) ** -0.5
        self.weight = nn.Parameter(torch.empty(taps, hidden, 4 * hidden).uniform_(-bound, bound))
        with torch.no_grad():
            self.input.bias[hidden : 2 * hidden] = 1

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """(B, H, W, 2h) -> (B, H, W, h); condition is (B, 1, 1, 4h) or (B, H, W, 4h)."""
        width, left = x.shape[2], self.input.left
        taps = [F.pad(x, (0, 0, k, 0))[:, :, :width] for k in range(left, 0, -1)]
        z = F.linear(torch.cat([*taps, x], dim=-1) if taps else x, self.input.matrix().T, self.input.bias)
        return lstm_scan(z if condition is None else z + condition, self.weight, self.order, self.mirrored)


class Layer(nn.Module, ABC):
    """One or two scans, and the way back to 2h features."""

    def __init__(self, config: PixelRNNConfig, groups: int, spatial_channels: int, scans: list[Scan]) -> None:
        super().__init__()
        self.residual = config.residual
        self.scans = nn.ModuleList(scans)
        self.up = LeftConv2d(config.width, 2 * config.width, 0, "B", groups, bias=False)
        num_gates = 4 * config.width * len(scans)
        self.label = nn.Embedding(config.num_labels, num_gates) if config.num_labels else None
        self.spatial = nn.Linear(spatial_channels, num_gates, bias=False) if spatial_channels else None

    def condition(self, context: Context) -> Tensor | None:
        """What the gates of all scans take from the context, (B, H or 1, W or 1, gates), or None."""
        total = None
        if self.label is not None:
            total = self.label(context.label)[:, None, None]
        if self.spatial is not None:
            spatial = self.spatial(context.spatial.permute(0, 2, 3, 1))
            total = spatial if total is None else total + spatial
        return total

    def forward(self, x: Tensor, context: Context) -> Tensor:
        condition = self.condition(context)
        parts = [None] * len(self.scans) if condition is None else condition.chunk(len(self.scans), dim=-1)
        h = self.scans[0](x, parts[0])
        for scan, part in zip(self.scans[1:], parts[1:], strict=True):
            h = h + F.pad(scan(x, part)[:, :-1], (0, 0, 0, 0, 1, 0))
        return self.project(x.flatten(0, 2), h.flatten(0, 2), self.up.matrix()).view_as(x)

    def project(self, x: Tensor, h: Tensor, matrix: Tensor) -> Tensor:
        """(N, 2h), (N, h) -> (N, 2h): the layer's output from its input and states."""
        y = matmul(h, matrix)
        return x + y if self.residual else y  # a sum in float32, whatever the product is in

    def up_links(self, parts: Parts, states: Sequence[Part]) -> list[Link]:
        """The layer's result: of its input where that is added, and of the sum of some states."""
        matrix, add, links = self.up.matrix(), parts.inputs[0] if self.residual else None, []
        for state in states:
            links.append(Link(x=state, matrix=matrix, add=add, out=parts.out))
            add = parts.out
        return links

    @abstractmethod
    def start_row(self, row: int, state: LayerState) -> None:
        """Evaluates what the pixels of `row` take from the row above; `state` holds that row complete."""

    @abstractmethod
    def links(self, parts: Parts) -> list[Link]:
        """The layer at one pixel."""


class RowLayer(Layer):
    """A layer of the Row LSTM."""

    def __init__(self, config: PixelRNNConfig, groups: int, spatial_channels: int) -> None:
        super().__init__(config, groups, spatial_channels, [Scan(config.width, groups, "row")])

    def start_row(self, row: int, state: LayerState) -> None:
        (scan,) = self.scans
        above = matmul(neighbours_above(state.h), scan.weight.flatten(0, 1))
        state.above.copy_(above + scan.input.bias + _row(state.condition, row))
        state.beside.copy_(state.c)

    def links(self, parts: Parts) -> list[Link]:
        matrix, cells = self.scans[0].input.matrix(), {"cells": parts.beside, "new_cells": parts.c[0]}
        gates = Link(x=parts.inputs[1], matrix=matrix, add=parts.above, after="lstm", out=parts.h[0], **cells)
        return [gates, *self.up_links(parts, [parts.h[0]])]


class DiagonalLayer(Layer):
    """A layer of the Diagonal BiLSTM: two scans, from the left and from the right."""

    def __init__(self, config: PixelRNNConfig, groups: int, spatial_channels: int) -> None:
        scans = [Scan(config.width, groups, "diagonal", mirrored) for mirrored in (False, True)]
        super().__init__(config, groups, spatial_channels, scans)

    def start_row(self, row: int, state: LayerState) -> None:
        first, second = self.scans
        if row > 0:
            # The second direction, over the row above, from its right end; `beside` holds its states one more row up.
            above = pointwise(second.input, state.inputs) + matmul(state.beside, second.weight[0])
            above = above + _row(state.condition.chunk(2, dim=-1)[1], row - 1)
            h = c = torch.zeros_like(state.h[:, 0])
            for column in reversed(range(state.h.shape[1])):
                h, c = lstm_cell(addmm(above[:, column], h, second.weight[1]), c)
                state.beside[:, column] = h
        condition = _row(state.condition.chunk(2, dim=-1)[0], row)
        state.above.copy_(matmul(state.h, first.weight[0]) + first.input.bias + condition)

    def links(self, parts: Parts) -> list[Link]:
        scan = self.scans[0]
        return [
            Link(x=parts.inputs[0], matrix=scan.input.matrix(), add=parts.above, out=parts.work),
            Link(
                x=parts.h[1], matrix=scan.weight[1].detach(), add=parts.work, after="lstm", out=parts.h[0],
                cells=parts.c[1], new_cells=parts.c[0],
            ),
            *self.up_links(parts, [parts.h[0], parts.beside]),
        ]  # fmt: skip


class PixelRNN(RasterPrior):
    """What the two variants share; they differ in their layers."""

    layer: ClassVar[type[Layer]]
    compile_training = False  # the scans are compiled already

    def __init__(self, spec: CodeSpec, config: PixelRNNConfig, spatial_channels: int = 0) -> None:
        super().__init__(spec, config.conditions(spatial_channels=spatial_channels), config.embedding_dim)
        self.config = config
        groups, width = self.grid.depth, 2 * config.width
        self.input = InputConv2d(self.in_channels, width, 7, groups)
        self.layers = nn.ModuleList(self.layer(config, groups, spatial_channels) for _ in range(config.num_layers))
        self.head = nn.ModuleList(
            [
                LeftConv2d(width, config.head_width, 0, "B", groups),
                LeftConv2d(config.head_width, groups * self.grid.codebook_size, 0, "B", groups),
            ]
        )

    def features(self, inputs: Tensor, context: Context) -> Tensor:
        x = self.input(inputs).permute(0, 2, 3, 1).contiguous()
        for layer in self.layers:
            x = layer(x, context)
        return x.permute(0, 3, 1, 2)

    def logits(self, features: Tensor) -> Tensor:
        x = features.permute(0, 2, 3, 1)
        for layer in self.head:
            x = pointwise(layer, F.relu(x))
        return x.permute(0, 3, 1, 2)

    def runner(self, precision: str = "float32") -> PixelRNNRunner:
        check_float32(self, precision)
        return PixelRNNRunner(self)


@dataclass
class NetworkState:
    """What all layers keep, n of them; see `LayerState`.  Before the pixels of some stands a column of zeros."""

    first: Tensor  # (B, W, 2h), what this row's first layer takes from the rows above
    conditions: list[Tensor]  # per layer
    inputs: Tensor  # (B, n, W + 1, 2h)
    h: Tensor  # (B, n, W + 1, h)
    c: Tensor  # (B, n, W + 1, h)
    above: Tensor  # (B, n, W, 4h)
    beside: Tensor  # (B, n, W, h)

    def layer(self, index: int) -> LayerState:
        """What one layer keeps."""
        shifted = (each[:, index, 1:] for each in (self.inputs, self.h, self.c))
        return LayerState(self.conditions[index], *shifted, self.above[:, index], self.beside[:, index])


class PixelRNNRunner(ChainRunner):
    """A PixelRNN with its kernels laid out for one pixel."""

    def __init__(self, prior: PixelRNN) -> None:
        super().__init__(prior)
        self.above = AboveRow(prior.input.above)
        h, width, (first, last) = prior.config.width, prior.grid.width, prior.head
        x, work, out = Part(0, 0), Part(0, 2 * h), Part(0, 2 * h + max(4 * h, len(first.bias)))
        taps = Part(0, out.offset + len(last.bias))

        def pixel(buffer: int, layer: int, size: int) -> tuple[Part, Part]:
            """A pixel of a layer in a buffer with a column of zeros, and the pixel to the left."""
            start = layer * (width + 1) * size
            return Part(buffer, start + size, size), Part(buffer, start, size)

        links = [Link(x=taps, matrix=prior.input.left.matrix(), add=Part(6, 0, 2 * h), out=pixel(1, 0, 2 * h)[0])]
        for index, layer in enumerate(prior.layers):
            links += layer.links(Parts(
                work=work, inputs=pixel(1, index, 2 * h), h=pixel(2, index, h), c=pixel(3, index, h),
                above=Part(4, index * width * 4 * h, 4 * h), beside=Part(5, index * width * h, h),
                out=pixel(1, index + 1, 2 * h)[0] if index + 1 < len(prior.layers) else x,
            ))  # fmt: skip
        links += head_links(prior.head, x, work, out)
        self.chain, self.left, self.out, self.taps = Chain(links), prior.input.left.left, out.offset, taps.offset

    def start_network(self, inputs: Tensor, context: Context) -> NetworkState:
        batch_size, _, _, width = inputs.shape
        layers, h = self.prior.layers, self.prior.config.width

        def zeros(columns: int, size: int) -> Tensor:
            return inputs.new_zeros(batch_size, len(layers), columns, size)

        conditions = [layer.condition(context) for layer in layers]
        nothing = inputs.new_zeros(batch_size, 1, 1, 4 * h * len(layers[0].scans))
        return NetworkState(
            inputs.new_zeros(batch_size, width, 2 * h), [nothing if one is None else one for one in conditions],
            zeros(width + 1, 2 * h), zeros(width + 1, h), zeros(width + 1, h), zeros(width, 4 * h), zeros(width, h),
        )  # fmt: skip

    def start_row(self, inputs: Tensor, row: int, network: NetworkState) -> None:
        network.first = self.above.at(inputs, row)
        for index, layer in enumerate(self.prior.layers):
            layer.start_row(row, network.layer(index))

    def buffers(self, network: NetworkState) -> Sequence[Tensor]:
        return network.inputs, network.h, network.c, network.above, network.beside, network.first


COLOUR32, COLOUR64 = CodeSpec.single(32, 32, 3, 256), CodeSpec.single(64, 64, 3, 256)
PRESETS = {  # the paper trains a Diagonal BiLSTM on MNIST, both on CIFAR-10, a Row LSTM on ImageNet
    "mnist": Preset(PixelRNNConfig(num_layers=7, width=16, head_width=32), CodeSpec.single(28, 28, 1, 2)),
    "cifar10": Preset(PixelRNNConfig(), COLOUR32),
    "imagenet32": Preset(PixelRNNConfig(width=384), COLOUR32),
    "imagenet64": Preset(PixelRNNConfig(num_layers=4, width=512, residual=False), COLOUR64),
}


FOR_A_CPU = {"num_layers": 5, "width": 32, "head_width": 64}


@register("priors", "row_lstm", PixelRNNConfig, PRESETS, small=FOR_A_CPU)
class RowLSTM(PixelRNN):
    """LSTM layers down the rows."""

    layer = RowLayer


@register("priors", "diagonal_bilstm", PixelRNNConfig, PRESETS, small=FOR_A_CPU)
class DiagonalBiLSTM(PixelRNN):
    """Pairs of LSTM layers along both diagonals."""

    layer = DiagonalLayer


@dataclass(frozen=True, kw_only=True)
class MultiScalePixelRNNConfig(PixelRNNConfig):
    """Sizes of both networks as in `PixelRNNConfig`, and of what joins them.

    variant:         the LSTM of both networks
    condition_width: features of the map that the second network gets of the small image
    """

    variant: Literal["row_lstm", "diagonal_bilstm"] = "row_lstm"
    condition_width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "condition_width")


class Upsampler(nn.Module):
    """A deconvolution of the small image's levels to the size of the large one."""

    def __init__(self, small: GridSpec, factor: int, channels: int) -> None:
        super().__init__()
        self.small, self.factor = small, factor
        self.deconvolution = nn.ConvTranspose2d(small.depth, channels, 2 * factor, factor, padding=factor // 2)

    def forward(self, codes: Codes) -> Tensor:
        """Codes of the small grid, (B, h, w, D) -> (B, channels, h * factor, w * factor)."""
        levels = codes[0].to(self.deconvolution.weight.dtype) * (2 / (self.small.codebook_size - 1)) - 1
        height, width = self.small.height * self.factor, self.small.width * self.factor
        return F.relu(self.deconvolution(levels.permute(0, 3, 1, 2))[:, :, :height, :width])


@register(
    "priors",
    "multiscale_pixelrnn",
    MultiScalePixelRNNConfig,
    {
        "imagenet64": Preset(
            MultiScalePixelRNNConfig(num_layers=4, width=512, residual=False),
            CodeSpec((COLOUR32.only, COLOUR64.only)),
        )
    },
    small=FOR_A_CPU | {"condition_width": 32},
)
class MultiScalePixelRNN(Cascade):
    """A network for a subsampled image and one for the image given it, over codes of `MultiScalePixels`.

    A large grid that contradicts the small one has a probability of (almost) zero.
    """

    compile_training = False

    def __init__(self, spec: CodeSpec, config: MultiScalePixelRNNConfig) -> None:
        small, large = spec.grids if len(spec.grids) == 2 else (spec.grids[0], spec.grids[0])
        self.factor = large.height // small.height
        enlarged = (small.height * self.factor, small.width * self.factor, small.depth, small.codebook_size)
        if self.factor < 2 or enlarged != (*large.shape, large.codebook_size):
            raise ValueError("multi-scale models need two grids, the second an enlargement of the first by 2 or more")
        model = {"row_lstm": RowLSTM, "diagonal_bilstm": DiagonalBiLSTM}[config.variant]
        super().__init__(
            spec,
            [model(CodeSpec((small,)), config), model(CodeSpec((large,)), config, config.condition_width)],
            [Upsampler(small, self.factor, config.condition_width)],
        )
        self.config = config

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        small, large = super().forward(codes, context)
        drawn = codes[0].repeat_interleave(self.factor, 1).repeat_interleave(self.factor, 2)
        known = torch.zeros(large.shape[1:3], dtype=torch.bool, device=large.device)
        known[:: self.factor, :: self.factor] = True
        return small, torch.where(known[:, :, None, None], certain(drawn, large), large)

    def fixed(self, here: Position, codes: Sequence[Tensor]) -> Tensor | None:
        if here.grid == 0 or here.row % self.factor or here.column % self.factor:
            return None
        return codes[0][:, here.row // self.factor, here.column // self.factor, here.depth]


def pointwise(layer: LeftConv2d, x: Tensor) -> Tensor:
    """A 1x1 `layer` on maps with the features last, (..., in) -> (..., out)."""
    return linear(x, layer.causal_weight()[:, :, 0, 0], layer.bias)


def _row(condition: Tensor, row: int) -> Tensor:
    """A row of a (B, H or 1, W or 1, F) map."""
    return condition[:, min(row, condition.shape[1] - 1)]
