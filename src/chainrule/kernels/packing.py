"""Weights of a stack as `transformer.cpp` reads them, and the structures that tell it where they are.

Letters: K outputs, E inputs.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .native import Backend, Kernel, integers, pointers

if TYPE_CHECKING:
    from .transformer import StepLayer

Precision = Literal["float32", "bfloat16", "int8"]
HUGE_PAGE = 1 << 21  # bytes
NATIVE_WIDTH = 64
"""Widths that compiled code reads are multiples of this."""
OUTPUTS = 32
"""Outputs whose weights in bfloat16 and int8 stand together; see `tiles.h`."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(K, E) -> int8 (K, E) in -127..127 and the scales (K,) of its rows."""
    scale = weight.abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


class Linear(ctypes.Structure):
    """As in precisions.h."""

    _fields_ = pointers("weight", "scale", "bias")


class Norm(ctypes.Structure):
    """As in transformer.cpp."""

    _fields_ = pointers("weight", "shift")


class Attention(ctypes.Structure):
    """As in transformer.cpp."""

    _fields_ = [("norm", Norm), ("out", Norm), ("input", Linear), ("projection", Linear)]


class Layer(ctypes.Structure):
    """As in transformer.cpp."""

    _fields_ = [
        ("own", Attention), ("cross", Attention), ("norm", Norm), ("hidden_norm", Norm),
        ("gate", Linear), ("expand", Linear), ("contract", Linear),
    ]  # fmt: skip


class Model(ctypes.Structure):
    """As in transformer.cpp."""

    _fields_ = [
        *integers("layers", "width", "heads", "outputs", "hidden", "padding"), ("epsilon", ctypes.c_double),
        ("layer", ctypes.POINTER(Layer)), ("norm", Norm), ("head", Linear),
        *pointers("distances"), *integers("num_distances"),
    ]  # fmt: skip


class Call(ctypes.Structure):
    """As in transformer.cpp."""

    _fields_ = [
        *integers("batch", "capacity", "threads"), *pointers("x", "out", "keys", "values", "positions"),
        *pointers("memory_keys", "memory_values"), *integers("memory"), *pointers("lengths"),
    ]  # fmt: skip


KERNEL = Kernel("transformer", 3, (Layer, Model, Call))


def native_library(backend: Backend | None = None) -> ctypes.CDLL | None:
    """The compiled `transformer.cpp`, or None; see `Kernel.load`."""
    return KERNEL.load(backend)


def has_amx(library: ctypes.CDLL) -> bool:
    """Whether steps with narrow weights use AMX: processor and system allow it, and CHAINRULE_NATIVE is not vectors."""
    return os.environ.get("CHAINRULE_NATIVE") != "vectors" and bool(library.allow_amx())


