"""Classifier-free guidance: Ho and Salimans 2022, arXiv:2207.12598.

A prior is asked twice, with what is wanted (logits c) and with what is to be left behind (u: no class, an empty text,
or a negative text), and a code is drawn from

    u + scale (c - u)                      scale 1: c itself; above 1: further away from u

That is the convention of Parti (arXiv:2206.10789).  Muse and the authors of the method count from 0, (1 + t) c - t u:
their t is scale - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..core import Codes, Context, Prior, select


@dataclass(frozen=True)
class GuidedContext:
    """What a batch of B images is to be drawn of, and away from: two contexts of B images, of the same fields."""

    positive: Context
    negative: Context

    def select(self, index: Tensor) -> GuidedContext:
        """The contexts of the images `index`, an int64 (N,) tensor of batch positions."""
        return GuidedContext(self.positive.select(index), self.negative.select(index))

    def to(self, device) -> GuidedContext:
        return GuidedContext(self.positive.to(device), self.negative.to(device))

    def joined(self) -> Context:
        """One context of 2 B images, the positive before the negative.

        Raises:
            ValueError: a field that only one of them has.
        """
        values = {}
        for f in fields(Context):
            pair = getattr(self.positive, f.name), getattr(self.negative, f.name)
            if (pair[0] is None) != (pair[1] is None):
                raise ValueError(f"guidance needs a {f.name} in the positive and the negative context, or in neither")
            values[f.name] = None if pair[0] is None else torch.cat(pair)
        return Context(**values)


@dataclass
class GuidedState:
    """What `Guided.step` remembers."""

    num_images: int  # B
    both: Any  # the prior's state of 2 B images, as `GuidedContext.joined` orders them

    def select(self, index: Tensor) -> GuidedState:
        return GuidedState(len(index), select(self.both, torch.cat([index, index + self.num_images])))


class Guided(Prior):
    """A prior under guidance, whose context is a GuidedContext; both evaluations are one, of a batch twice as large.

    Args:
        prior: any.
        scale: 1 is the prior itself, under the positive context.
    """

    def __init__(self, prior: Prior, scale: float) -> None:
        super().__init__()
        self.prior, self.scale = prior, scale
        self.spec, self.num_classes, self.null_label = prior.spec, prior.num_classes, prior.null_label

    def combine(self, logits: Tensor) -> Tensor:
        """(2 B, ...) -> (B, ...)."""
        positive, negative = logits.chunk(2)
        return negative + self.scale * (positive - negative)

    def forward(self, codes: Codes, context: GuidedContext) -> tuple[Tensor, ...]:
        twice = tuple(torch.cat([grid, grid]) for grid in codes)
        return tuple(self.combine(logits) for logits in self.prior(twice, context.joined()))

    def init_state(self, batch_size: int, context: GuidedContext) -> GuidedState:
        return GuidedState(batch_size, self.prior.init_state(2 * batch_size, context.joined()))

    def step(self, previous: Tensor, state: GuidedState) -> tuple[Tensor, GuidedState]:
        logits, state.both = self.prior.step(previous.repeat(2), state.both)
        return self.combine(logits), state

    def check_context(self, context: GuidedContext, batch_size: int) -> None:
        self.prior.check_context(context.joined(), 2 * batch_size)
