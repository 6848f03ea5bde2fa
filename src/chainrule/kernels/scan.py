"""The recurrences of PixelRNN over a map (van den Oord et al. 2016, arXiv:1601.06759, section 3).

Both are LSTMs whose state at a pixel p comes from pixels visited before.  With z what the gates take from the
input, and state-to-state weights U_k,

    (o, f, i, g) = z(p) + sum_k h(p + tap_k) U_k
    c(p) = sigmoid(f) * c(p + from) + sigmoid(i) * tanh(g);   h(p) = sigmoid(o) * tanh(c(p))

    row        taps (-1, -1), (-1, 0), (-1, 1)   from (-1, 0)    rows from top to bottom
    diagonal   taps (-1, 0), (0, -1)             from (0, -1)    anti-diagonals; mirrored: (0, 1) for (0, -1)

What lies outside the map is zero.

Two implementations agree.  `reference_scan` is plain differentiable torch, for any device.  On the CPU,
`scan.cpp` takes each image through the cache, forward and backward, where it can be compiled (see `native`).  Where z
is in bfloat16, the features are a multiple of 32 and the processor has AMX, states, weights and gradients of gates are
rounded to bfloat16 as factors of products, as autocast does with layers; cells, gates and sums stay float32.

Shape letters: B batch, H height, W width, h state features.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .native import Backend, Kernel, integers, pointers, share

NUM_TAPS = {"row": 3, "diagonal": 2}
NATIVE_TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def lstm_scan(z: Tensor, weight: Tensor, order: str, mirrored: bool = False, backend: Backend | None = None) -> Tensor:
    """LSTM over the pixels of a map.

    Args:
        z: (B, H, W, 4h), what the gates output, forget, input, content take from the input.
        weight: (taps, h, 4h), taps as in the table above.
        order: "row" or "diagonal".
        mirrored: the diagonal one from the right to the left.
        backend: "native", "plain" or None: compiled code on the CPU where it can be had and h is a multiple of 16.

    Returns:
        (B, H, W, h), the states; at least float32, in which the recurrence is computed, but for products by AMX.

    Raises:
        ValueError: "native", and the states are not on the CPU or h is not a multiple of 16.
        RuntimeError: "native", and there is no compiled code.
    """
    num_features = weight.shape[1]
    assert z.ndim == 4 and z.shape[-1] == 4 * num_features, z.shape
    assert weight.shape == (NUM_TAPS[order], num_features, 4 * num_features), weight.shape
    assert not (mirrored and order == "row")
    dtype = torch.promote_types(z.dtype, torch.float32)
    weight = weight.to(dtype)
    suits = z.device.type == "cpu" and num_features % 16 == 0
    if backend == "native" and not suits:
        raise ValueError(f"compiled code scans on the CPU, a multiple of 16 features, got {num_features} on {z.device}")
    if suits and KERNEL.load(backend) is not None:
        z = z if z.dtype in NATIVE_TYPES else z.to(dtype)
        return _NativeScan.apply(z, weight, order == "diagonal", mirrored)
    return reference_scan(z.to(dtype), weight, order, mirrored)


def lstm_cell(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One LSTM update: gates z (..., 4h) and cells c (..., h) -> states h, cells c."""
    o, f, i, g = z.chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def reference_scan(z: Tensor, weight: Tensor, order: str, mirrored: bool = False) -> Tensor:
    """`lstm_scan` in plain torch."""
    if mirrored:
        return _reference_diagonal(z.flip(2), weight).flip(2)
    return _reference_row(z, weight) if order == "row" else _reference_diagonal(z, weight)


def _reference_row(z: Tensor, weight: Tensor) -> Tensor:
    batch, _, width, _ = z.shape
    h = c = z.new_zeros(batch, width, weight.shape[1])
    rows = []
    for row in z.unbind(1):
        h, c = lstm_cell(row + neighbours_above(h) @ weight.flatten(0, 1), c)
        rows.append(h)
    return torch.stack(rows, dim=1)


def neighbours_above(h: Tensor) -> Tensor:
    """The states (B, W, h) of a row, as the row below reads them: (B, W, 3h)."""
    padded = F.pad(h, (0, 0, 1, 1))
    return torch.cat([padded[:, k : k + h.shape[1]] for k in range(3)], dim=-1)


