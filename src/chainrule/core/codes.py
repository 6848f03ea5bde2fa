"""Codes and their specification: what a tokenizer emits and a prior models.

An image becomes a coarse-to-fine tuple of grids of integers.  The order in which a prior factorises
them is fixed here, once, for every system: grids from coarse to fine, raster order inside a grid,
depth innermost::

    RGB pixels         one grid   (H, W, 3)      R, G, B of a pixel in turn
    VQ-VAE, VQGAN      one grid   (h, w, 1)
    VQ-VAE-2           two grids  (h, w, 1), (2h, 2w, 1)
    RQ-VAE             one grid   (h, w, D)
    DALL-E             two grids  (1, L, 1) of text tokens, then (h, w, 1)

Shape letters: B batch, H height, W width, D depth (codes per position), T codes in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import MAX_SIZE, check_range

MAX_POSITIONS = 1 << 24
"""Codes of a grid: pixels in colour of an image of 2364 x 2364."""
MAX_GRIDS = 64

Codes = tuple[Tensor, ...]
"""Coarse-to-fine tuple of int64 grids, each (B, H, W, D)."""


@dataclass(frozen=True)
class GridSpec:
    """One grid of codes: its shape, and the number of values each code can take."""

    height: int
    width: int
    depth: int
    codebook_size: int

    def __post_init__(self) -> None:
        check_range(self, 1, MAX_SIZE, "height", "width", "depth")
        check_range(self, 2, MAX_SIZE, "codebook_size")
        if self.num_positions > MAX_POSITIONS:
            raise ValueError(f"a grid has at most {MAX_POSITIONS:,} codes, got {self}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, depth)."""
        return self.height, self.width, self.depth

    @property
    def num_positions(self) -> int:
        """Number of codes of the grid."""
        return self.height * self.width * self.depth


@dataclass(frozen=True)
class Position:
    """Where the t-th code of an image stands."""

    grid: int
    row: int
    column: int
    depth: int


@dataclass(frozen=True)
class CodeSpec:
    """Shapes and codebook sizes of all grids of an image, coarse to fine.

    Examples:
        >>> spec = CodeSpec((GridSpec(8, 8, 1, 256), GridSpec(16, 16, 1, 256)))  # as in VQ-VAE-2
        >>> spec.length
        320
        >>> spec.position(64)
        Position(grid=1, row=0, column=0, depth=0)
    """

    grids: tuple[GridSpec, ...]

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("a CodeSpec needs at least one grid")
        if len(self.grids) > MAX_GRIDS:
            raise ValueError(f"a CodeSpec has at most {MAX_GRIDS} grids, got {len(self.grids)}")

    @classmethod
    def single(cls, height: int, width: int, depth: int, codebook_size: int) -> CodeSpec:
        """The specification of one grid."""
        return cls((GridSpec(height, width, depth, codebook_size),))

    @property
    def length(self) -> int:
        """T, the number of codes of one image, over all grids."""
        return sum(grid.num_positions for grid in self.grids)

    @property
    def only(self) -> GridSpec:
        """The grid, where a model needs exactly one.

        Raises:
            ValueError: with more than one grid.
        """
        if len(self.grids) != 1:
            raise ValueError(f"this model needs codes of exactly one grid; this tokenizer gives {len(self.grids)}")
        return self.grids[0]

    def position(self, t: int) -> Position:
        """The position of the t-th code, 0 <= t < T."""
        assert 0 <= t < self.length, t
        for index, grid in enumerate(self.grids):
            if t < grid.num_positions:
                pixel, depth = divmod(t, grid.depth)
                row, column = divmod(pixel, grid.width)
                return Position(index, row, column, depth)
            t -= grid.num_positions
        raise AssertionError

    def flatten(self, codes: Codes) -> Tensor:
        """Codes -> (B, T) in the order of the factorisation."""
        return torch.cat([grid.flatten(1) for grid in codes], dim=1)

    def unflatten(self, flat: Tensor) -> Codes:
        """(B, T) -> Codes, the inverse of `flatten`."""
        parts = flat.split([grid.num_positions for grid in self.grids], dim=1)
        return tuple(part.reshape(-1, *grid.shape) for part, grid in zip(parts, self.grids, strict=True))

    def check(self, codes: Sequence[Tensor]) -> None:
        """Raises ValueError unless `codes` has the grids, shapes, type and range of this specification."""
        if len(codes) != len(self.grids):
            raise ValueError(f"expected {len(self.grids)} grids of codes, got {len(codes)}")
        for index, (tensor, grid) in enumerate(zip(codes, self.grids, strict=True)):
            if tensor.dtype != torch.int64 or tuple(tensor.shape[1:]) != grid.shape or tensor.ndim != 4:
                raise ValueError(
                    f"grid {index} of the codes must be int64 (B, {grid.height}, {grid.width}, {grid.depth}), "
                    f"got {tensor.dtype} {tuple(tensor.shape)}"
                )
            if tensor.numel() and not (int(tensor.min()) >= 0 and int(tensor.max()) < grid.codebook_size):
                raise ValueError(
                    f"grid {index} of the codes must lie in 0..{grid.codebook_size - 1}, "
                    f"got {int(tensor.min())}..{int(tensor.max())}"
                )

    def to_dict(self) -> list[list[int]]:
        """A plain value for YAML: one [height, width, depth, codebook_size] per grid."""
        return [[*grid.shape, grid.codebook_size] for grid in self.grids]

    @classmethod
    def from_dict(cls, value: Sequence[Sequence[int]]) -> CodeSpec:
        """The specification from a list of (height, width, depth, codebook_size), as a saved model has it.

        Raises:
            ValueError: another number of values, or values out of range.
        """
        if any(len(grid) != 4 for grid in value):
            raise ValueError(f"a grid of codes is a list of height, width, depth and codebook size, got {value!r:.80}")
        return cls(tuple(GridSpec(*grid) for grid in value))
