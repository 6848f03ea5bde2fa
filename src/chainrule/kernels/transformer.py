"""One token through a stack of transformer blocks, with weights packed in an explicit precision; without gradients.

    x <- x + M W_o attention(N x)                  self-attention to the tokens before and to itself
    x <- x + M W_o attention(N x, memory)          cross-attention, in decoders that have a memory
    x <- x + W_2 gelu(W_1 N x)                     or W_2 N'(gelu(W_0 N x) * W_1 N x)

One token is bound by the bytes of the weights, so narrower weights are faster:

    float32   the weights as they are (a float64 model stays float64)
    bfloat16  weights, and inputs of products, of 8 significant bits
    int8      weights of 8 bits with one scale per output; the embedding, norms and attention stay as they are, but
              compiled code holds keys and values in 8 bits, too, with a scale per token and head

`NativeStep` is one call of `transformer.cpp`, for float32 models on a CPU, E a multiple of 64 and F of 16.  Where the
processor has AMX, products with narrower weights use it in every batch, so that an image's numbers do not depend on the
others.  `PlainStep` is its twin in plain torch, for everything else.

Shape letters: B batch, L blocks, E width, H heads, F features of a head, K outputs, S tokens of a memory.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import packing
from .native import Backend
from .packing import NATIVE_WIDTH, Precision, native_library, quantize_rows
from .rows import attend
from .rows import linear as multiply

Memory = tuple[Tensor, Tensor, Tensor]
"""Keys and values of a memory as `PackedStep.cached` gives them, (B, L, H, S, cache_size), and how many of its tokens,
the first, are seen: int64 (B,)."""


@dataclass(frozen=True)
class StepLayer:
    """The parts of a block; parts of None are left out.

    attention_norm .. contract:      norms may have no gain
    attention_out_norm:              of the result of self-attention, before it is added
    cross_norm .. cross_out_norm:    attention to a memory, whose keys and values are given
    hidden_norm:                     of gelu(a) * b, where `expand` gives a and b, one after the other
    activation:                      of an MLP without hidden_norm
    visible:                         bool (capacity, capacity), whether a token (row) sees another (column), which is
                                     itself or before it; None: all of these
    """

    attention_norm: nn.LayerNorm
    query_key_value: nn.Linear
    projection: nn.Linear
    mlp_norm: nn.LayerNorm
    expand: nn.Linear
    contract: nn.Linear
    attention_out_norm: nn.LayerNorm | None = None
    cross_norm: nn.LayerNorm | None = None
    query: nn.Linear | None = None
    cross_projection: nn.Linear | None = None
    cross_out_norm: nn.LayerNorm | None = None
    hidden_norm: nn.LayerNorm | None = None
    activation: Callable[[Tensor], Tensor] = F.gelu
    visible: Tensor | None = None

    def modules(self) -> list[nn.LayerNorm | nn.Linear]:
        values = [getattr(self, field.name) for field in fields(self)]
        return [value for value in values if isinstance(value, (nn.LayerNorm, nn.Linear))]


@dataclass(frozen=True)
class Stack:
    """Blocks, and a norm and a linear layer on top where a head is given.

    distances: int64 (n,), ascending from 0: how far back the tokens stand that a token sees; None: it sees all.
    """

    layers: Sequence[StepLayer]
    num_heads: int
    head: tuple[nn.LayerNorm, nn.Linear] | None = None
    distances: Tensor | None = None

    @property
    def width(self) -> int:
        return self.layers[0].query_key_value.in_features

    def modules(self) -> list[nn.LayerNorm | nn.Linear]:
        return [module for layer in self.layers for module in layer.modules()] + list(self.head or ())

    def suits_native(self) -> bool:
        """Whether `transformer.cpp` can read it."""
        parameters = [p for module in self.modules() for p in module.parameters()]
        return (
            all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
            and len({module.eps for module in self.modules() if isinstance(module, nn.LayerNorm)}) == 1
            and all(layer.visible is None and layer.activation is F.gelu for layer in self.layers)
            and self.width % NATIVE_WIDTH == 0
            and self.width // self.num_heads % 16 == 0
        )


class PackedStep(ABC):
    """The weights of a stack as one step reads them; no tensor of the batch.

    cache_type:  of keys and values
    cache_size:  numbers that the cache has for F features
    """

    cache_type: torch.dtype
    cache_size: int

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.cache_size = stack.width // stack.num_heads

    def cached(self, x: Tensor) -> Tensor:
        """Keys or values (..., F) as the cache holds them, (..., cache_size)."""
        return x.to(self.cache_type)

    def init_cache(self, batch_size: int, capacity: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, L, H, capacity, cache_size) for at most `capacity` tokens."""
        stack = self.stack
        shape = (batch_size, len(stack.layers), stack.num_heads, capacity, self.cache_size)
        device = stack.layers[0].query_key_value.weight.device
        keys, values = (torch.zeros(shape, dtype=self.cache_type, device=device) for _ in range(2))
        return keys, values

    @abstractmethod
    def __call__(
        self, x: Tensor, keys: Tensor, values: Tensor, positions: Tensor, memory: Memory | None = None
    ) -> Tensor:
        """One token (B, E) -> (B, K), or (B, E) without a head.

        Args:
            keys, values: the caches (B, L, H, capacity, cache_size), into which the token is entered.
            positions: int64 (B,), of the token in its row of the cache; all before it are filled.
            memory: for cross-attention.
        """


