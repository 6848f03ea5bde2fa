"""One token through a stack of transformer blocks, in compiled code, and the weights of products in narrow precisions.

    float32   the weights as they are
    bfloat16  weights, and inputs of products, of 8 significant bits
    int8      weights of 8 bits with one scale per output; norms and attention stay as they are

`transformer.cpp` is compiled at first use (see `native`); its plain twins are in `layers/transformer.py` and
`layers/encoder_decoder.py`.

Shape letters: B batch, L blocks, E width, H heads, F features of a head, K outputs.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .native import compiled

Precision = Literal["float32", "bfloat16", "int8"]
HUGE_PAGE = 1 << 21  # bytes
NATIVE_WIDTH = 64
"""What the widths that compiled code reads are multiples of."""


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The compiled `transformer.cpp`, or None where it cannot be compiled; it works in torch's own threads."""
    library = compiled(Path(__file__).with_name("transformer.cpp"))
    runtimes = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    if library is not None and runtimes:
        openmp = ctypes.CDLL(str(runtimes[0]))
        functions = (openmp.GOMP_parallel, openmp.omp_get_thread_num, openmp.omp_get_num_threads)
        library.use_openmp(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))
    return library


def use_huge_pages(address: int, size: int) -> None:
    """Asks for huge pages where memory, not yet written to, has room for them: it is read faster then."""
    first = -(-address // HUGE_PAGE) * HUGE_PAGE
    room = (address + size - first) // HUGE_PAGE * HUGE_PAGE
    if room > 0:
        native_library().use_huge_pages(ctypes.c_void_p(first), ctypes.c_int64(room))


@dataclass(frozen=True)
class StepLayer:
    """What compiled code reads of a block, whose activation is GELU; parts of None are left out.

    attention_norm .. contract:      as in `Block`; norms may have no gain
    attention_out_norm:              of what self-attention gives, before it is added
    cross_norm .. cross_out_norm:    likewise of attention to a memory, whose keys and values are given
    hidden_norm:                     of gelu(a) * b, where `expand` gives a and b, one after the other
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

    def parts(self) -> list[nn.LayerNorm | nn.Linear]:
        return [part for part in (getattr(self, f.name) for f in fields(self)) if part is not None]


def suits_native(layers: Sequence[StepLayer], num_heads: int, head: nn.Module | None) -> bool:
    """Whether a `NativeStep` can be made of these."""
    parts = [part for layer in layers for part in layer.parts()]
    parameters = [p for part in [*parts, *([] if head is None else [head])] for p in part.parameters()]
    width, norms = layers[0].query_key_value.in_features, [part for part in parts if isinstance(part, nn.LayerNorm)]
    return (
        all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
        and len({norm.eps for norm in norms}) == 1
        and width % NATIVE_WIDTH == 0
        and width // num_heads % 16 == 0
        and native_library() is not None
    )


class NativeStep:
    """A step in compiled code; `transformer.cpp` says how it stores weights."""

    def __init__(
        self, layers: Sequence[StepLayer], num_heads: int, precision: Precision, head: nn.Module | None = None
    ) -> None:
        self.function = getattr(native_library(), f"step_{precision}")
        self.cache_type = torch.float32 if precision == "float32" else torch.bfloat16
        self.num_outputs = 0 if head is None else head.linear.out_features
        parts = [part for layer in layers for part in layer.parts()] + ([] if head is None else [head.linear])
        linears = [part for part in parts if isinstance(part, nn.Linear)]
        memory = _Memory(
            sum((one.out_features + 2 * NATIVE_WIDTH) * (one.in_features + NATIVE_WIDTH) for one in linears), precision
        )
        features = layers[0].contract.in_features
        padding = -features % NATIVE_WIDTH
        addresses = []
        for layer in layers:
            addresses += memory.norm(layer.attention_norm) + memory.norm(layer.attention_out_norm)
            addresses += memory.linear(layer.query_key_value) + memory.linear(layer.projection)
            addresses += memory.norm(layer.cross_norm) + memory.norm(layer.cross_out_norm)
            addresses += memory.linear(layer.query) + memory.linear(layer.cross_projection)
            addresses += memory.norm(layer.mlp_norm) + memory.norm(layer.hidden_norm, padding)
            addresses += memory.mlp(layer, padding)
        self.layers, self.memory = (ctypes.c_int64 * len(addresses))(*addresses), memory
        epsilon = struct.unpack("q", struct.pack("d", layers[0].attention_norm.eps))[0]
        output = [0] * 5 if head is None else memory.norm(head.norm) + memory.linear(head.linear)
        model = [
            len(layers), layers[0].query_key_value.in_features, num_heads, self.num_outputs, features + padding,
            padding, epsilon, ctypes.addressof(self.layers), *output,
        ]  # fmt: skip
        self.model = (ctypes.c_int64 * len(model))(*model)

    def __call__(
        self, x: Tensor, keys: Tensor, values: Tensor, length: int, crossed: Sequence[Tensor] = (),
        places: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """One token (B, E) -> (B, K), or (B, E) without a head.

        Args:
            keys, values: the caches (B, L, H, capacity, F), of which `length` tokens are filled; the token is entered.
            crossed: keys and values of a memory (B, L, H, S, F), and how many of its tokens, the first, are seen,
                int64 (B,).
            places: int64 (n,), tokens that are seen, the new one among them; without it all up to the new one.
        """
        x = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        y = x.new_empty(len(x), self.num_outputs) if self.num_outputs else x
        assert all(tensor.is_contiguous() for tensor in (keys, values, *crossed))
        memory = [tensor.data_ptr() for tensor in crossed] or [0, 0, 0]
        call = [
            len(x), keys.shape[3], length, torch.get_num_threads(), x.data_ptr(), y.data_ptr(),
            keys.data_ptr(), values.data_ptr(), *memory[:2], crossed[0].shape[3] if crossed else 0,
            memory[2], *((0, 0) if places is None else (places.data_ptr(), len(places))),
        ]  # fmt: skip
        self.function(self.model, (ctypes.c_int64 * len(call))(*call))
        return y


class _Memory:
    """Weights one after the other, as a step reads them, in memory of huge pages; gives their addresses."""

    def __init__(self, num_weights: int, precision: Precision) -> None:
        self.precision = precision
        size = num_weights * {"float32": 4, "bfloat16": 2, "int8": 1}[precision]
        self.bytes = torch.empty(size + HUGE_PAGE, dtype=torch.uint8)
        self.used = -self.bytes.data_ptr() % HUGE_PAGE
        use_huge_pages(self.bytes.data_ptr() + self.used, size)
        self.others: list[Tensor] = []  # small and apart

    def norm(self, norm: nn.LayerNorm | None, padding: int = 0) -> list[int]:
        """Addresses of gain and shift, with as many zeros behind them."""
        if norm is None:
            return [0, 0]
        size = norm.normalized_shape
        pair = (norm.weight, norm.bias) if norm.elementwise_affine else (torch.ones(size), torch.zeros(size))
        return [self._small(F.pad(tensor.detach(), (0, padding))) for tensor in pair]

    def linear(self, linear: nn.Linear | None) -> list[int]:
        """Addresses of weight, scales and bias; 0 where there is none."""
        return [0, 0, 0] if linear is None else self._weights(linear.weight.detach(), linear.bias)

    def mlp(self, layer: StepLayer, padding: int) -> list[int]:
        """Addresses of the matrices of an MLP, gate first, with as many features of zero at the end."""
        gated = layer.hidden_norm is not None
        expand, contract = layer.expand, layer.contract
        assert not (gated and expand.bias is not None), "gated MLPs have no biases"
        halves = expand.weight.detach().chunk(2 if gated else 1)
        bias = None if expand.bias is None else F.pad(expand.bias.detach(), (0, padding))
        found = [self._weights(F.pad(half, (0, 0, 0, padding)), bias) for half in halves]
        addresses = [0, 0, 0] if not gated else found[0]
        return addresses + found[-1] + self._weights(F.pad(contract.weight.detach(), (0, padding)), contract.bias)

    def _weights(self, weight: Tensor, bias: Tensor | None) -> list[int]:
        place = 0 if bias is None else self._small(bias)
        if self.precision != "int8":
            return [self._large(weight, getattr(torch, self.precision)), 0, place]
        codes, scale = quantize_rows(weight)
        return [self._large(codes.to(torch.int16) + 128, torch.uint8), self._small(scale), place]

    def _small(self, tensor: Tensor) -> int:
        self.others.append(tensor.detach().clone())
        return self.others[-1].data_ptr()

    def _large(self, weight: Tensor, dtype: torch.dtype) -> int:
        """Rows in fours, whose parts of 64 bytes alternate, so that memory is read in order; the rest row by row."""
        size = weight.numel() * dtype.itemsize
        place = self.bytes[self.used : self.used + size].view(dtype)
        self.used += -(-size // 64) * 64
        fours = len(weight) // 4 * 4
        tiles = weight[:fours].unflatten(0, (-1, 4)).unflatten(-1, (-1, 64 // dtype.itemsize)).transpose(1, 2)
        place[: tiles.numel()].view(tiles.shape).copy_(tiles)
        place[tiles.numel() :].view(-1, weight.shape[1]).copy_(weight[fours:])
        return place.data_ptr()


def pack_linear(linear: nn.Linear, precision: Precision) -> Callable[[Tensor], Tensor]:
    """A linear layer of (B, E) -> (B, K) with weights of another precision, results in the type of the input."""
    if precision == "float32":
        return linear
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


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(K, E) -> int8 (K, E) in -127..127 and the scales (K,) of its rows."""
    scale = weight.abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale
