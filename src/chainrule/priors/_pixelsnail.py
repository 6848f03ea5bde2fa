"""The network of PixelSNAIL, over one grid of codes; the prior of VQ-VAE-2 is a chain of them.

Chen, Mishra, Rohaninejad, Abbeel, "PixelSNAIL", arXiv:1712.09763.  Gated residual blocks of causal convolutions
alternate with attention to everything before.  A residual block, of convolutions W_1, W_2 and a condition c, is

    (y', y'') = W_2 * elu(W_1 * elu(x)) + c        x <- x + y' . sigmoid(y'')

and a block of the network, of its input i, what its residual blocks make of it, x, and coordinates,

    o = sum_{s < t} softmax_s(q_t . k_s) v_s,    q = Q res(x, coordinates),    (k, v) = KV res([i, x, coordinates])
    x <- res(x; o), of 1x1 convolutions, o added to what W_1 gives

or, without attention, x <- W [x, coordinates].  Kernels are weight-normalised; dropout follows W_1 and the softmax.
A class adds a learned vector to c, a map aligned with the grid a 1x1 convolution of it.

The architecture is exactly that of rosinality/vq-vae-2-pytorch, whose weights can be converted.  It departs from the
papers: convolutions see the rows above and strictly the left, so that the code just before a pixel reaches it by
the residual path and 1x1 convolutions alone; nothing attends to its own position and the first position to nothing;
attention stands in every block and not every fifth layer; width and depth are far below the 20 layers x 512 of
VQ-VAE-2.  Class conditioning is ours, as that code has none.

Shape letters: B batch, H height, W width, T = H W, K vocabulary, C channels, R residual channels, N residual blocks in
all, h columns read to the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ClassLabels, CodeSpec, Context, GridSpec, check_float32
from ..core.building import constant
from ..core.checks import MAX_LAYERS, MAX_SIZE, check_odd, check_range, check_shares, check_sizes
from ..kernels.rows import addmm, by_rows, convolve_row, elu
from ..kernels.rows import attend as attend_one
from ..layers.masked import window_above
from ..layers.transformer import attend
from ..layers.weight_norm import WeightNormConv2d
from ._raster import RasterPrior, RasterRunner, embed_condition


@dataclass(frozen=True, kw_only=True)
class PixelSNAILSizes:
    """Sizes of one network.

    width:               features of the map
    residual_width:      features inside its residual blocks
    num_blocks:          blocks
    num_residual:        residual blocks in each block
    kernel_size:         of the causal convolutions, odd and at least 3
    num_heads:           heads of attention, whose width is width / 2; 0 for no attention
    num_output_residual: residual blocks of 1x1 convolutions before the logits
    dropout:             share of features and of attention weights dropped in training
    """

    width: int = 256
    residual_width: int = 256
    num_blocks: int = 4
    num_residual: int = 4
    kernel_size: int = 5
    num_heads: int = 8
    num_output_residual: int = 0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "width", "residual_width", "num_blocks", "num_residual")
        if self.num_blocks * self.num_residual > MAX_LAYERS:
            raise ValueError(
                f"num_blocks * num_residual must be at most {MAX_LAYERS}, got {self.num_blocks} * {self.num_residual}"
            )
        check_odd(self, "kernel_size")
        check_range(self, 0, MAX_SIZE, "num_heads", "num_output_residual")
        check_shares(self, "dropout")
        if self.num_heads and self.width % (2 * self.num_heads):
            raise ValueError(f"width must be a multiple of 2 * num_heads, got {self.width} and {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class PixelSNAILConfig(PixelSNAILSizes, ClassLabels):
    """As PixelSNAILSizes, with the conditions: class labels and a map.

    spatial_channels: channels of the map, 0 for none
    """

    spatial_channels: int = 0

    def __post_init__(self) -> None:
        PixelSNAILSizes.__post_init__(self)
        ClassLabels.__post_init__(self)
        check_range(self, 0, MAX_SIZE, "spatial_channels")


class GatedResidual(nn.Module):
    """A residual block.

    Args:
        channels, hidden: of its input and output, and between its convolutions.
        kernel_size, causal: of both convolutions; one that is not causal reads its surroundings.
        auxiliary: channels of a map that is added between the convolutions, through a 1x1 one.
        spatial, num_labels: what conditions the gates.
    """

    def __init__(
        self, channels: int, hidden: int, dropout: float, kernel_size: int = 1, causal: bool = False,
        auxiliary: int = 0, spatial: int = 0, num_labels: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        half = kernel_size // 2
        shape = (kernel_size, kernel_size)
        padding = (half, half, 2 * half, 0) if causal else (half, half, half, half)
        taken = half + 1 if causal else 0
        self.first = WeightNormConv2d(channels, hidden, shape, padding, hidden=taken)
        self.second = WeightNormConv2d(hidden, 2 * channels, shape, padding, hidden=taken)
        self.auxiliary = WeightNormConv2d(auxiliary, hidden) if auxiliary else None
        self.spatial = WeightNormConv2d(spatial, 2 * channels, bias=False) if spatial else None
        self.label = nn.Embedding(num_labels, 2 * channels) if num_labels else None
        self.dropout = dropout

    def forward(self, x: Tensor, context: Context = Context(), auxiliary: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        hidden = self.first(F.elu(x))
        if self.auxiliary is not None:
            hidden = hidden + self.auxiliary(F.elu(auxiliary))
        gates = self.second(F.dropout(F.elu(hidden), self.dropout, self.training))
        condition = embed_condition(self.label, self.spatial, context)
        return x + F.glu(gates if condition is None else gates + condition, 1)


class Attention(nn.Module):
    """Attention to all earlier positions and a residual block that takes in what it gives."""

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.key_residual = GatedResidual(2 * channels + 2, channels, dropout)
        self.query_residual = GatedResidual(channels + 2, channels, dropout)
        self.query = WeightNormConv2d(channels + 2, channels // 2)
        self.key, self.value = (WeightNormConv2d(2 * channels + 2, channels // 2) for _ in range(2))
        self.out_residual = GatedResidual(channels, channels, dropout, auxiliary=channels // 2)

    def forward(self, before: Tensor, x: Tensor, coordinates: Tensor) -> Tensor:
        """The block's input and what its residual blocks give, (B, C, H, W) each, -> (B, C, H, W)."""
        keys = self.key_residual(torch.cat([before, x, coordinates], 1))
        queries = self.query_residual(torch.cat([x, coordinates], 1))
        query, key, value = (
            part.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)  # (B, heads, T, width)
            for part in (self.query(queries), self.key(keys), self.value(keys))
        )
        # Position t sees those before t: the usual triangle, when the first query and the last key are left out.
        dropout = self.dropout if self.training else 0.0
        seen = attend(query[:, :, 1:], key[:, :, :-1], value[:, :, :-1], None, True, dropout)
        seen = F.pad(seen, (0, 0, 1, 0)).transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])
        return self.out_residual(x, auxiliary=seen)


