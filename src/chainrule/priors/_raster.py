"""The frame of every network that sees the rows above and the pixels to the left (PixelCNN, PixelRNN).

Such a network is causal in raster order, which gives it an incremental form: what a row takes from the
rows above is evaluated once, for all its pixels together, and each pixel then adds what it takes from its
left.  Features at a pixel do not depend on its last code, so those of a finished pixel are final.

Shape letters: B batch, D codes per pixel, E input channels of a code, H height, W width, K vocabulary, F features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Codes, CodeSpec, Conditions, Context, Prior, Runner
from ..kernels.chain import Chain, Link, Part
from ..layers.masked import AboveConv2d, LeftConv2d

FREE_CHANNELS = 3
"""Input channels that hold nothing of the image: ones, row and column, so that borders are known."""


class RasterPrior(Prior):
    """A causal network over one grid of codes.

    A model gives `features` and `logits` for whole images, and a `RasterRunner`, which does the same code by code.

    Args:
        spec: of one grid.
        conditions: classes and a map of `spatial_channels`.
        embedding: channels of a learned vector per code, for vocabularies without an order (the codes of a VQ-VAE);
            0 where codes are levels, which enter as one number.
    """

    def __init__(self, spec: CodeSpec, conditions: Conditions, embedding: int = 0) -> None:
        super().__init__(spec, conditions)
        self.grid = spec.only
        self.embedding = nn.Embedding(self.grid.codebook_size, embedding) if embedding else None
        self.code_channels = embedding or 1
        self.in_channels = self.grid.depth * self.code_channels + FREE_CHANNELS

    @abstractmethod
    def features(self, inputs: Tensor, context: Context) -> Tensor:
        """(B, D * E + FREE_CHANNELS, H, W) -> (B, F, H, W)."""

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """(B, F, H, W) -> (B, D * K, H, W)."""

    def embed(self, codes: Codes) -> Tensor:
        """Codes -> inputs (B, D * E + FREE_CHANNELS, H, W): values of the codes, then the free channels."""
        weight = next(self.parameters())
        values = self.values(codes[0]).to(weight.dtype).flatten(3).permute(0, 3, 1, 2)
        return torch.cat([values, self.free_channels(weight).expand(values.shape[0], -1, -1, -1)], dim=1)

    def values(self, codes: Tensor) -> Tensor:
        """Codes (...) as the network reads them, (..., E): their vectors, or levels in [-1, 1]."""
        if self.embedding is not None:
            return self.embedding(codes)
        return (codes * (2 / (self.grid.codebook_size - 1)) - 1).unsqueeze(-1)

    def free_channels(self, like: Tensor) -> Tensor:
        """Ones, rows and columns: (1, FREE_CHANNELS, H, W)."""
        rows = torch.linspace(-1, 1, self.grid.height, dtype=like.dtype, device=like.device)
        columns = torch.linspace(-1, 1, self.grid.width, dtype=like.dtype, device=like.device)
        rows, columns = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([torch.ones_like(rows), rows, columns])[None]

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        logits = self.logits(self.features(self.embed(codes), context))
        return (logits.unflatten(1, (self.grid.depth, self.grid.codebook_size)).permute(0, 3, 4, 1, 2),)


@dataclass
class RasterState:
    """What a `RasterRunner` remembers."""

    t: int
    inputs: Tensor  # (B, D * E + FREE_CHANNELS, H, W), values of the codes known so far
    network: Any  # the model's own state


class RasterRunner(Runner):
    """A raster prior, one code at a time."""

    prior: RasterPrior

    @abstractmethod
    def start_network(self, inputs: Tensor, context: Context) -> Any:
        """The network's state before the first row."""

    @abstractmethod
    def start_row(self, inputs: Tensor, row: int, network: Any) -> None:
        """Evaluates what the pixels of `row` take from the finished rows; changes `network`."""

    @abstractmethod
    def pixel(self, inputs: Tensor, row: int, column: int, depth: int, network: Any) -> Tensor:
        """Logits (B, D * K) at a pixel; of its codes, those before `depth` are known; changes `network`."""

    def start(self, batch_size: int, context: Context) -> RasterState:
        prior, grid = self.prior, self.prior.grid
        weight = next(prior.parameters())
        values = weight.new_zeros(batch_size, prior.in_channels - FREE_CHANNELS, grid.height, grid.width)
        inputs = torch.cat([values, prior.free_channels(weight).expand(batch_size, -1, -1, -1)], dim=1)
        return RasterState(0, inputs, self.start_network(inputs, context))

    def advance(self, previous: Tensor, state: RasterState) -> tuple[Tensor, RasterState]:
        prior, inputs, network = self.prior, state.inputs, state.network
        if state.t > 0:
            last = prior.spec.position(state.t - 1)
            start = last.depth * prior.code_channels
            known = inputs[:, start : start + prior.code_channels, last.row, last.column]
            known.copy_(prior.values(previous))
        here = prior.spec.position(state.t)
        if here.column == 0 and here.depth == 0:
            self.start_row(inputs, here.row, network)
        logits = self.pixel(inputs, here.row, here.column, here.depth, network)
        state.t += 1
        codebook_size = prior.grid.codebook_size
        return logits[:, here.depth * codebook_size : (here.depth + 1) * codebook_size], state


