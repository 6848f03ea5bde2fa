"""Priors over several grids as a chain of priors over one: p(c) = prod_l p(c_l | coarser grids, context).

Level l is any prior over grid l alone; from level 1 on it gets what its conditioner makes of the coarser codes
as `Context.spatial`.  The multi-scale PixelRNN and hierarchical VQ-VAEs are built so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Codes, CodeSpec, Context, Position, Prior, Runner
from ..kernels.rows import by_images


class Cascade(Prior):
    """A chain of priors.

    Args:
        spec: the grids, coarse to fine.
        levels: one prior per grid, over that grid alone, all of the same classes.
        conditioners: one module for each level but the first: codes of all coarser grids -> the level's
            `Context.spatial`, (B, C, H, W) at the size of its grid.
    """

    def __init__(self, spec: CodeSpec, levels: Sequence[Prior], conditioners: Sequence[nn.Module]) -> None:
        super().__init__(spec, levels[0].conditions)
        assert len(levels) == len(spec.grids) == len(conditioners) + 1
        assert all(level.spec.only == grid for level, grid in zip(levels, spec.grids, strict=True))
        assert all(replace(level.conditions, spatial_channels=0) == self.conditions for level in levels)
        self.levels = nn.ModuleList(levels)
        self.conditioners = nn.ModuleList(conditioners)

    def level_context(self, level: int, codes: Sequence[Tensor], context: Context) -> Context:
        """The context of a level; `codes` are the coarser grids."""
        if level == 0:
            return context
        return replace(context, spatial=self.conditioners[level - 1](tuple(codes)))

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        return tuple(
            level((codes[index],), self.level_context(index, codes[:index], context))[0]
            for index, level in enumerate(self.levels)
        )

    def fixed(self, here: Position, codes: Sequence[Tensor]) -> Tensor | None:
        """The code (B,) at a position that the coarser grids decide with certainty, None where they do not."""
        return None

    def runner(self, precision: str = "float32") -> CascadeRunner:
        return CascadeRunner(self, precision)


@dataclass
class CascadeState:
    """What a `CascadeRunner` remembers."""

    t: int
    codes: list[Tensor]  # int64 (B, H, W, D) per grid, zeros where not yet known
    context: Context
    level: Any  # the state of the level in progress


class CascadeRunner(Runner):
    """A chain of priors, one code at a time."""

    def __init__(self, prior: Cascade, precision: str) -> None:
        super().__init__(prior)
        self.levels = [level.runner(precision) for level in prior.levels]

    def start(self, batch_size: int, context: Context) -> CascadeState:
        grids = self.prior.spec.grids
        codes = [torch.zeros(batch_size, *grid.shape, dtype=torch.int64, device=self.device) for grid in grids]
        return CascadeState(0, codes, context, self.levels[0].start(batch_size, context))

    def advance(self, previous: Tensor, state: CascadeState) -> tuple[Tensor, CascadeState]:
        prior = self.prior
        if state.t > 0:
            last = prior.spec.position(state.t - 1)
            state.codes[last.grid][:, last.row, last.column, last.depth] = previous
        here = prior.spec.position(state.t)
        if here.grid > 0 and here.row == here.column == here.depth == 0:
            conditioner = prior.conditioners[here.grid - 1]
            spatial = by_images(lambda *codes: conditioner(codes), *state.codes[: here.grid])
            context = replace(state.context, spatial=spatial)
            state.level = self.levels[here.grid].start(len(previous), context)
        logits, state.level = self.levels[here.grid].advance(previous, state.level)
        state.t += 1
        fixed = prior.fixed(here, state.codes)
        return logits if fixed is None else certain(fixed, logits), state


def certain(codes: Tensor, like: Tensor) -> Tensor:
    """Logits (..., K) of codes (...) of probability 1; finite, so that guidance can compute with them."""
    return torch.full_like(like, -1e4).scatter(-1, codes[..., None], 0.0)
