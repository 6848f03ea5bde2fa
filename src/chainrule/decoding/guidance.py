"""Classifier-free guidance: Ho and Salimans 2022, arXiv:2207.12598.

A prior is asked twice, with what is wanted (logits c) and with what is to be left behind (u: no class, an empty text,
or a negative text), and a code is drawn from

    u + scale (c - u)                      scale 1: c itself; above 1: further away from u

A model of one stream, text and then image, has no text in its context: there the second stream begins with the codes of
the other text and goes on with the image that is drawn.  Texts are given, not drawn, so only the image is guided.

The rule above is the convention of Parti (arXiv:2206.10789).  Muse and the authors of the method count from 0,
(1 + t) c - t u: their t is scale - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..core import Codes, Context, Grouped, Prior, Runner


@dataclass(frozen=True)
class GuidedContext:
    """What a batch of B images is to be drawn of, and away from: two contexts of B images, of the same fields.

    scale: float (B,), how far; 1 is the prior itself, under the positive context
    negative_text: int64 (B, L), where the first grid of the codes is a text, the one to be left behind; else None
    """

    positive: Context
    negative: Context
    scale: Tensor
    negative_text: Tensor | None = None

    def joined(self) -> Context:
        """One context of 2 B images: image i under the positive context at 2 i, under the negative at 2 i + 1.

        Raises:
            ValueError: a field that only one of them has.
        """
        values = {}
        for f in fields(Context):
            pair = getattr(self.positive, f.name), getattr(self.negative, f.name)
            if (pair[0] is None) != (pair[1] is None):
                raise ValueError(f"guidance needs a {f.name} in the positive and the negative context, or in neither")
            values[f.name] = None if pair[0] is None else interleave(*pair)
        return Context(**values)


def interleave(positive: Tensor, negative: Tensor) -> Tensor:
    """Two tensors (B, ...) -> (2 B, ...), the positive of image i at 2 i, the negative at 2 i + 1."""
    return torch.stack([positive, negative], 1).flatten(0, 1)


class Guided(Prior):
    """A prior under guidance, whose context is a GuidedContext; both evaluations are one, of a batch twice as large.

    Args:
        prior: any.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior.spec, prior.conditions)
        self.prior = prior

    def combine(self, logits: Tensor, scale: Tensor) -> Tensor:
        """(2 B, ...), interleaved, and the scale of each image (B,) -> (B, ...)."""
        positive, negative = logits[::2], logits[1::2]
        return negative + scale.to(logits).view(-1, *[1] * (logits.ndim - 1)) * (positive - negative)

    def forward(self, codes: Codes, context: GuidedContext) -> tuple[Tensor, ...]:
        text, others = context.negative_text, codes
        if text is not None:
            others = text[:, None, :, None], *codes[1:]
        logits = self.prior(tuple(interleave(*pair) for pair in zip(codes, others, strict=True)), context.joined())
        guided = tuple(self.combine(one, context.scale) for one in logits)
        return guided if text is None else (logits[0][::2], *guided[1:])

    def runner(self, precision: str = "float32") -> GuidedRunner:
        return GuidedRunner(self, self.prior.runner(precision))

    def check_context(self, context: GuidedContext, batch_size: int) -> None:
        self.prior.check_context(context.joined(), 2 * batch_size)
        if tuple(context.scale.shape) != (batch_size,):
            raise ValueError(f"scale must be float ({batch_size},), got {tuple(context.scale.shape)}")
        text = context.negative_text
        if text is None:
            return
        if not self.conditions.joint_text:
            raise ValueError("a negative_text is of models whose codes begin with a text; this one's is in the context")
        grid = self.spec.grids[0]
        if text.dtype != torch.int64 or tuple(text.shape) != (batch_size, grid.num_positions):
            raise ValueError(
                f"negative_text must be int64 ({batch_size}, {grid.num_positions}), got {str(text.dtype)[6:]} "
                f"{tuple(text.shape)}"
            )
        if text.numel() and not (int(text.min()) >= 0 and int(text.max()) < grid.codebook_size):
            raise ValueError(f"negative_text must lie in 0..{grid.codebook_size - 1}")


@dataclass
class GuidedState:
    """What a `GuidedRunner` remembers."""

    t: Tensor  # int64 (B,), codes read
    scale: Tensor  # (B,)
    both: Grouped  # the prior's state of 2 B images, see `GuidedContext.joined`
    negative_text: Tensor | None  # (B, L)


class GuidedRunner(Runner):
    """A guided prior, one code at a time.

    Args:
        prior: guided.
        inner: a runner of the prior without guidance.
    """

    prior: Guided

    def __init__(self, prior: Guided, inner: Runner) -> None:
        super().__init__(prior)
        self.inner = inner

    def start(self, batch_size: int, context: GuidedContext) -> GuidedState:
        both = self.inner.start(2 * batch_size, context.joined())
        t = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        return GuidedState(t, context.scale, Grouped(both, 2), context.negative_text)

    def advance(self, previous: Tensor, state: GuidedState) -> tuple[Tensor, GuidedState]:
        t, other, text = state.t, previous, state.negative_text
        if text is not None:
            last = (t - 1).clamp(0, text.shape[1] - 1)
            other = torch.where(t <= text.shape[1], text.gather(1, last[:, None])[:, 0], previous)
        logits, both = self.inner.advance(interleave(previous, other), state.both.state)
        guided = self.prior.combine(logits, state.scale)
        if text is not None:  # which is given, not drawn
            guided = torch.where((t < text.shape[1])[:, None], logits[::2], guided)
        return guided, GuidedState(t + 1, state.scale, Grouped(both, 2), text)