class ChainRunner(RasterRunner):
    """A raster prior whose pixel is a chain of products; buffer 0 of the chain is a work buffer of the pixel.

    Attributes:
        chain: whose last result is the logits.
        left: how many pixels to the left it reads, beside the pixel itself.
        out, taps: where in the work buffer the logits begin, and behind them what is read of these pixels.
    """

    chain: Chain
    left: int
    out: int
    taps: int

    @abstractmethod
    def buffers(self, network: Any) -> Sequence[Tensor]:
        """The buffers after the work buffer, (B, ...) each without gaps."""

    def pixel(self, inputs: Tensor, row: int, column: int, depth: int, network: Any) -> Tensor:
        taps = taps_left(inputs, row, column, self.left)
        work = inputs.new_empty(len(inputs), self.taps + taps.shape[1])
        work[:, self.taps :] = taps
        self.chain(column, work, *self.buffers(network))
        return work[:, self.out : self.taps]


def head_links(head: Sequence[LeftConv2d], x: Part, hidden: Part, out: Part) -> list[Link]:
    """The two layers from features to logits, each after a ReLU."""
    first, last = head
    return [
        Link(x=x, matrix=first.matrix(), bias=first.bias, out=hidden, before="relu", after="relu"),
        Link(x=hidden, matrix=last.matrix(), bias=last.bias, out=out),
    ]


class InputConv2d(nn.Module):
    """The first layer: a masked k x k convolution of type A on the inputs."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        half = kernel_size // 2
        self.above = AboveConv2d(in_channels, out_channels, half, half)
        self.left = LeftConv2d(in_channels, out_channels, half, "A", groups, free=FREE_CHANNELS, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        return self.above(inputs) + self.left(inputs)


def embed_condition(label: nn.Embedding | None, spatial: nn.Conv2d | None, context: Context) -> Tensor | None:
    """What a layer adds for the class and for the maps of a context: (B, C, 1 or H, 1 or W); None if unconditional."""
    parts = [] if label is None else [label(context.label)[:, :, None, None]]
    if spatial is not None:
        parts.append(spatial(context.spatial))
    return sum(parts) if parts else None


def taps_left(inputs: Tensor, row: int, column: int, left: int) -> Tensor:
    """Pixels column - left .. column of a row of (B, C, H, W), for `LeftConv2d.matrix`: (B, (left + 1) * C)."""
    taps = inputs[:, :, row, max(0, column - left) : column + 1]
    return F.pad(taps, (max(0, left - column), 0)).transpose(1, 2).flatten(1)
