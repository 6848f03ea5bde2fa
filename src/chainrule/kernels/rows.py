"""Products and convolutions that round an image alike alone and in any batch.

Libraries choose their instructions by the shape of a product: MKL adds in another order where a thread has 1 to 3 rows,
and PyTorch takes another library for one small image than for two.  A code whose uniform number lies near the border
between two codes then falls otherwise.  Here products are computed by `rows.cpp`, in one order for any batch, and the
convolutions of networks over whole images are all oneDNN's, which treats each image alike.

Without compiled code, products have a multiple of `ROWS` rows.  That was measured for 1 and 2 threads, inputs in
multiples of 16 features or at least 16 outputs; very small layers of odd sizes, and 3 or more threads that share fewer
than 32 outputs each, may still round by the batch.  All this holds for float32 on a CPU; on other devices a batch may
change the last bits.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from .native import Backend, Kernel, integers, pointers

ROWS = 16
"""Rows of a product without compiled code are a multiple of this."""
PANEL = 16
"""Outputs that lie side by side for each input where a matrix is packed: kPanel of `rows.cpp`."""
UNIT = 32
"""Numbers that PyTorch computes at once in elementwise functions."""
IMAGES = 32
"""Images that a network over whole images reads at once."""
PIXELS = 1 << 20
"""Numbers of images that such a network reads at once."""
ResultT = TypeVar("ResultT", Tensor, tuple[Tensor, ...])


class _Product(ctypes.Structure):
    _fields_ = [
        *integers("rows", "inputs", "outputs", "x_stride", "matrix_stride", "add_stride", "out_stride"),
        *integers("panel_stride", "transposed", "threads"), *pointers("x", "matrix", "bias", "add", "out"),
    ]  # fmt: skip


class Place(ctypes.Structure):
    """Where numbers of each image lie; see `chain.Part`."""

    _fields_ = integers("buffer", "offset", "step")


class Link(ctypes.Structure):
    """One product of a chain; see `chain.Link`."""

    _fields_ = [
        *((name, Place) for name in ("x", "add", "out", "cells", "new_cells")),
        *integers("inputs", "outputs", "before", "after"),
        *pointers("matrix", "bias"),
    ]


class Call(ctypes.Structure):
    """A chain for one column of a batch."""

    _fields_ = [*integers("count", "rows", "column", "threads"), *pointers("links", "buffers", "strides")]


KERNEL = Kernel("rows", 4, (_Product, Link, Call))


def by_rows(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """function(*batches), computed with a multiple of `ROWS` rows; rows of zeros are added and left out again."""
    rows = len(batches[0])
    if rows % ROWS == 0:
        return function(*batches)
    padded = [F.pad(batch, (0, 0) * (batch.ndim - 1) + (0, -rows % ROWS)) for batch in batches]
    return function(*padded)[:rows]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: Backend | None = None) -> Tensor:
    """`F.linear` of (..., E)."""
    if x.ndim == 2:
        return _multiply(x, weight.t(), bias, backend)
    return _multiply(x.flatten(0, -2), weight.t(), bias, backend).unflatten(0, x.shape[:-1])


def side_by_side(weight: Tensor) -> Tensor:
    """A weight (K, E) of `linear` with the outputs of each input side by side in memory, as many rows read it best."""
    return weight.detach().t().contiguous().t()


def addmm(add: Tensor, x: Tensor, matrix: Tensor, backend: Backend | None = None) -> Tensor:
    """`torch.addmm` of a bias (K,) or a batch (B, K), a batch (B, E) and a matrix (E, K)."""
    return _multiply(x, matrix, add, backend)


def matmul(x: Tensor, matrix: Tensor, backend: Backend | None = None) -> Tensor:
    """x (..., E) @ matrix (E, K)."""
    return _multiply(x.flatten(0, -2), matrix, None, backend).unflatten(0, x.shape[:-1])


def _multiply(x: Tensor, matrix: Tensor, add: Tensor | None, backend: Backend | None) -> Tensor:
    """x (B, E) @ matrix (E, K) + add (K,) or (B, K), in compiled code for float32 on a CPU where it can be had."""
    suits = x.is_cpu and x.dtype == matrix.dtype == torch.float32 and not torch.is_grad_enabled()
    library = compiled(backend, os.environ.get("CHAINRULE_NATIVE")) if suits else None
    if library is None:
        if add is None:
            return by_rows(lambda x: x @ matrix, x)
        if add.ndim == 1:
            return by_rows(lambda x: torch.addmm(add, x, matrix), x)
        return by_rows(lambda add, x: torch.addmm(add, x, matrix), add, x)
    (x_stride, x_step), (row, column), add_stride, bias_data, add_data = x.stride(), matrix.stride(), 0, None, None
    if x_step != 1:
        x, x_stride = x.contiguous(), x.shape[1]
    if row != 1 != column:
        matrix, (row, column) = matrix.contiguous(), (matrix.shape[1], 1)
    if add is not None:
        add = add if add.stride(-1) == 1 else add.contiguous()
        if add.ndim == 1:
            bias_data = add.data_ptr()
        else:
            add_stride, add_data = add.stride(0), add.data_ptr()
    (rows, inputs), outputs, transposed = x.shape, matrix.shape[1], column != 1
    out = x.new_empty(rows, outputs)
    library.multiply(ctypes.byref(_Product(
        rows, inputs, outputs, x_stride, column if transposed else row, add_stride, outputs, PANEL, transposed,
        torch.get_num_threads(), x.data_ptr(), matrix.data_ptr(), bias_data, add_data, out.data_ptr(),
    )))  # fmt: skip
    return out


@functools.cache
def compiled(backend: Backend | None, mode: str | None) -> ctypes.CDLL | None:
    """The compiled `rows.cpp`, or None for plain PyTorch, looked for once for each value of CHAINRULE_NATIVE."""
    return KERNEL.load(backend)


def convolve_row(window: Tensor, kernel: Tensor, bias: Tensor | None, side: int = 0, stride: int = 1) -> Tensor:
    """The row that a kernel (K, C, rows, columns) gives of a window as high: (B, C, rows, W) -> (B, W', K).

    Args:
        side: columns of zeros that are added on both sides.
        stride: columns from one result to the next.
    """
    window = F.pad(window, (side, side)) if side else window
    taps = window.unfold(3, kernel.shape[3], stride).permute(0, 3, 1, 2, 4).flatten(2)
    return linear(taps, kernel.flatten(1), bias)


def attend(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> Tensor:
    """`F.scaled_dot_product_attention` of one query (B, H, 1, F), whose own sums depend on how threads share the heads.

    Args:
        keys, values: (B, H, S, F).
        visible: bool, which keys are seen, in a shape that broadcasts to (B, H, 1, S).
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values, visible)
    scores = (keys * query).sum(-1).unsqueeze(2) * query.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1).mT * values).sum(2, keepdim=True)