def _reference_diagonal(z: Tensor, weight: Tensor) -> Tensor:
    batch, height, width, _ = z.shape
    # Skew: row r moves right by r, so that anti-diagonals become columns.
    length = height + width - 1
    skewed = F.pad(z, (0, 0, 0, height)).flatten(1, 2)[:, : height * length].unflatten(1, (height, length))
    rows = torch.arange(height, device=z.device)[:, None]
    h = c = z.new_zeros(batch, height, weight.shape[1])
    columns = []
    for t in range(length):
        above = F.pad(h, (0, 0, 1, 0))[:, :height]
        h, c = lstm_cell(skewed[:, :, t] + torch.cat([above, h], dim=-1) @ weight.flatten(0, 1), c)
        begun = rows <= t  # a row that has not begun keeps zeros
        h, c = h * begun, c * begun
        columns.append(h)
    states = F.pad(torch.stack(columns, dim=2).flatten(1, 2), (0, 0, 0, height))
    return states.unflatten(1, (height, length + 1))[:, :, :width]


class _Scan(ctypes.Structure):
    _fields_ = integers("height", "width", "hidden", "diagonal", "mirrored")


class _Call(ctypes.Structure):
    _fields_ = [("scan", _Scan), *pointers("z", "weight", "gates", "c", "out", "dout", "dz", "dweight")]


KERNEL = Kernel("scan", 1, (_Scan, _Call))


class _NativeScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, weight, diagonal, mirrored):
        z, weight = z.contiguous(), weight.contiguous()
        batch, height, width, _ = z.shape
        num_features = weight.shape[1]
        gates = torch.empty_like(z, dtype=weight.dtype)
        c, out = (weight.new_empty(batch, height, width, num_features) for _ in range(2))
        ctx.scan = _Scan(height, width, num_features, diagonal, mirrored)
        ctx.input_type = z.dtype
        call = _call(ctx.scan, z=z, weight=weight, gates=gates, c=c, out=out)
        _run("forward", z.dtype, ctx.scan, batch, lambda part: call)
        ctx.save_for_backward(weight, gates, c, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        weight, gates, c, out = ctx.saved_tensors
        dout, transposed = dout.contiguous(), weight.mT.contiguous()
        dz = torch.empty_like(gates, dtype=ctx.input_type)
        dweight = weight.new_zeros(_num_parts(len(out)), *weight.shape)  # each part of the batch has its own sum
        given = {"weight": transposed, "gates": gates, "c": c, "out": out, "dout": dout, "dz": dz}
        calls = [_call(ctx.scan, **given, dweight=part) for part in dweight]
        _run("backward", ctx.input_type, ctx.scan, len(out), calls.__getitem__)
        return dz, dweight.sum(0), None, None


def _call(scan: _Scan, **tensors: Tensor) -> _Call:
    return _Call(scan, **{name: tensor.data_ptr() for name, tensor in tensors.items()})


def _num_parts(batch: int) -> int:
    return min(batch, torch.get_num_threads() * 4) if torch.get_num_threads() > 1 else 1


def _has_tiles(library: ctypes.CDLL) -> bool:
    """Whether compiled code uses AMX: processor and system allow it, and CHAINRULE_NATIVE is not vectors."""
    return os.environ.get("CHAINRULE_NATIVE") != "vectors" and hasattr(library, "forward_tiles") and library.allow_amx()


def _run(name: str, dtype: torch.dtype, scan: _Scan, batch: int, call: Callable[[int], _Call]) -> None:
    """Calls the compiled function for a type of z on parts of the batch, in threads."""
    num_parts = _num_parts(batch)
    library = KERNEL.load("native")
    tiles = dtype == torch.bfloat16 and scan.hidden % 32 == 0 and _has_tiles(library)
    function = getattr(library, f"{name}_{'tiles' if tiles else NATIVE_TYPES[dtype]}")

    def work(part: int) -> None:
        cuts = (batch * part // num_parts, batch * (part + 1) // num_parts)
        function(ctypes.byref(call(part)), *map(ctypes.c_int64, cuts))

    share(work, num_parts, torch.get_num_threads())