def pack_stack(stack: Stack, precision: Precision, backend: Backend | None = None) -> PackedStep:
    """Packs the weights for a precision.

    Args:
        stack: in evaluation mode; dropout is not applied.
        backend: "native", "plain", or None: compiled code where it can be had and the stack suits it.

    Raises:
        ValueError: no such precision or backend, or "native" for a stack that compiled code cannot read.
        RuntimeError: "native", and there is no compiled code.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    if stack.suits_native():
        return NativeStep(stack, precision) if native_library(backend) else PlainStep(stack, precision)
    if backend == "native":
        raise ValueError("compiled code reads float32 weights on the CPU, of widths that are multiples of 64")
    return PlainStep(stack, precision)


class PlainStep(PackedStep):
    """A step in plain torch, on any device."""

    def __init__(self, stack: Stack, precision: Precision) -> None:
        super().__init__(stack)
        self.cache_type = stack.layers[0].query_key_value.weight.dtype
        self.linears = {
            module: pack_linear(module, precision) for module in stack.modules() if isinstance(module, nn.Linear)
        }

    def __call__(
        self, x: Tensor, keys: Tensor, values: Tensor, positions: Tensor, memory: Memory | None = None
    ) -> Tensor:
        heads, linears = self.stack.num_heads, self.linears
        first, last = (int(limit) for limit in positions.aminmax())
        assert last < keys.shape[3], "the cache is full"
        for index, layer in enumerate(self.stack.layers):
            token = linears[layer.query_key_value](layer.attention_norm(x)).unflatten(-1, (3, heads, 1, -1))
            q, own_keys, own_values = token[:, 0], keys[:, index], values[:, index]
            if first == last:
                own_keys[:, :, last : last + 1], own_values[:, :, last : last + 1] = token[:, 1], token[:, 2]
            else:
                rows = torch.arange(len(x), device=x.device)
                own_keys[rows, :, positions], own_values[rows, :, positions] = token[:, 1, :, 0], token[:, 2, :, 0]
            seen, mask = self._seen(layer, positions, first, last)
            y = attend(q, own_keys[:, :, seen], own_values[:, :, seen], mask)
            x = x + _normalized(linears[layer.projection](y.flatten(1)), layer.attention_out_norm)
            if memory is not None:
                x = x + self._cross(layer, x, memory[0][:, index], memory[1][:, index], memory[2])
            hidden = linears[layer.expand](layer.mlp_norm(x))
            if layer.hidden_norm is None:
                hidden = layer.activation(hidden)
            else:
                gate, value = hidden.chunk(2, dim=-1)
                hidden = layer.hidden_norm(F.gelu(gate) * value)
            x = x + linears[layer.contract](hidden)
        return x if self.stack.head is None else linears[self.stack.head[1]](self.stack.head[0](x))

    def _seen(self, layer: StepLayer, positions: Tensor, first: int, last: int) -> tuple[slice | Tensor, Tensor | None]:
        """Places of the cache that are read, and which of them each row sees; None: all."""
        distances, visible = self.stack.distances, layer.visible
        if first == last:
            if distances is not None:
                return last - distances[distances <= last], None
            return slice(last + 1), None if visible is None else visible[last : last + 1, : last + 1]
        back = positions[:, None] - torch.arange(last + 1, device=positions.device)
        mask = back >= 0 if distances is None else torch.isin(back, distances)
        if visible is not None:
            mask = mask & visible[positions, : last + 1]
        return slice(last + 1), mask[:, None, None]

    def _cross(self, layer: StepLayer, x: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        q = self.linears[layer.query](layer.cross_norm(x)).unflatten(-1, (self.stack.num_heads, 1, -1))
        mask = (torch.arange(keys.shape[2], device=x.device) < lengths[:, None])[:, None, None]
        y = attend(q, keys, values, mask)
        return _normalized(self.linears[layer.cross_projection](y.flatten(1)), layer.cross_out_norm)


def _normalized(x: Tensor, norm: nn.LayerNorm | None) -> Tensor:
    return x if norm is None else norm(x)


def pack_linear(linear: nn.Linear, precision: Precision) -> Callable[[Tensor], Tensor]:
    """A linear layer of (B, E) -> (B, K) with weights of another precision, results in the type of the input."""
    if precision == "float32":
        return lambda x: multiply(x, linear.weight, linear.bias)
    weight, bias = linear.weight.detach(), linear.bias
    if precision == "bfloat16":
        narrow = weight.bfloat16()
        return lambda x: _add(F.linear(x.bfloat16(), narrow).to(x.dtype), bias)
    codes, scale = quantize_rows(weight)
    if weight.device.type == "cpu" and weight.shape[1] % 32 == 0:  # with other sizes its kernel reads past the end
        one = torch.ones_like(scale, dtype=torch.bfloat16)
        return lambda x: _add(torch._weight_int8pack_mm(x.bfloat16(), codes, one).to(x.dtype) * scale, bias)
    return lambda x: _add(F.linear(x.bfloat16(), codes.bfloat16()).to(x.dtype) * scale, bias)


def _add(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


class NativeStep(PackedStep):
    """A step in compiled code."""

    def __init__(self, stack: Stack, precision: Precision) -> None:
        super().__init__(stack)
        self.library = native_library("native")
        amx = precision != "float32" and packing.has_amx(self.library)
        self.function = getattr(self.library, f"step_{precision}_amx" if amx else f"step_{precision}")
        self.cache_type = getattr(torch, precision)
        self.cache_size += 4 if precision == "int8" else 0
        linears = [module for module in stack.modules() if isinstance(module, nn.Linear)]
        size = sum((one.out_features + 2 * NATIVE_WIDTH) * (one.in_features + NATIVE_WIDTH) for one in linears)
        self.weights = packing.Weights(self.library, size, precision)
        features = stack.layers[0].contract.in_features
        padding = -features % NATIVE_WIDTH
        layers = [self.weights.layer(layer, padding) for layer in stack.layers]
        self.layers = (packing.Layer * len(layers))(*layers)
        self.model = packing.Model(
            len(layers), stack.width, stack.num_heads, 0, features + padding, padding,
            stack.layers[0].attention_norm.eps, self.layers,
        )  # fmt: skip
        if stack.head is not None:
            norm, linear = stack.head
            self.model.outputs = linear.out_features
            self.model.norm, self.model.head = self.weights.norm(norm), self.weights.linear(linear)
        if stack.distances is not None:
            self.distances = stack.distances.contiguous()
            self.model.distances, self.model.num_distances = self.distances.data_ptr(), len(self.distances)

    def cached(self, x: Tensor) -> Tensor:
        """As `Token` of precisions.h: in int8, the scale is in the last four bytes."""
        if self.cache_type != torch.int8:
            return x.to(self.cache_type)
        codes, scale = quantize_rows(x.float().flatten(0, -2))
        return torch.cat([codes, scale[:, None].view(torch.int8)], 1).unflatten(0, x.shape[:-1])

    def init_cache(self, batch_size: int, capacity: int) -> tuple[Tensor, Tensor]:
        stack = self.stack
        shape = (batch_size, len(stack.layers), stack.num_heads, capacity, self.cache_size)
        keys, values = (torch.empty(shape, dtype=self.cache_type) for _ in range(2))
        for tensor in (keys, values):
            packing.use_huge_pages(self.library, tensor.data_ptr(), tensor.nbytes)
        return keys, values

    def __call__(
        self, x: Tensor, keys: Tensor, values: Tensor, positions: Tensor, memory: Memory | None = None
    ) -> Tensor:
        x = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        y = x.new_empty(len(x), self.model.outputs) if self.model.outputs else x
        assert all(tensor.is_contiguous() for tensor in (keys, values, positions, *(memory or ())))
        call = packing.Call(
            len(x), keys.shape[3], torch.get_num_threads(), x.data_ptr(), y.data_ptr(), keys.data_ptr(),
            values.data_ptr(), positions.data_ptr(),
        )  # fmt: skip
        if memory is not None:
            call.memory_keys, call.memory_values, call.lengths = (tensor.data_ptr() for tensor in memory)
            call.memory = memory[0].shape[3]
        done = self.function(ctypes.byref(self.model), ctypes.byref(call))
        assert done, "the cache is full"
        return y
