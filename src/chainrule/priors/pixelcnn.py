"""PixelCNN: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel Recurrent Neural Networks", arXiv:1601.06759.

    p(x) = prod_i p(x_i,R | x_<i) p(x_i,G | x_<i, x_i,R) p(x_i,B | x_<i, x_i,R, x_i,G)

A 7x7 convolution of mask A, then residual blocks of mask B on 2h features,

    x <- x + W_1x1(2h) relu(W_3x3(h) relu(W_1x1(h) relu(x)))

then two layers of (relu, 1x1) of mask B and a K-way softmax per channel; K = 2 is the Bernoulli of binary
images.  The stacked 3x3 masks leave a blind spot to the upper right, as in the paper.

Deviations: constant channels (ones, coordinates) beside the pixels; class conditioning adds a learned vector
per block, as the gated PixelCNN does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ClassLabels, CodeSpec, Context, Preset, check_float32, register
from ..core.checks import MAX_SIZE, check_range, check_sizes
from ..kernels.chain import Chain, Link, Part
from ..layers.masked import AboveConv2d, AboveRow, LeftConv2d
from ._raster import ChainRunner, InputConv2d, RasterPrior, head_links


@dataclass(frozen=True, kw_only=True)
class PixelCNNConfig(ClassLabels):
    """Sizes, beside the class labels.

    num_layers:    residual blocks
    width:         h, features inside a block; its input and output have 2 h
    head_width:    features between the two last layers
    embedding_dim: width of a learned vector per code, for codes without an order; 0 for the levels of pixels
    """

    num_layers: int = 15
    width: int = 128
    head_width: int = 1024
    embedding_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "num_layers", "width", "head_width")
        check_range(self, 0, MAX_SIZE, "embedding_dim")


class Block(nn.Module):
    """One residual block; the 3x3 convolution is kept in its two causal parts."""

    def __init__(self, hidden: int, groups: int, num_labels: int) -> None:
        super().__init__()
        self.reduce = LeftConv2d(2 * hidden, hidden, 0, "B", groups)
        self.above = AboveConv2d(hidden, hidden, 1, 1)
        self.left = LeftConv2d(hidden, hidden, 1, "B", groups, bias=False)
        self.expand = LeftConv2d(hidden, 2 * hidden, 0, "B", groups)
        self.label = nn.Embedding(num_labels, hidden) if num_labels else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        y = F.relu(self.reduce(F.relu(x)))
        y = self.above(y) + self.left(y)
        if self.label is not None:
            y = y + self.label(context.label)[:, :, None, None]
        return x + self.expand(F.relu(y))


@register(
    "priors",
    "pixelcnn",
    PixelCNNConfig,
    {
        "mnist": Preset(PixelCNNConfig(num_layers=7, width=16, head_width=32), CodeSpec.single(28, 28, 1, 2)),
        "cifar10": Preset(PixelCNNConfig(num_layers=15, width=128, head_width=1024), CodeSpec.single(32, 32, 3, 256)),
    },
    small={"num_layers": 10, "width": 64, "head_width": 64},
)
class PixelCNN(RasterPrior):
    """Masked convolutions with residual blocks."""

    def __init__(self, spec: CodeSpec, config: PixelCNNConfig) -> None:
        super().__init__(spec, config.conditions(), config.embedding_dim)
        self.config = config
        groups, width = self.grid.depth, 2 * config.width
        self.input = InputConv2d(self.in_channels, width, 7, groups)
        self.blocks = nn.ModuleList(Block(config.width, groups, config.num_labels) for _ in range(config.num_layers))
        self.head = nn.ModuleList(
            [
                LeftConv2d(width, config.head_width, 0, "B", groups),
                LeftConv2d(config.head_width, groups * self.grid.codebook_size, 0, "B", groups),
            ]
        )

    def features(self, inputs: Tensor, context: Context) -> Tensor:
        x = self.input(inputs)
        for block in self.blocks:
            x = block(x, context)
        return x

    def logits(self, features: Tensor) -> Tensor:
        for layer in self.head:
            features = layer(F.relu(features))
        return features

    def runner(self, precision: str = "float32") -> PixelCNNRunner:
        check_float32(self, precision)
        return PixelCNNRunner(self)


@dataclass
class NetworkState:
    """What all blocks keep; n blocks of width h, whose 3x3 inputs stand after a column of zeros."""

    label: list[Tensor]  # per block (B, h), or empty
    above: Tensor  # (B, W, 2h), what this row's first layer takes from the rows above
    previous: Tensor  # (B, n, W + 1, h), the blocks' 3x3 inputs in the row above
    current: Tensor  # (B, n, W + 1, h), and in this row, as far as it is known
    from_above: Tensor  # (B, n, W, h), what this row takes from the row above


class PixelCNNRunner(ChainRunner):
    """A PixelCNN with its kernels laid out for one pixel."""

    def __init__(self, prior: PixelCNN) -> None:
        super().__init__(prior)
        self.above, self.blocks_above = AboveRow(prior.input.above), [AboveRow(block.above) for block in prior.blocks]
        width, hidden, (first, last) = prior.grid.width, prior.config.width, prior.head
        x, inside, out = Part(0, 0), Part(0, 2 * hidden), Part(0, 2 * hidden + max(hidden, len(first.bias)))
        taps = Part(0, out.offset + len(last.bias))
        links = [Link(x=taps, matrix=prior.input.left.matrix(), add=Part(3, 0, 2 * hidden), out=x)]
        for index, block in enumerate(prior.blocks):
            row = index * (width + 1) * hidden
            y, before = Part(1, row + hidden, hidden), Part(1, row, hidden)
            above = Part(2, index * width * hidden, hidden)
            links += [
                Link(x=x, matrix=block.reduce.matrix(), bias=block.reduce.bias, out=y, before="relu", after="relu"),
                Link(x=before, matrix=block.left.matrix(), add=above, out=inside, after="relu"),
                Link(x=inside, matrix=block.expand.matrix(), bias=block.expand.bias, add=x, out=x),
            ]
        links += head_links(prior.head, x, inside, out)
        self.chain, self.left, self.out, self.taps = Chain(links), prior.input.left.left, out.offset, taps.offset

    def start_network(self, inputs: Tensor, context: Context) -> NetworkState:
        batch_size, _, _, width = inputs.shape
        num_blocks, hidden = len(self.prior.blocks), self.prior.config.width
        label = [] if context.label is None else [block.label(context.label) for block in self.prior.blocks]
        return NetworkState(
            label,
            inputs.new_zeros(batch_size, width, 2 * hidden),
            inputs.new_zeros(batch_size, num_blocks, width + 1, hidden),
            inputs.new_zeros(batch_size, num_blocks, width + 1, hidden),
            inputs.new_zeros(batch_size, num_blocks, width, hidden),
        )

    def start_row(self, inputs: Tensor, row: int, network: NetworkState) -> None:
        network.above = self.above.at(inputs, row)
        network.previous, network.current = network.current, network.previous
        for index, above in enumerate(self.blocks_above):
            taken = above(network.previous[:, index, None, 1:])
            network.from_above[:, index] = taken + network.label[index][:, None] if network.label else taken

    def buffers(self, network: NetworkState) -> Sequence[Tensor]:
        return network.current, network.from_above, network.above
