"""How a tokenizer uses its codes: share in use, perplexity, bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Codes, CodeSpec


@dataclass(frozen=True)
class CodebookUse:
    """Use of a codebook over a data set.

    grid:             index of the grid, coarse to fine
    depth:            of several codes per position, which one; None: all together
    codebook_size:    K
    share_used:       share of the K entries that occur
    perplexity:       exp of the entropy of the entries' frequencies, 1..K
    perplexity_ratio: perplexity / K; 1 if all entries are equally frequent
    """

    grid: int
    depth: int | None
    codebook_size: int
    share_used: float
    perplexity: float
    perplexity_ratio: float


class CodeCounts:
    """Counts of codes, filled batch by batch."""

    def __init__(self, spec: CodeSpec) -> None:
        self.counts = [torch.zeros(grid.depth, grid.codebook_size, dtype=torch.int64) for grid in spec.grids]

    def add(self, codes: Codes) -> CodeCounts:
        """Counts codes int64 (B, h, w, D) per grid, of any height and width; returns itself."""
        for counts, grid in zip(self.counts, codes, strict=True):
            for depth, row in enumerate(counts):
                row += torch.bincount(grid[..., depth].flatten().cpu(), minlength=len(row))
        return self

    def merge(self, other: CodeCounts) -> None:
        """Adds the counts of other images."""
        for mine, others in zip(self.counts, other.counts, strict=True):
            mine += others

    def use(self) -> tuple[CodebookUse, ...]:
        """Of each grid; where it has several codes per position, then of each of these."""
        found = []
        for index, counts in enumerate(self.counts):
            found.append(_use(index, None, counts.sum(0)))
            if len(counts) > 1:
                found += [_use(index, depth, row) for depth, row in enumerate(counts)]
        return tuple(found)


def _use(grid: int, depth: int | None, counts: Tensor) -> CodebookUse:
    assert counts.sum() > 0
    shares = counts.double() / counts.sum()
    perplexity = torch.special.entr(shares).sum().exp().item()
    size, share_used = len(counts), (counts > 0).double().mean().item()
    return CodebookUse(grid, depth, size, share_used, perplexity, perplexity / size)


def bits_per_image(spec: CodeSpec, codes: Codes) -> float:
    """Bits of the codes of one image, all values being equally long: sum over codes of log2 K.

    Args:
        spec: says K.
        codes: of images of any size that the tokenizer takes.
    """
    grids = zip(codes, spec.grids, strict=True)
    return sum(values[0].numel() * math.log2(grid.codebook_size) for values, grid in grids)
