"""Gated PixelCNN: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", arXiv:1606.05328.

Two stacks without a blind spot.  The vertical one, v, reads all rows above; the horizontal one, h, reads the
current row to the left and, through a 1x1 convolution N of the ungated vertical map, the rows above:

    a_v = V * v + c_v          v <- tanh(a_v') . sigmoid(a_v'')
    a_h = W * h + N * a_v + c_h    y = tanh(a_h') . sigmoid(a_h'')
    h <- h + R * y             s <- s + S * y

where ' and '' are the two halves of 2p maps, and the logits are made of the skips s by (relu, 1x1) twice.
The condition c is a vector per class (location-free) or a 1x1 convolution of a spatial map.

Here v at row r holds nothing of row r itself, so N needs no shift.  No residual on the first layer (mask A).
Deviation: constant channels (ones, coordinates) beside the pixels.  Codes of a VQ-VAE (arXiv:1711.00937), whose
prior this is, have no order and enter as learned vectors (`embedding_dim`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ClassLabels, CodeSpec, Context, Preset, check_float32, register
from ..core.checks import MAX_SIZE, check_odd, check_range, check_sizes
from ..kernels.chain import Chain, Link, Part, gate
from ..kernels.rows import by_images, linear, side_by_side
from ..layers.masked import AboveConv2d, AboveRow, LeftConv2d
from ._raster import FREE_CHANNELS, ChainRunner, RasterPrior, embed_condition, head_links


@dataclass(frozen=True, kw_only=True)
class GatedPixelCNNConfig(ClassLabels):
    """Sizes, beside the class labels.

    num_layers:       layers of both stacks
    width:            p, features of either stack
    kernel_size:      of all layers after the first, which is 7x7; odd and at least 3
    head_width:       features between the two last layers
    spatial_channels: channels of a map that conditions the model, 0 for none
    embedding_dim:    width of a learned vector per code, for codes without an order; 0 for the levels of pixels
    """

    num_layers: int = 20
    width: int = 384
    kernel_size: int = 5
    head_width: int = 1024
    spatial_channels: int = 0
    embedding_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "num_layers", "width", "head_width")
        check_odd(self, "kernel_size")
        check_range(self, 0, MAX_SIZE, "spatial_channels", "embedding_dim")


class GatedLayer(nn.Module):
    """One layer of both stacks."""

    def __init__(self, config: GatedPixelCNNConfig, groups: int, in_channels: int | None) -> None:
        super().__init__()
        p = config.width
        first = in_channels is not None
        half = 3 if first else config.kernel_size // 2
        self.vertical = AboveConv2d(in_channels or p, 2 * p, half, half, current=not first)
        self.horizontal = LeftConv2d(
            in_channels or p, 2 * p, half, "A" if first else "B", groups,
            blocks=(1, 2), free=FREE_CHANNELS if first else 0, bias=False,
        )  # fmt: skip
        self.down = nn.Conv2d(2 * p, 2 * p, 1)
        self.residual, self.skip = (LeftConv2d(p, p, 0, "B", groups) for _ in range(2))
        self.first = first
        self.label = nn.Embedding(config.num_labels, 4 * p) if config.num_labels else None
        self.spatial = nn.Conv2d(config.spatial_channels, 4 * p, 1) if config.spatial_channels else None

    def forward(self, v: Tensor, h: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        above, left = self.vertical(v), self.horizontal(h)
        condition = embed_condition(self.label, self.spatial, context)
        if condition is not None:
            for_v, for_h = condition.chunk(2, 1)
            above, left = above + for_v, left + for_h
        y = gate(self.down(above) + left)
        residual = self.residual(y)
        return gate(above), (residual if self.first else h + residual), self.skip(y)


PRESETS = {  # one network for all data, and with classes for ImageNet
    "cifar10": Preset(GatedPixelCNNConfig(), CodeSpec.single(32, 32, 3, 256)),
    "imagenet32": Preset(GatedPixelCNNConfig(), CodeSpec.single(32, 32, 3, 256)),
    "imagenet32-class": Preset(GatedPixelCNNConfig(num_classes=1000), CodeSpec.single(32, 32, 3, 256)),
    "imagenet64": Preset(GatedPixelCNNConfig(), CodeSpec.single(64, 64, 3, 256)),
}


@register(
    "priors",
    "gated_pixelcnn",
    GatedPixelCNNConfig,
    PRESETS,
    small={"num_layers": 10, "width": 64, "kernel_size": 3, "head_width": 64},
)
class GatedPixelCNN(RasterPrior):
    """Vertical and horizontal stacks of gated convolutions."""

    def __init__(self, spec: CodeSpec, config: GatedPixelCNNConfig) -> None:
        super().__init__(spec, config.conditions(spatial_channels=config.spatial_channels), config.embedding_dim)
        self.config = config
        depth, p = self.grid.depth, config.width
        self.layers = nn.ModuleList(
            GatedLayer(config, depth, self.in_channels if index == 0 else None) for index in range(config.num_layers)
        )
        self.head = nn.ModuleList(
            [
                LeftConv2d(p, config.head_width, 0, "B", depth),
                LeftConv2d(config.head_width, depth * self.grid.codebook_size, 0, "B", depth),
            ]
        )

    @property
    def untrained(self) -> tuple[nn.Module, ...]:
        return (self.layers[-1].residual,)

    def features(self, inputs: Tensor, context: Context) -> Tensor:
        v = h = inputs
        skips = []
        for layer in self.layers:
            v, h, skip = layer(v, h, context)
            skips.append(skip)
        return sum(skips)

    def logits(self, features: Tensor) -> Tensor:
        for layer in self.head:
            features = layer(F.relu(features))
        return features

    def runner(self, precision: str = "float32") -> GatedPixelCNNRunner:
        check_float32(self, precision)
        return GatedPixelCNNRunner(self)


@dataclass
class LayerState:
    """What a layer keeps of what it has read."""

    rows: Tensor  # (B, kernel rows, W, in), the vertical stack's last input rows
    condition: Tensor | None  # (B, 4p, 1 or H, 1 or W)


@dataclass
class NetworkState:
    """What all layers keep; n layers of width p."""

    layers: list[LayerState]
    above: Tensor  # (B, n, W, 2p), what this row's horizontal stack takes from above
    row: Tensor  # (B, n, left + W, p), this row's horizontal inputs of the layers after the first, after zeros


class GatedPixelCNNRunner(ChainRunner):
    """A gated PixelCNN with its kernels laid out for one pixel."""

    def __init__(self, prior: GatedPixelCNN) -> None:
        super().__init__(prior)
        self.vertical = [AboveRow(layer.vertical) for layer in prior.layers]
        self.down = [(side_by_side(layer.down.weight.flatten(1)), layer.down.bias) for layer in prior.layers]
        p, width, left, links = prior.config.width, prior.grid.width, prior.layers[-1].horizontal.left, []
        first, last = prior.head
        skips, hidden, out = Part(0, p), Part(0, 2 * p), Part(0, 2 * p + len(first.bias))
        self.taps, gated = out.offset + len(last.bias), Part(0, 0)
        for index, layer in enumerate(prior.layers):
            row = index * (left + width) * p
            x = Part(1, row, p) if index else Part(0, self.taps)
            above = Part(2, index * width * 2 * p, 2 * p)
            links += [
                Link(x=x, matrix=layer.horizontal.matrix(), add=above, out=gated, after="gate"),
                Link(
                    x=gated, matrix=layer.skip.matrix(), bias=layer.skip.bias, add=skips if index else None, out=skips
                ),
            ]  # fmt: skip
            if index + 1 < len(prior.layers):
                own, following = (Part(1, (i * (left + width) + left) * p, p) for i in (index, index + 1))
                add = own if index else None
                matrix, bias = layer.residual.matrix(), layer.residual.bias
                links.append(Link(x=gated, matrix=matrix, bias=bias, add=add, out=following))
        links += head_links(prior.head, skips, hidden, out)
        self.chain, self.left, self.out = Chain(links), prior.layers[0].horizontal.left, out.offset

    def start_network(self, inputs: Tensor, context: Context) -> NetworkState:
        batch_size, _, _, width = inputs.shape
        p, num_layers, left = self.prior.config.width, len(self.prior.layers), self.prior.layers[-1].horizontal.left
        states = [
            LayerState(
                inputs.new_zeros(batch_size, layer.vertical.weight.shape[2], width, p if index else 0),
                embed_condition(layer.label, layer.spatial and partial(by_images, layer.spatial), context),
            )
            for index, layer in enumerate(self.prior.layers)
        ]
        above = inputs.new_zeros(batch_size, num_layers, width, 2 * p)
        return NetworkState(states, above, inputs.new_zeros(batch_size, num_layers, left + width, p))

    def start_row(self, inputs: Tensor, row: int, network: NetworkState) -> None:
        network.row.zero_()
        above = self.vertical[0].at(inputs, row)
        for index, (layer, state) in enumerate(zip(self.prior.layers, network.layers, strict=True)):
            if index > 0:
                state.rows = torch.cat([state.rows[:, 1:], gate(above, 2).unsqueeze(1)], dim=1)
                above = self.vertical[index](state.rows)
            for_h = None
            if state.condition is not None:
                condition = state.condition[:, :, row if layer.spatial is not None else 0].mT
                for_v, for_h = condition.chunk(2, 2)
                above = above + for_v
            down = linear(above, *self.down[index])
            network.above[:, index] = down if for_h is None else down + for_h

    def buffers(self, network: NetworkState) -> Sequence[Tensor]:
        return network.row, network.above
