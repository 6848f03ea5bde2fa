"""The recurrences of PixelRNN over a map (van den Oord et al. 2016, arXiv:1601.06759, section 3).

Both are LSTMs whose state at a pixel p comes from pixels visited before.  With input x, input-to-state weights
W_j and state-to-state weights U_k,

    (o, f, i, g) = base(p) + sum_j x(p - (0, left - j)) W_j + sum_k h(p + tap_k) U_k
    c(p) = sigmoid(f) * c(p + from) + sigmoid(i) * tanh(g);   h(p) = sigmoid(o) * tanh(c(p))

    row        taps (-1, -1), (-1, 0), (-1, 1)   from (-1, 0)    rows from top to bottom
    diagonal   taps (-1, 0), (0, -1)             from (0, -1)    anti-diagonals; mirrored: (0, 1) for (0, -1)

What lies outside the map is zero.

Two implementations agree.  `reference_scan` is plain differentiable torch, for any device.  On the CPU,
`scan.cpp` takes each image through the cache, forward and backward; it is
compiled at first use where there is a C++ compiler, and kept in the user's cache folder.

Shape letters: B batch, H height, W width, F input features, h state features.
"""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .native import compiled

NUM_TAPS = {"row": 3, "diagonal": 2}


def lstm_scan(
    x: Tensor, base: Tensor, input_weight: Tensor, weight: Tensor, order: str, mirrored: bool = False
) -> Tensor:
    """LSTM over the pixels of a map.

    Args:
        x: (B, H, W, F), the input.
        base: (4h,), (B, 1, 1, 4h) or (B, H, W, 4h), added to the gates: biases and conditions.
        input_weight: (left + 1, F, 4h), from the pixel furthest to the left to the pixel itself.
        weight: (taps, h, 4h), taps as in the table above.
        order: "row" or "diagonal".
        mirrored: the diagonal one from the right to the left.

    Gates are in the order output, forget, input, content.

    Returns:
        (B, H, W, h), the states; at least float32.
    """
    num_features = weight.shape[1]
    assert x.ndim == 4 and x.shape[-1] == input_weight.shape[1], (x.shape, input_weight.shape)
    assert weight.shape == (NUM_TAPS[order], num_features, 4 * num_features), weight.shape
    assert input_weight.shape[0] <= 4 and not (mirrored and order == "row")
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, base, input_weight, weight = (tensor.to(dtype) for tensor in (x, base, input_weight, weight))
    base = base.expand(1, 1, 1, -1) if base.ndim == 1 else base
    fits = num_features % 16 == 0 and x.shape[-1] % 16 == 0
    if x.device.type == "cpu" and fits and native_library() is not None:
        return _NativeScan.apply(x, base, input_weight, weight, order == "diagonal", mirrored)
    return reference_scan(x, base, input_weight, weight, order, mirrored)


def lstm_cell(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One LSTM update: gates z (..., 4h) and cells c (..., h) -> states h, cells c."""
    o, f, i, g = z.chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def row_product(x: Tensor, weight: Tensor) -> Tensor:
    """Sum of the pixels to the left, and the pixel, times their weights: (..., W, F), (left + 1, F, N) -> (..., W, N)."""
    width, left = x.shape[-2], weight.shape[0] - 1
    taps = [F.pad(x, (0, 0, k, 0))[..., :width, :] for k in range(left, 0, -1)]
    return torch.cat([*taps, x], dim=-1) @ weight.flatten(0, 1)


def reference_scan(
    x: Tensor, base: Tensor, input_weight: Tensor, weight: Tensor, order: str, mirrored: bool = False
) -> Tensor:
    """`lstm_scan` in plain torch."""
    z = base + row_product(x, input_weight)
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


class _NativeScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, base, input_weight, weight, diagonal, mirrored):
        x, base, input_weight, weight = (t.contiguous() for t in (x, base, input_weight, weight))
        batch, height, width, depth = x.shape
        num_features = weight.shape[1]
        gates = x.new_empty(batch, height, width, 4 * num_features)
        c, out = (x.new_empty(batch, height, width, num_features) for _ in range(2))
        per_image, per_pixel = base.shape[0] == batch > 1, base.shape[1:3] == x.shape[1:3] and height * width > 1
        assert base.shape[:3] == (batch if per_image else 1, *(x.shape[1:3] if per_pixel else (1, 1))), base.shape
        assert per_image or not per_pixel or batch == 1, base.shape
        strides = (base[0].numel() * per_image, 4 * num_features * per_pixel)
        left = len(input_weight) - 1
        ctx.scan = (height, width, depth, num_features, left, int(diagonal), int(mirrored), *strides)
        tensors = (x, base, input_weight, weight, gates, c, out)
        _run("forward", ctx.scan, batch, lambda part: tensors)
        ctx.base_shape = base.shape
        ctx.save_for_backward(x, input_weight, weight, gates, c, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        x, input_weight, weight, gates, c, out = ctx.saved_tensors
        num_parts = _num_parts(len(x))
        tensors = [dout, x, input_weight.mT, weight.mT, gates, c, out]
        tensors = [t.contiguous() for t in tensors]
        dx, dinput, dstate = torch.empty_like(x), *(w.new_zeros(num_parts, *w.shape) for w in (input_weight, weight))
        shared = ctx.base_shape[0] == 1  # each part of the batch has its own sum, as for the weights
        dbase = x.new_zeros(num_parts if shared else 1, *ctx.base_shape)
        _run(
            "backward", ctx.scan, len(x),
            lambda part: (*tensors, dx, dbase[part if shared else 0], dinput[part], dstate[part]),
        )  # fmt: skip
        return dx, dbase.sum(0), dinput.sum(0), dstate.sum(0), None, None


def _num_parts(batch: int) -> int:
    return min(batch, torch.get_num_threads() * 4) if torch.get_num_threads() > 1 else 1


def _run(function: str, scan: tuple[int, ...], batch: int, arguments) -> None:
    """Calls the compiled function on parts of the batch, in threads; arguments(part) gives its tensors."""
    num_parts = _num_parts(batch)

    def work(part: int) -> None:
        tensors = arguments(part)
        name = f"{function}_{ {torch.float32: 'float', torch.float64: 'double'}[tensors[0].dtype]}"
        cuts = (batch * part // num_parts, batch * (part + 1) // num_parts)
        getattr(native_library(), name)(
            (ctypes.c_int64 * len(scan))(*scan),
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
            *map(ctypes.c_int64, cuts),
        )

    if num_parts == 1:
        work(0)
    else:
        list(_pool(torch.get_num_threads()).map(work, range(num_parts)))


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads)


def native_library() -> ctypes.CDLL | None:
    """The compiled `scan.cpp`, or None where it cannot be compiled."""
    return compiled(Path(__file__).with_name("scan.cpp"))
