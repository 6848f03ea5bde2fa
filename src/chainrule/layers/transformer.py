"""Causal transformer blocks as GPT-2 has them, and their form for one token at a time.

    x <- x + W_o attention(LN x)        x <- x + W_2 gelu(W_1 LN x)        (pre-norm; biases; exact GELU)

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; initialisation: normal, 0.02.

A `Block` reads whole sequences (training, scoring).  A `BlockRunner` holds the weights of many blocks as one step reads
them, in an explicit precision (see `kernels.transformer`), and remembers keys and values in a `KVCache` of fixed size.

Shape letters: B batch, T tokens, L blocks, E width, H heads, F features of a head, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.native import Backend
from ..kernels.transformer import Memory, PackedStep, Precision, Stack, StepLayer, pack_stack

STD = 0.02


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """`F.scaled_dot_product_attention`, which on a CPU is differentiated in float32: in bfloat16 that takes up to six
    times as long (64 tokens; from 512 on there is no difference)."""
    if torch.is_grad_enabled() and q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[-2] < 512:
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, dropout, is_causal)
        return y.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), which some releases have for GELU."""
    return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm self-attention and MLP of 4 E features, each added to its input.

    Args:
        visible: bool (capacity, capacity), which tokens (columns) each token (row) attends to, itself and those before
            it at most; without one, all of these.
        activation: of the MLP.
    """

    is_layer = True  # training.checkpointing recomputes it

    def __init__(
        self, width: int, num_heads: int, dropout: float = 0.0, attention_dropout: float = 0.0,
        visible: Tensor | None = None, activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:  # fmt: skip
        super().__init__()
        assert width % num_heads == 0, (width, num_heads)
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("visible", visible, persistent=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, E); a token sees itself and those before it, or what is `visible`."""
        return self.read(x)[0]

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`; also the keys and values (B, H, T, F)."""
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        mask = None if self.visible is None else self.visible[: x.shape[1], : x.shape[1]]
        y = attend(q, k, v, mask, mask is None, dropout)
        x = x + self.dropout(self.projection(y.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.contract(self.activation(self.expand(self.mlp_norm(x)))))
        return x, k, v


class Head(nn.Module):
    """LayerNorm and a linear layer: (..., E) -> (..., K)."""

    def __init__(self, width: int, num_outputs: int, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def initialize(module: nn.Module) -> None:
    """For `nn.Module.apply`: matrices and embeddings normal with deviation 0.02, biases zero."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


@dataclass
class KVCache:
    """Keys and values of the tokens read so far; images may have read different numbers of tokens."""

    keys: Tensor  # (B, L, H, capacity, F), in int8 with four bytes more; see `PackedStep.cached`
    values: Tensor  # likewise
    lengths: Tensor  # int64 (B,), tokens read

    @classmethod
    def empty(cls, form: PackedStep, batch_size: int, capacity: int) -> KVCache:
        """The cache of a packed stack before its first token, for at most `capacity` tokens."""
        keys, values = form.init_cache(batch_size, capacity)
        return cls(keys, values, torch.zeros(batch_size, dtype=torch.int64, device=keys.device))

    def step(self, form: PackedStep, x: Tensor, memory: Memory | None = None) -> Tensor:
        """Reads one token (B, E) of every image: the outputs of the stack; enters the token."""
        y = form(x, self.keys, self.values, self.lengths, memory)
        self.lengths += 1
        return y


class BlockRunner:
    """Blocks, and a head on top where one is given, one token at a time; without gradients.

    Holds the weights packed for a precision, and no tensor of the batch: pack once, decode many images.

    Args:
        blocks: in evaluation mode; their dropout is not applied.
        precision: see `kernels.transformer`.
        head: gives the outputs; without one they are the states after the last block.
        backend: "native", "plain" or None, see `kernels.transformer.pack_stack`.

    Raises:
        ValueError: no such precision or backend.
    """

    def __init__(
        self, blocks: Sequence[Block], precision: Precision, head: Head | None = None, backend: Backend | None = None
    ) -> None:
        self.blocks, self.precision = list(blocks), precision
        top = None if head is None else (head.norm, head.linear)
        stack = Stack([_step_layer(block) for block in self.blocks], self.blocks[0].num_heads, top)
        self.form = pack_stack(stack, precision, backend)

    def init_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for at most `capacity` tokens."""
        return KVCache.empty(self.form, batch_size, capacity)

    @torch.no_grad()
    def prefill(self, x: Tensor, cache: KVCache) -> None:
        """Reads tokens (B, n, E) at once into an empty cache, in the model's own precision."""
        assert not cache.lengths.any()
        count = x.shape[1]
        cache.lengths += count
        if count == 0:
            return
        for index, block in enumerate(self.blocks):
            x, k, v = block.read(x)
            cache.keys[:, index, :, :count] = self.form.cached(k)
            cache.values[:, index, :, :count] = self.form.cached(v)

    @torch.no_grad()
    def step(self, x: Tensor, cache: KVCache) -> Tensor:
        """Reads one token (B, E): outputs (B, K), or states (B, E) without a head; changes `cache`."""
        return cache.step(self.form, x)


def _step_layer(block: Block) -> StepLayer:
    return StepLayer(
        block.attention_norm, block.query_key_value, block.projection, block.mlp_norm, block.expand, block.contract,
        activation=block.activation, visible=block.visible,
    )  # fmt: skip
