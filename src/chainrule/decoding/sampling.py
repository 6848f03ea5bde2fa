"""The sampling loop: one code after the other, for every prior.

Each image draws from its own stream of uniform numbers, one per code, turned into a code by the inverse of
the cumulative distribution.  So an image depends on its seed alone: not on its neighbours in the batch, and
not on whether the prior remembers (`step`) or re-reads everything at each code (`Rerun`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import Codes, Context, Runner, select
from ..core.values import as_int
from .options import Sampling

OnCode = Callable[[int, Tensor], None]
"""Called after each code with its index t and all codes (B, T), those after t still 0."""


def image_seeds(seed: int, count: int) -> list[int]:
    """Distinct seeds for the images of one call; image i has the same in every call with this seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (count,), generator=generator).tolist()


def seeds_of(seed: int | Sequence[int], count: int) -> list[int]:
    """The seeds of `count` images: those of `image_seeds`, or the ones that are given, one per image.

    Raises:
        ValueError: another number of seeds, or what is no whole number from 0.
    """
    one = np.ndim(seed) == 0
    given = [as_int(each, "seed") for each in ([seed] if one else seed)]
    if min(given, default=0) < 0 or max(given, default=0) >= 2**63:
        raise ValueError(f"a seed must lie in 0..{2**63 - 1}")
    if not one and len(given) != count:
        raise ValueError(f"{len(given)} seeds were given for {count} images")
    return image_seeds(given[0], count) if one else given


def uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """The uniform numbers of each image, float64 (B, T) in [0, 1)."""
    rows = [torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Inverse of the cumulative distribution: (B, K), (B,) -> int64 (B,)."""
    cumulative = probabilities.cumsum(-1)
    below = cumulative <= (uniform * cumulative[:, -1])[:, None]
    # Rounding may leave the last steps flat: never beyond the last code of positive probability.
    last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(below.sum(-1), last)


@dataclass(frozen=True)
class Known:
    """Codes that are given: they are kept, and the others drawn.

    codes: int64 (B, T), arbitrary where not known.
    mask: bool (T,), which positions are known, the same for all images.
    """

    codes: Tensor
    mask: Tensor


@torch.no_grad()
def sample(
    runner: Runner,
    context: Context,
    seeds: Sequence[int],
    sampling: Sampling = Sampling(),
    known: Known | None = None,
    on_code: OnCode | None = None,
) -> Codes:
    """Draws one image of codes per seed.

    Args:
        runner: of any prior, usually `sampling.runner(prior)`.
        context: of as many images as there are seeds.
        known: codes to keep; those drawn are conditioned on the known ones before them.

    Returns:
        Codes of the prior's `spec`, B = len(seeds).
    """
    spec, batch_size, device = runner.prior.spec, len(seeds), runner.device
    noise = uniforms(seeds, spec.length).to(device)
    codes = torch.zeros(batch_size, spec.length, dtype=torch.int64, device=device)
    fixed = known.mask.tolist() if known is not None else [False] * spec.length
    last = max((t for t, given in enumerate(fixed) if not given), default=-1)
    if known is not None:
        codes[:, known.mask] = known.codes[:, known.mask].to(device)
    state = runner.init_state(batch_size, context)
    previous = codes[:, 0]
    for t in range(last + 1):
        logits, state = runner.step(previous, state)
        if not fixed[t]:
            codes[:, t] = draw(sampling.probabilities(logits), noise[:, t])
        previous = codes[:, t]
        if on_code is not None:
            on_code(t, codes)
    return spec.unflatten(codes)


@dataclass
class RerunState:
    """What `Rerun` remembers."""

    t: int
    codes: Tensor  # (B, T)
    context: Context


class Rerun(Runner):
    """Reads the whole image again at every code: the slow path that the runners of priors are checked against."""

    def start(self, batch_size: int, context: Context) -> RerunState:
        codes = torch.zeros(batch_size, self.prior.spec.length, dtype=torch.int64, device=self.device)
        return RerunState(0, codes, context)

    def advance(self, previous: Tensor, state: RerunState) -> tuple[Tensor, RerunState]:
        spec, t = self.prior.spec, state.t
        if t > 0:
            state.codes[:, t - 1] = previous
        here = spec.position(t)
        logits = self.prior(spec.unflatten(state.codes), state.context)[here.grid]
        state.t += 1
        return logits[:, here.row, here.column, here.depth], state


class Particles:
    """The weights of K candidates for each of B images, in sequential Monte Carlo; see `complete`.

    Args:
        seeds: of the B images.
        count: K.
        length: codes of an image.
    """

    def __init__(self, seeds: Sequence[int], count: int, length: int, device: torch.device) -> None:
        self.noise = uniforms([seed + 1 for seed in seeds], length + 1).to(device)
        self.weights = torch.zeros(len(seeds), count, dtype=torch.float64, device=device)  # log
        self.first = count * torch.arange(len(seeds), device=device)

    def weigh(self, t: int, logits: Tensor, given: Tensor) -> Tensor | None:
        """Takes note of a known code; gives the candidates that go on, int64 (B K,), or None where all do.

        Args:
            t: the index of the code.
            logits: (B K, vocabulary), of each candidate.
            given: int64 (B K,), the known code.
        """
        count = self.weights.shape[1]
        gain = logits.double().log_softmax(-1).gather(-1, given[:, None])
        self.weights = self.weights + gain.view(-1, count)
        normal = self.weights.softmax(-1)
        uneven = (1 / normal.square().sum(-1, keepdim=True)) < count / 2
        if not uneven.any():
            return None
        everyone = torch.arange(count, device=normal.device)
        chosen = torch.where(uneven, _systematic(normal, self.noise[:, t]), everyone)
        self.weights = torch.where(uneven, 0.0, self.weights)
        return (chosen + self.first[:, None]).flatten()

    def choose(self) -> Tensor:
        """One of the final candidates of each image, drawn by weight: int64 (B,) in 0..B K-1."""
        return draw(self.weights.softmax(-1), self.noise[:, -1]) + self.first


@torch.no_grad()
def complete(
    runner: Runner,
    context: Context,
    seeds: Sequence[int],
    known: Known,
    particles: int,
    sampling: Sampling = Sampling(),
    on_code: OnCode | None = None,
) -> Codes:
    """Completion by sequential Monte Carlo: what is drawn agrees with known codes that come later.

    A prior draws an unknown code without having seen the known ones after it.  Here each image keeps
    `particles` candidates; whenever a known code is met, each is weighted by the probability it gave that
    code, and when the weights have become uneven (effective sample size below half) candidates are drawn
    anew in proportion to them, systematically.  One of the final candidates is drawn by weight.
    With particles = 1 this is `sample`.  (Doucet, de Freitas, Gordon 2001: the bootstrap filter.)

    Args:
        known: codes (B, T) and the mask (T,) of those given, B = len(seeds).
        particles: K, candidates per image.

    Returns:
        Codes of the prior's `spec` of B images.
    """
    if particles < 1:
        raise ValueError(f"particles must be at least 1, got {particles}")
    if particles == 1:
        return sample(runner, context, seeds, sampling, known, on_code)
    spec, batch_size, device = runner.prior.spec, len(seeds), runner.device
    candidate_seeds = [one for seed in seeds for one in image_seeds(seed, particles)]
    noise = uniforms(candidate_seeds, spec.length).to(device)
    weights = Particles(seeds, particles, spec.length, device)
    repeat = torch.arange(batch_size, device=device).repeat_interleave(particles)
    given = known.codes.to(device)[repeat]
    codes = torch.where(known.mask.to(device), given, 0)
    fixed = known.mask.tolist()
    context = select(context, repeat)
    state = runner.init_state(batch_size * particles, context)
    previous = codes[:, 0]
    # Until the first unknown code all candidates are equal, and no weight is needed.
    first = fixed.index(False) if False in fixed else spec.length
    for t in range(spec.length):
        logits, state = runner.step(previous, state)
        if not fixed[t]:
            codes[:, t] = draw(sampling.probabilities(logits), noise[:, t])
        elif t > first and (index := weights.weigh(t, logits, codes[:, t])) is not None:
            codes, state = codes[index], select(state, index)
        previous = codes[:, t]
        if on_code is not None:
            on_code(t, codes.view(batch_size, particles, -1)[:, 0])
    return spec.unflatten(codes[weights.choose()])


def _systematic(weights: Tensor, uniform: Tensor) -> Tensor:
    """Systematic resampling: weights (B, K), one uniform number (B,) each -> indices int64 (B, K)."""
    count = weights.shape[1]
    points = (torch.arange(count, dtype=weights.dtype, device=weights.device) + uniform[:, None]) / count
    return torch.searchsorted(weights.cumsum(-1), points).clamp(max=count - 1)
