"""Products and convolutions that round an image alike alone and in any batch.

Libraries choose their instructions by the shape of a product: MKL adds in another order where a thread has 1 to 3 rows,
and PyTorch takes another convolution for one small image than for two.  A code whose uniform number lies near the
border between two codes then falls otherwise.  Here products have a multiple of `ROWS` rows, and networks over whole
images read one image at a time.

Measured for 1 and 2 threads, inputs in multiples of 16 features or at least 16 outputs.  Very small layers of odd
sizes, and 3 or more threads that share fewer than 32 outputs each, may still round by the batch.  This holds on a CPU;
on other devices a batch may change the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4
UNIT = 32
"""Numbers that PyTorch computes at once in elementwise functions."""
ResultT = TypeVar("ResultT", Tensor, tuple[Tensor, ...])


def by_rows(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """function(*batches), computed with a multiple of `ROWS` rows; rows of zeros are added and left out again."""
    rows = len(batches[0])
    if rows % ROWS == 0:
        return function(*batches)
    padded = [F.pad(batch, (0, 0) * (batch.ndim - 1) + (0, -rows % ROWS)) for batch in batches]
    return function(*padded)[:rows]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of (..., E)."""
    return by_rows(lambda x: F.linear(x, weight, bias), x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def addmm(add: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """`torch.addmm` of a bias (K,) or a batch (B, K), a batch (B, E) and a matrix (E, K)."""
    if add.ndim == 1:
        return by_rows(lambda x: torch.addmm(add, x, matrix), x)
    return by_rows(lambda add, x: torch.addmm(add, x, matrix), add, x)


def matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """x (..., E) @ matrix (E, K)."""
    return by_rows(lambda x: x @ matrix, x.flatten(0, -2)).unflatten(0, x.shape[:-1])


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


def by_images(function: Callable[..., ResultT], *batches: Tensor) -> ResultT:
    """function(*batches), computed for one image after the other; it gives a batch or a tuple of batches."""
    if len(batches[0]) <= 1 or batches[0].device.type != "cpu":
        return function(*batches)
    parts = [function(*image) for image in zip(*(batch.split(1) for batch in batches), strict=True)]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))