class Weights:
    """Weights one after the other, as a step reads them, in memory of huge pages; gives their addresses."""

    def __init__(self, library: ctypes.CDLL, num_weights: int, precision: Precision) -> None:
        self.precision = precision
        size = num_weights * {"float32": 4, "bfloat16": 2, "int8": 1}[precision]
        self.bytes = torch.empty(size + HUGE_PAGE, dtype=torch.uint8)
        self.used = -self.bytes.data_ptr() % HUGE_PAGE
        use_huge_pages(library, self.bytes.data_ptr() + self.used, size)
        self.others: list[Tensor] = []  # small and apart

    def layer(self, layer: StepLayer, padding: int) -> Layer:
        """A block, whose MLP has `padding` features of zero at the end."""
        own = Attention(
            self.norm(layer.attention_norm), self.norm(layer.attention_out_norm),
            self.linear(layer.query_key_value), self.linear(layer.projection),
        )  # fmt: skip
        cross = Attention(
            self.norm(layer.cross_norm), self.norm(layer.cross_out_norm),
            self.linear(layer.query), self.linear(layer.cross_projection),
        )  # fmt: skip
        return Layer(
            own, cross, self.norm(layer.mlp_norm), self.norm(layer.hidden_norm, padding), *self.mlp(layer, padding)
        )

    def norm(self, norm: nn.LayerNorm | None, padding: int = 0) -> Norm:
        """Gain and shift, with `padding` zeros behind them."""
        if norm is None:
            return Norm()
        size = norm.normalized_shape
        pair = (norm.weight, norm.bias) if norm.elementwise_affine else (torch.ones(size), torch.zeros(size))
        return Norm(*(self._small(F.pad(tensor.detach(), (0, padding))) for tensor in pair))

    def linear(self, linear: nn.Linear | None) -> Linear:
        """A layer, or an empty structure for None."""
        return Linear() if linear is None else self._linear(linear.weight.detach(), linear.bias)

    def mlp(self, layer: StepLayer, padding: int) -> tuple[Linear, Linear, Linear]:
        """Gate, expand and contract, with `padding` features of zero at the end."""
        gated = layer.hidden_norm is not None
        expand, contract = layer.expand, layer.contract
        assert not (gated and expand.bias is not None), "gated MLPs have no biases"
        halves = expand.weight.detach().chunk(2 if gated else 1)
        bias = None if expand.bias is None else F.pad(expand.bias.detach(), (0, padding))
        found = [self._linear(F.pad(half, (0, 0, 0, padding)), bias) for half in halves]
        last = self._linear(F.pad(contract.weight.detach(), (0, padding)), contract.bias)
        return found[0] if gated else Linear(), found[-1], last

    def _linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        if self.precision == "float32":
            return Linear(self._fours(weight), None, None if bias is None else self._small(bias))
        rest = -len(weight) % OUTPUTS
        place = None if bias is None else self._small(F.pad(bias, (0, rest)))
        if self.precision == "bfloat16":
            return Linear(self._tiles(F.pad(weight, (0, 0, 0, rest)).bfloat16()), None, place)
        codes, scale = quantize_rows(weight)
        tiles = self._tiles((F.pad(codes, (0, 0, 0, rest)).to(torch.int16) + 128).to(torch.uint8))
        return Linear(tiles, self._small(F.pad(scale, (0, rest))), place)

    def _small(self, tensor: Tensor) -> int:
        self.others.append(tensor.detach().clone())
        return self.others[-1].data_ptr()

    def _fours(self, weight: Tensor) -> int:
        """Rows in fours, whose parts of 64 bytes alternate, so that memory is read in order; the rest row by row."""
        place = self._take(weight)
        fours = len(weight) // 4 * 4
        tiles = weight[:fours].unflatten(0, (-1, 4)).unflatten(-1, (-1, 16)).transpose(1, 2)
        place[: tiles.numel()].view(tiles.shape).copy_(tiles)
        place[tiles.numel() :].view(-1, weight.shape[1]).copy_(weight[fours:])
        return place.data_ptr()

    def _tiles(self, weight: Tensor) -> int:
        """Tiles of 16 outputs by 64 bytes of inputs, in the order of `tiles.h`."""
        tiles = weight.unflatten(0, (-1, 2, 16)).unflatten(-1, (-1, 16, 4 // weight.itemsize)).permute(0, 3, 1, 4, 2, 5)
        place = self._take(weight)
        place.view(tiles.shape).copy_(tiles)
        return place.data_ptr()

    def _take(self, weight: Tensor) -> Tensor:
        place = self.bytes[self.used : self.used + weight.nbytes].view(weight.dtype)
        self.used += -(-weight.nbytes // 64) * 64
        return place


def use_huge_pages(library: ctypes.CDLL, address: int, size: int) -> None:
    """Asks for huge pages where memory, not yet written to, has room for them: it is read faster then."""
    first = -(-address // HUGE_PAGE) * HUGE_PAGE
    room = (address + size - first) // HUGE_PAGE * HUGE_PAGE
    if room > 0:
        library.use_huge_pages(ctypes.c_void_p(first), ctypes.c_int64(room))