def elu(x: Tensor) -> Tensor:
    """`F.elu` of (B, C).  PyTorch computes the last of all elements with other instructions, so rows are filled up."""
    columns = x.shape[1]
    return F.elu(F.pad(x, (0, -columns % UNIT)))[:, :columns] if columns % UNIT else F.elu(x)


def by_images(function: Callable[..., ResultT], *batches: Tensor, growth: int = 1) -> ResultT:
    """function(*batches), rounded for each image as if it were alone; it gives a batch or a tuple of batches.

    At most `IMAGES` images are computed at once, and fewer of large ones, so that memory has a bound.  Where PyTorch
    has no oneDNN, images are computed one after the other.

    Args:
        growth: pixels of an image per number of the largest batch, where these are codes.
    """
    if batches[0].device.type != "cpu":
        return function(*batches)
    largest = growth * max(batch[:1].numel() for batch in batches)
    at_once = max(1, min(IMAGES, PIXELS // max(largest, 1))) if torch.backends.mkldnn.is_available() else 1
    with _ConvolveByOneDNN():
        parts = [function(*part) for part in zip(*(batch.split(at_once) for batch in batches), strict=True)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))


class _ConvolveByOneDNN(TorchFunctionMode):
    """Convolutions of float32 by oneDNN, also where PyTorch would take another library."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        suits = torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")
        if function is torch.conv2d and args[0].dtype == torch.float32 and suits:
            return _convolve(*args, **kwargs)
        return function(*args, **kwargs)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """`torch.conv2d`, by oneDNN; `padding` is in pixels."""
    return torch.mkldnn_convolution(x, weight, bias, _pair(padding), _pair(stride), _pair(dilation), groups)