class Block(nn.Module):
    """Residual blocks, then attention or a 1x1 convolution."""

    def __init__(self, config: PixelSNAILConfig) -> None:
        super().__init__()
        self.residual = nn.ModuleList(
            GatedResidual(
                config.width, config.residual_width, config.dropout, config.kernel_size, causal=True,
                spatial=config.spatial_channels, num_labels=config.num_labels,
            )
            for _ in range(config.num_residual)
        )  # fmt: skip
        self.attention = Attention(config.width, config.num_heads, config.dropout) if config.num_heads else None
        self.out = None if config.num_heads else WeightNormConv2d(config.width + 2, config.width)

    def forward(self, x: Tensor, coordinates: Tensor, context: Context) -> Tensor:
        before = x
        for residual in self.residual:
            x = residual(x, context)
        if self.attention is not None:
            return self.attention(before, x, coordinates)
        return self.out(torch.cat([x, coordinates], 1))


# ---------------------------------------------------------------- one pixel at a time


class Pointwise:
    """A GatedResidual of 1x1 convolutions, laid out for one pixel."""

    def __init__(self, residual: GatedResidual) -> None:
        self.first, self.second = residual.first.matrix(), residual.second.matrix()
        self.first_bias, self.second_bias = residual.first.bias, residual.second.bias
        if residual.auxiliary is not None:
            self.first = torch.cat([self.first, residual.auxiliary.matrix()])
            self.first_bias = self.first_bias + residual.auxiliary.bias

    def __call__(self, *x: Tensor) -> Tensor:
        """(B, C), and the auxiliary (B, A) if there is one, -> (B, C)."""
        hidden = elu(addmm(self.first_bias, elu(torch.cat(x, 1)), self.first))
        return x[0] + F.glu(addmm(self.second_bias, hidden, self.second), 1)


def taps(kernel: Tensor) -> Tensor:
    """The last row of a kernel, (out, in, columns), as a matrix (columns * in, out)."""
    return kernel.permute(2, 1, 0).flatten(0, 1)


