"""Products one after the other for one pixel of a batch of images, in one call of compiled code; without gradients.

A chain reads and writes parts of buffers (B, N).  Each link of it computes

    out <- after(before(x) @ matrix + bias + add)

In a step of a small convolutional network the calls of a library take longer than its arithmetic: `rows.cpp` makes one
call of it, and rounds each image alike in any batch.  The twin in plain PyTorch does the same link by link.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import rows
from .native import Backend
from .scan import lstm_cell

FUNCTIONS = ("none", "relu", "gate", "lstm")


def gate(x: Tensor, dim: int = 1) -> Tensor:
    """tanh of the first half of the channels times sigmoid of the second; tanh a = 2 sigmoid 2a - 1 is faster here."""
    filtered, gated = x.chunk(2, dim)
    return (2 * torch.sigmoid(2 * filtered) - 1) * torch.sigmoid(gated)


@dataclass(frozen=True)
class Part:
    """A part of a buffer.

    buffer: its number in a call
    offset: of the first number of an image, at column 0
    step:   numbers from one column to the next
    """

    buffer: int
    offset: int
    step: int = 0

    def of(self, buffers: Sequence[Tensor], column: int, size: int) -> Tensor:
        """The part (B, size)."""
        return buffers[self.buffer].narrow(1, self.offset + column * self.step, size)


@dataclass(frozen=True, kw_only=True)
class Link:
    """One product.

    x, add, out: E numbers, K numbers, and where the K numbers of the result go, after "gate" K / 2 and after "lstm" the
                 K / 4 states; add may be out
    matrix:      (E, K)
    bias:        (K,)
    before:      of x
    after:       of the result; "lstm" is `scan.lstm_cell`
    cells:       K / 4 numbers, of "lstm" only
    new_cells:   where they go
    """

    x: Part
    out: Part
    matrix: Tensor
    bias: Tensor | None = None
    add: Part | None = None
    before: Literal["none", "relu"] = "none"
    after: Literal["none", "relu", "gate", "lstm"] = "none"
    cells: Part | None = None
    new_cells: Part | None = None


class Chain:
    """Links that are computed one after the other.

    Args:
        links: their matrices and biases are packed here.
        backend: "native", "plain" or None: compiled code for float32 on a CPU, where it can be had.
    """

    def __init__(self, links: Sequence[Link], backend: Backend | None = None) -> None:
        matrix = links[0].matrix
        suits = matrix.is_cpu and matrix.dtype == torch.float32
        self.library = rows.compiled(backend, os.environ.get("CHAINRULE_NATIVE")) if suits else None
        self.links = links
        self.kept = [link.matrix if self.library is None else panels(link.matrix) for link in links]
        self.packed = (rows.Link * len(links))(*map(_pack, links, self.kept))

    def __call__(self, column: int, *buffers: Tensor) -> None:
        """Computes all links at a column; `buffers` are (B, ...) without gaps, and those that links write to change."""
        if self.library is None:
            return self._plain(column, [buffer.flatten(1) for buffer in buffers])
        addresses = (ctypes.c_void_p * len(buffers))(*(buffer.data_ptr() for buffer in buffers))
        strides = (ctypes.c_int64 * len(buffers))(*(buffer.stride(0) for buffer in buffers))
        self.library.run_chain(ctypes.byref(rows.Call(
            len(self.links), len(buffers[0]), column, torch.get_num_threads(),
            *map(ctypes.addressof, (self.packed, addresses, strides)),
        )))  # fmt: skip
        return None

    def _plain(self, column: int, buffers: Sequence[Tensor]) -> None:
        for link, matrix in zip(self.links, self.kept, strict=True):
            (inputs, outputs), bias = matrix.shape, link.bias
            x = link.x.of(buffers, column, inputs)
            x = F.relu(x) if link.before == "relu" else x
            y = rows.matmul(x, matrix, "plain") if bias is None else rows.addmm(bias, x, matrix, "plain")
            y = y if link.add is None else y + link.add.of(buffers, column, outputs)
            if link.cells is not None:
                y, c = lstm_cell(y, link.cells.of(buffers, column, outputs // 4))
                link.new_cells.of(buffers, column, outputs // 4).copy_(c)
            elif link.after != "none":
                y = F.relu(y) if link.after == "relu" else gate(y)
            link.out.of(buffers, column, y.shape[1]).copy_(y)


def panels(matrix: Tensor) -> Tensor:
    """(E, K) with zeros up to whole panels: (K / PANEL, E, PANEL)."""
    return F.pad(matrix, (0, -matrix.shape[1] % rows.PANEL)).unflatten(1, (-1, rows.PANEL)).transpose(0, 1).contiguous()


def _pack(link: Link, matrix: Tensor) -> rows.Link:
    def place(part: Part | None) -> rows.Place:
        return rows.Place(-1, 0, 0) if part is None else rows.Place(part.buffer, part.offset, part.step)

    return rows.Link(
        *map(place, (link.x, link.add, link.out, link.cells, link.new_cells)), *link.matrix.shape,
        FUNCTIONS.index(link.before), FUNCTIONS.index(link.after), matrix.data_ptr(),
        None if link.bias is None else link.bias.data_ptr(),
    )  # fmt: skip
