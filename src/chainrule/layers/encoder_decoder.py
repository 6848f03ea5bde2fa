"""Transformer blocks of an encoder, and of a decoder that reads the encoder's output by cross-attention.

    encoder    x <- x + self(x)                                        x <- x + mlp(x)
    decoder    x <- x + self(x)        x <- x + cross(x, memory)       x <- x + mlp(x)

    self(x) = M W_o attention(W_q N x, W_k N x, W_v N x)        cross(x, y) = M W_o attention(W_q N x, W_k y, W_v y)

without biases (Vaswani et al. 2017, arXiv:1706.03762, with the norms N before each branch).  A model says which norms
N and M are, and which of the two MLPs it has.  A `CrossRunner` holds the blocks as one step reads them, in an explicit
precision (see `kernels.transformer`); the keys and values of the memory are computed once, when the state is made.

Shape letters: B batch, T tokens, S tokens of the memory, L blocks, E width, H heads, F features of a head, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.native import Backend
from ..kernels.transformer import Memory, Precision, Stack, StepLayer, pack_stack
from .transformer import Head, KVCache, attend

Norm = Callable[[int], nn.Module]
"""Makes a layer that keeps (..., E), from E."""


class SelfAttention(nn.Module):
    """What tokens take from one another."""

    def __init__(self, width: int, num_heads: int, norm: Norm, out_norm: Norm) -> None:
        super().__init__()
        assert width % num_heads == 0, (width, num_heads)
        self.num_heads = num_heads
        self.norm, self.out_norm = norm(width), out_norm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, E); `mask`, bool, broadcasts to (B, H, T, T): whether a token (row) sees another."""
        q, k, v = _heads(self.query_key_value(self.norm(x)), 3, self.num_heads)
        y = attend(q, k, v, mask)
        return self.out_norm(self.projection(y.transpose(1, 2).flatten(2)))


class CrossAttention(nn.Module):
    """What tokens take from those of a memory."""

    def __init__(self, width: int, num_heads: int, norm: Norm, out_norm: Norm) -> None:
        super().__init__()
        assert width % num_heads == 0, (width, num_heads)
        self.num_heads = num_heads
        self.norm, self.out_norm = norm(width), out_norm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, F) of a memory (B, S, E)."""
        return _heads(self.key_value(memory), 2, self.num_heads)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """(B, T, E), (B, S, E) -> (B, T, E); `mask`, bool (B, 1, 1, S): which tokens of the memory are seen."""
        (q,) = _heads(self.query(self.norm(x)), 1, self.num_heads)
        y = attend(q, *self.read(memory), mask)
        return self.out_norm(self.projection(y.transpose(1, 2).flatten(2)))


def _heads(x: Tensor, count: int, num_heads: int) -> tuple[Tensor, ...]:
    """(B, T, count E) -> `count` tensors (B, H, T, F)."""
    return x.unflatten(-1, (count, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class MLP(nn.Module):
    """W_2 gelu(W_1 N x), of 4 E features."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(width)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(self.norm(x))))


class GatedMLP(nn.Module):
    """W_2 N(gelu(W_0 N x) * W_1 N x); W_0 and W_1 are one matrix."""

    def __init__(self, width: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(width)
        self.expand = nn.Linear(width, 2 * hidden, bias=False)
        self.hidden_norm = norm(hidden)
        self.contract = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(self.norm(x)).chunk(2, dim=-1)
        return self.contract(self.hidden_norm(F.gelu(gate) * value))


BlockMLP = MLP | GatedMLP


class EncoderBlock(nn.Module):
    """Self-attention and an MLP, each added to its input; `dropout` is a share of what is added."""

    is_layer = True  # training.checkpointing recomputes it

    def __init__(self, width: int, num_heads: int, mlp: BlockMLP, norm: Norm, out_norm: Norm, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, norm, out_norm)
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, E); `mask` as in SelfAttention."""
        x = x + self.dropout(self.attention(x, mask))
        return x + self.dropout(self.mlp(x))


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention and an MLP, each added to its input; `dropout` is a share of what is added."""

    is_layer = True  # training.checkpointing recomputes it

    def __init__(self, width: int, num_heads: int, mlp: BlockMLP, norm: Norm, out_norm: Norm, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, norm, out_norm)
        self.cross = CrossAttention(width, num_heads, norm, out_norm)
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, E); masks as in SelfAttention and CrossAttention."""
        x = x + self.dropout(self.attention(x, mask))
        x = x + self.dropout(self.cross(x, memory, memory_mask))
        return x + self.dropout(self.mlp(x))


@dataclass
class CrossState:
    """What a `CrossRunner` remembers of the tokens read so far, and the memory, whose seen tokens come first.

    memory: keys and values, and how many tokens are seen, int64 (B,); see `kernels.transformer.Memory`
    """

    cache: KVCache
    memory: Memory


class CrossRunner:
    """Decoder blocks with a head on top, one token at a time; without gradients.

    Holds the weights packed for a precision, and no tensor of the batch: pack once, decode many images.

    Args:
        blocks: in evaluation mode; their dropout is not applied.
        precision: float32, bfloat16 or int8.
        head: gives the outputs.
        distances: int64 (n,), ascending from 0: how far back the tokens stand that a token sees; it sees all where
            these are 0, 1, 2 and so on.
        backend: "native", "plain" or None, see `kernels.transformer.pack_stack`.

    Raises:
        ValueError: no such precision or backend.
    """

    def __init__(
        self, blocks: Sequence[DecoderBlock], precision: Precision, head: Head, distances: Tensor,
        backend: Backend | None = None,
    ) -> None:  # fmt: skip
        self.blocks = list(blocks)
        is_dense = bool((distances == torch.arange(len(distances), device=distances.device)).all())
        self.form = pack_stack(
            Stack(
                [_step_layer(block) for block in self.blocks], self.blocks[0].attention.num_heads,
                (head.norm, head.linear), None if is_dense else distances,
            ), precision, backend,
        )  # fmt: skip

    @torch.no_grad()
    def start(self, memory: Tensor, mask: Tensor, capacity: int) -> CrossState:
        """The state before the first of at most `capacity` tokens, from a memory (B, S, E) and its mask."""
        seen = mask[:, 0, 0]
        memory = memory.take_along_dim((~seen).long().argsort(dim=1, stable=True).unsqueeze(-1), 1)
        read = zip(*(block.cross.read(memory) for block in self.blocks), strict=True)
        keys, values = (self.form.cached(torch.stack(tensors, 1)).contiguous() for tensors in read)
        return CrossState(KVCache.empty(self.form, len(memory), capacity), (keys, values, seen.sum(1)))

    @torch.no_grad()
    def step(self, x: Tensor, state: CrossState) -> Tensor:
        """Reads one token (B, E): outputs (B, K); changes `state`."""
        return state.cache.step(self.form, x, state.memory)


def _step_layer(block: DecoderBlock) -> StepLayer:
    own, cross, mlp = block.attention, block.cross, block.mlp
    return StepLayer(
        own.norm, own.query_key_value, own.projection, mlp.norm, mlp.expand, mlp.contract, _norm(own.out_norm),
        cross.norm, cross.query, cross.projection, _norm(cross.out_norm), getattr(mlp, "hidden_norm", None),
    )  # fmt: skip


def _norm(module: nn.Module) -> nn.LayerNorm | None:
    assert isinstance(module, (nn.LayerNorm, nn.Identity)), module
    return module if isinstance(module, nn.LayerNorm) else None