class PixelSNAIL(RasterPrior):
    """Gated causal convolutions with attention, over one grid of depth 1."""

    def __init__(self, spec: CodeSpec, config: PixelSNAILConfig) -> None:
        super().__init__(spec, config.conditions(spatial_channels=config.spatial_channels))
        if self.grid.depth != 1:
            raise ValueError(f"PixelSNAIL models one code per position; this tokenizer gives {self.grid.depth}")
        self.config = config
        self.code_channels = self.grid.codebook_size  # codes enter one-hot
        self.in_channels += self.grid.codebook_size - 1
        half, codebook_size = config.kernel_size // 2, self.grid.codebook_size
        self.above = WeightNormConv2d(codebook_size, config.width, (half, 2 * half + 1), (half, half, half - 1, 0))
        self.left = WeightNormConv2d(codebook_size, config.width, (half + 1, half), (half - 1, 0, half, 0))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.output_residual = nn.ModuleList(
            GatedResidual(config.width, config.residual_width, config.dropout)
            for _ in range(config.num_output_residual)
        )
        self.out = WeightNormConv2d(config.width, codebook_size)
        places = constant((1, 2, self.grid.height, self.grid.width), lambda: coordinates(self.grid))
        self.register_buffer("coordinates", places, persistent=False)

    def residuals(self) -> list[GatedResidual]:
        """The N causal residual blocks."""
        return [residual for block in self.blocks for residual in block.residual]

    def values(self, codes: Tensor) -> Tensor:
        return F.one_hot(codes, self.grid.codebook_size)

    def features(self, inputs: Tensor, context: Context) -> Tensor:
        codes = inputs[:, : self.code_channels]
        x = F.pad(self.above(codes), (0, 0, 1, -1)) + F.pad(self.left(codes), (1, -1))
        coordinates = self.coordinates.expand(len(x), -1, -1, -1)
        for block in self.blocks:
            x = block(x, coordinates, context)
        return x

    def logits(self, features: Tensor) -> Tensor:
        for residual in self.output_residual:
            features = residual(features)
        return self.out(F.elu(features))

    def runner(self, precision: str = "float32") -> PixelSNAILRunner:
        check_float32(self, precision)
        return PixelSNAILRunner(self)


@dataclass
class NetworkState:
    """What sampling remembers of the row in progress and the `kernel_size` - 1 rows above it."""

    maps: list[Tensor]  # inputs of first and second convolutions, (B, N, kernel rows, h + W + h, C or R)
    above: list[Tensor]  # what they take in this row from the rows above, (B, N, W, R or 2C)
    input: Tensor  # (B, W, C), what the first layer takes from the rows above
    keys: list[Tensor]  # per block (B, heads, T, width)
    values: list[Tensor]
    label: Tensor | None  # (B, N, 1, 2C)
    spatial: Tensor | None  # (B, S, H, W)


class PixelSNAILRunner(RasterRunner):
    """A PixelSNAIL with its kernels laid out for rows and pixels."""

    def __init__(self, prior: PixelSNAIL) -> None:
        super().__init__(prior)
        half = prior.config.kernel_size // 2
        residuals = prior.residuals()
        kernels = [
            [layer.kernel() for layer in layers]
            for layers in ([r.first for r in residuals], [r.second for r in residuals])
        ]
        self.above = [[kernel[:, :, :-1].contiguous() for kernel in part] for part in kernels]
        self.left = [torch.stack([taps(kernel[:, :, -1, :half]) for kernel in part]) for part in kernels]
        self.spatial = [r.spatial.kernel() for r in residuals if r.spatial is not None]
        kernel = prior.left.kernel()
        self.input_above, self.input_beside = prior.above.kernel(), kernel[:, :, :-1]
        self.input_left = taps(kernel[:, :, -1])
        self.blocks = []
        for block in prior.blocks:
            attention = block.attention
            if attention is None:
                self.blocks.append((block.out.matrix(), block.out.bias))
            else:
                keys = (attention.key, attention.value)
                self.blocks.append(
                    (
                        Pointwise(attention.query_residual), attention.query.matrix(), attention.query.bias,
                        Pointwise(attention.key_residual), torch.cat([layer.matrix() for layer in keys], 1),
                        torch.cat([layer.bias for layer in keys]), Pointwise(attention.out_residual),
                    )
                )  # fmt: skip
        self.head = [Pointwise(residual) for residual in prior.output_residual]
        self.logits = prior.out.matrix()

    def start_network(self, inputs: Tensor, context: Context) -> NetworkState:
        config, residuals = self.prior.config, self.prior.residuals()
        batch_size, width, rows = len(inputs), self.prior.grid.width, config.kernel_size
        count, margin = len(residuals), config.kernel_size // 2

        def zeros(*shape: int) -> Tensor:
            return inputs.new_zeros(batch_size, *shape)

        heads = config.num_heads
        cache = (heads, self.prior.grid.num_positions, config.width // (2 * heads)) if heads else (0,)
        label = [residual.label(context.label) for residual in residuals if residual.label is not None]
        return NetworkState(
            [zeros(count, rows, width + 2 * margin, n) for n in (config.width, config.residual_width)],
            [zeros(count, width, n) for n in (config.residual_width, 2 * config.width)],
            zeros(width, config.width),
            [zeros(*cache) for _ in self.prior.blocks],
            [zeros(*cache) for _ in self.prior.blocks],
            torch.stack(label, 1).unsqueeze(2) if label else None,
            context.spatial if config.spatial_channels else None,
        )

    def start_row(self, inputs: Tensor, row: int, network: NetworkState) -> None:
        half = self.prior.config.kernel_size // 2
        codes = inputs[:, : self.prior.code_channels]
        window = window_above(codes, row, half)
        network.input = convolve_row(F.pad(window, (half, -1)), self.input_beside, self.prior.left.bias)
        network.input[:, 0] = 0
        if row > 0:
            network.input = network.input + convolve_row(window, self.input_above, self.prior.above.bias, half)
        residuals = self.prior.residuals()
        biases = [r.first.bias for r in residuals], [r.second.bias for r in residuals]
        for maps, above, kernels, bias in zip(network.maps, network.above, self.above, biases, strict=True):
            maps[:, :, :-1] = maps[:, :, 1:].clone()
            maps[:, :, -1] = 0
            for index, kernel in enumerate(kernels):
                window = maps[:, index, :-1].permute(0, 3, 1, 2)
                above[:, index] = convolve_row(window, kernel, bias[index])
        if network.label is not None:
            network.above[1] += network.label
        for index, kernel in enumerate(self.spatial):
            network.above[1][:, index] += convolve_row(network.spatial[:, :, row : row + 1], kernel, None)

    def pixel(self, inputs: Tensor, row: int, column: int, depth: int, network: NetworkState) -> Tensor:
        half = self.prior.config.kernel_size // 2
        gates = self.gates(column, network)
        x = network.input[:, column]
        if column:
            left = inputs[:, : self.prior.code_channels, row, max(0, column - half) : column]
            left = F.pad(left, (half - left.shape[2], 0)).transpose(1, 2).flatten(1)
            x = addmm(x, left, self.input_left)
        here = self.prior.coordinates[:, :, row, column].expand(len(x), -1)
        read = []
        for index, block in enumerate(self.blocks):
            before = x
            for gate in gates[index * self.prior.config.num_residual : (index + 1) * self.prior.config.num_residual]:
                read.append(x)
                x = x + gate
            if self.prior.config.num_heads:
                t = row * self.prior.grid.width + column
                x = attention_step(block, before, x, here, t, network.keys[index], network.values[index])
            else:
                x = addmm(block[1], torch.cat([x, here], 1), block[0])
        network.maps[0][:, :, -1, column + half] = F.elu(torch.stack(read, 1))
        for residual in self.head:
            x = residual(x)
        return addmm(self.prior.out.bias, F.elu(x), self.logits)

    def gates(self, column: int, network: NetworkState) -> Tensor:
        """What all residual blocks add at a pixel, (N, B, C): their convolutions read finished pixels only."""
        half = self.prior.config.kernel_size // 2
        maps, above, left = network.maps, network.above, self.left

        def convolve(part: int) -> Tensor:
            read = maps[part][:, :, -1, column : column + half].flatten(2)
            return by_rows(partial(multiply_each, left[part]), above[part][:, :, column], read)

        maps[1][:, :, -1, column + half] = F.elu(convolve(0))
        return F.glu(convolve(1), -1).transpose(0, 1)


def multiply_each(matrices: Tensor, add: Tensor, x: Tensor) -> Tensor:
    """add + x times a matrix of each residual block: (N, E, K), (B, N, K), (B, N, E) -> (B, N, K)."""
    add, x = (batch.transpose(0, 1).contiguous() for batch in (add, x))
    return torch.baddbmm(add, x, matrices).transpose(0, 1)


def attention_step(
    matrices: tuple, before: Tensor, x: Tensor, here: Tensor, t: int, keys: Tensor, values: Tensor
) -> Tensor:
    """A block's attention at position t: (B, C) -> (B, C); writes the position's key and value."""
    query_residual, query, query_bias, key_residual, key, key_bias, out_residual = matrices
    new = addmm(key_bias, key_residual(torch.cat([before, x, here], 1)), key)
    keys[:, :, t], values[:, :, t] = new.unflatten(1, (2, keys.shape[1], -1)).unbind(1)
    if t == 0:
        seen = torch.zeros_like(new[:, : new.shape[1] // 2])
    else:
        queries = addmm(query_bias, query_residual(torch.cat([x, here], 1)), query)
        queries = queries.unflatten(1, (keys.shape[1], 1, -1))
        seen = attend_one(queries, keys[:, :, :t], values[:, :, :t]).flatten(1)
    return out_residual(x, seen)


def coordinates(grid: GridSpec) -> Tensor:
    """Row and column over the sides, minus a half: (1, 2, H, W)."""
    sides = [torch.arange(side, dtype=torch.float32) / side - 0.5 for side in (grid.height, grid.width)]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"))[None]
