"""A codebook: K vectors, how they are learned, and how codes that die are restarted.

A codebook is learned in one of two ways.  By loss, with sg the stop-gradient and means over all elements:

    ||sg[z] - e||^2 + beta ||z - sg[e]||^2

By exponential moving averages ("ema", van den Oord et al. 2017, arXiv:1711.00937, appendix A.1), with decay g, where
n_k vectors of sum s_k chose code k in this batch, and only the term with beta is left in the loss:

    N_k <- g N_k + (1 - g) n_k        e_k <- e_k + (1 - g) (s_k - n_k e_k) / N_k

This is the running mean of the paper (its numerator g N_k e_k + (1 - g) s_k is not stored).  N_k is smoothed to
(N_k + eps) / (N + K eps) N.

A dead code is restarted: where its recent use falls below `restart_below` times the mean of all codes, it becomes a
random vector of the batch.  Recent are 20 batches, or as many as bring 20 vectors per code, where that is more.
(1711.00937 has no restarts; Lee et al. 2022, arXiv:2203.01941, restarts below N_k = 1, which depends on the size of the
batch.)  As all use starts at 0, the first batches also initialise the codebook.  Under torch.distributed, counts, sums
and restart candidates are summed over all processes, so that all hold the same codebook.

Shape letters: C channels of a vector, K codes, N vectors.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.building import constant
from ..core.checks import MAX_SIZE, check_range, check_shares

EPSILON = 1e-5
"""Added to the smoothed counts."""
WINDOW = 20
"""Batches, or vectors per code, over which use is recent."""
CHUNK = 1 << 26
"""The most distances that are held at once."""
SPREAD_VECTORS = 2048
"""The number of vectors of a batch, about, that `spread_loss` looks at."""


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of a histogram of codes, (K,) -> scalar in 1..K."""
    share = counts.double() / counts.sum().clamp_min(1)
    return torch.special.entr(share).sum().exp().float()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; nothing happens in a single one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def track_use(recent: Tensor, counts: Tensor) -> None:
    """Moves the recent use of codes (K,) towards the counts (K,) of a batch, in place."""
    recent.lerp_(counts, counts.mean().clamp_max(1.0) / WINDOW)


NO_OPTIONS = {
    "codebook_size": 2, "embedding_dim": 1, "learning": "loss", "metric": "euclidean", "legacy_beta": False, "beta": 0,
    "spread": 0, "kl_weight": 0, "decay": 0, "restart_below": 0,
}  # fmt: skip
"""What `check_codebook` takes for options that are not given."""


def check_codebook(**options: Any) -> None:
    """Checks options of a quantizer, as many as are given; others are of no effect.

    Raises:
        ValueError: one is out of its range, or would be ignored.
    """
    given = SimpleNamespace(**(NO_OPTIONS | options))
    sizes = given.codebook_size if isinstance(given.codebook_size, tuple) else (given.codebook_size,)
    if not (min(sizes) >= 2 and max(sizes) <= MAX_SIZE and 1 <= given.embedding_dim <= MAX_SIZE):
        raise ValueError(
            f"a codebook needs at least 2 codes of at least 1 dimension, and at most {MAX_SIZE} of each, "
            f"got {given.codebook_size} of {given.embedding_dim}"
        )
    for name, values in {"learning": ("ema", "loss"), "metric": ("euclidean", "cosine")}.items():
        if getattr(given, name) not in values:
            raise ValueError(f"{name} must be {' or '.join(values)}, got {getattr(given, name)!r}")
    check_range(given, 0, math.inf, "beta", "spread", "kl_weight")
    check_shares(given, "decay", "restart_below")
    if given.legacy_beta and given.learning == "ema":
        raise ValueError("legacy_beta would be ignored: a codebook learned by ema has no codebook loss")


class Codebook(nn.Module):
    """K vectors, their use, and their upkeep.

    Attributes:
        weight: (K, C), a parameter if learned by loss; else a buffer, or (`as_parameter`) a parameter without gradient,
            which optimizers leave alone and counts of parameters include.
        usage: (K,), N_k, in vectors per batch.
        recent: (K,), the same over the last batches only.
    """

    def __init__(
        self, codebook_size: int, embedding_dim: int, *, learning: Literal["ema", "loss"] = "ema", decay: float = 0.99,
        restart_below: float = 0.1, unit: bool = False, as_parameter: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_codebook(
            codebook_size=codebook_size, embedding_dim=embedding_dim, learning=learning, decay=decay,
            restart_below=restart_below,
        )  # fmt: skip
        self.learning, self.decay, self.restart_below, self.unit = learning, decay, restart_below, unit
        weight = torch.empty(codebook_size, embedding_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if unit:
            weight = constant(weight.shape, lambda: F.normalize(torch.randn(codebook_size, embedding_dim), dim=1))
        if learning == "loss" or as_parameter:
            self.weight = nn.Parameter(weight, requires_grad=learning == "loss")
        else:
            self.register_buffer("weight", weight)
        self.register_buffer("usage", torch.zeros(codebook_size))
        self.register_buffer("recent", torch.zeros(codebook_size))

    @property
    def is_shardable(self) -> bool:
        """Whether `update` may run while processes keep parts of the weights: it must not write into a parameter."""
        return not isinstance(self.weight, nn.Parameter)

    def vectors(self) -> Tensor:
        """The codes (K, C), of length 1 if `unit`; without gradient."""
        weight = self.weight.detach()
        return F.normalize(weight, dim=1) if self.unit else weight

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared distances (N, K) of vectors (N, C), but for rounding never below 0."""
        codes = self.vectors().to(vectors.dtype, copy=vectors.requires_grad)  # `update` comes before the backward pass
        squares = vectors.square().sum(1, keepdim=True) + codes.square().sum(1)
        return torch.addmm(squares, vectors, codes.T, alpha=-2)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Codes int64 (N,) nearest to vectors (N, C); the first of equals."""
        rows = max(1, CHUNK // self.usage.numel())
        return torch.cat([self.distances(part).argmin(1) for part in vectors.detach().split(rows)])

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes of any shape -> vectors (..., C); with gradient if learned by loss."""
        vectors = F.embedding(codes, self.weight)
        return F.normalize(vectors, dim=-1) if self.unit else vectors

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Learns from a training batch: usage, averages, restarts.

        Args:
            vectors: (N, C).
            codes: int64 (N,), what they chose.

        Returns:
            counts (K,) of the batch, and the number of codes restarted.
        """
        vectors = vectors.detach().to(self.weight.dtype)
        counts = torch.zeros_like(self.usage).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
        sum_over_processes(counts)
        self.usage.lerp_(counts, 1 - self.decay)
        if self.learning == "ema":
            sums = sum_over_processes(torch.zeros_like(self.weight).index_add_(0, codes, vectors))
            total = self.usage.sum()
            smoothed = (self.usage + EPSILON) * (total / (total + self.usage.numel() * EPSILON))
            step = (1 - self.decay) * (sums - counts[:, None] * self.weight)
            self.weight += step / smoothed.clamp_min(EPSILON**2)[:, None]
            if self.unit:
                self.weight.copy_(F.normalize(self.weight, dim=1))
        track_use(self.recent, counts)
        dead = self.recent < self.restart_below * self.recent.mean()
        if self.restart_below and dead.any():
            self.weight[dead] = _random_vectors(vectors, int(dead.sum()))
            self.usage[dead] = 2 * self.restart_below * self.usage.mean()
            self.recent[dead] = 2 * self.restart_below * self.recent.mean()
        return counts, dead.sum()


def _random_vectors(vectors: Tensor, count: int) -> Tensor:
    """`count` of the vectors (N, C) of all processes, each value once while there are others: (count, C)."""
    number, rank = 1, 0
    if dist.is_available() and dist.is_initialized():
        number, rank = dist.get_world_size(), dist.get_rank()
    # Flat areas of images give equal vectors, of which a codebook needs one: equal vectors have equal projections.
    projection = (vectors * torch.randn_like(vectors[0])).sum(1)
    ordered, order = projection.sort()
    order = order[torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]])]
    order = order[torch.randperm(len(order), device=order.device)]
    chosen = torch.zeros(count, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    mine = torch.arange(rank, count, number, device=vectors.device)
    chosen[mine] = vectors[order[torch.arange(len(mine), device=order.device) % len(order)]]
    return sum_over_processes(chosen)


def spread_loss(logits: Tensor) -> Tensor:
    """How far soft choices of codes are from using all codes alike: log K - H(mean_n softmax(l_n)), nats, scalar >= 0.

    Flat areas, which else all choose one code, are pushed to choose different ones by what surrounds them.  (This is
    one half of the entropy penalty of Yu et al. 2024, arXiv:2310.05737; the other half, which makes each choice sure,
    is the work of the commitment, or of the temperature, here.)

    Args:
        logits: l, (N, K); of more than SPREAD_VECTORS rows, every few are taken.
    """
    mean = logits[:: max(1, len(logits) // SPREAD_VECTORS)].softmax(1).mean(0)
    return math.log(len(mean)) + (mean * (mean + 1e-10).log()).sum()  # 1e-10: the gradient at 0 is finite


def codebook_spread(codebook: Codebook, vectors: Tensor) -> Tensor:
    """`spread_loss` of vectors (N, C) with l = -||z - e||^2 / T, T the mean squared distance to the nearest code."""
    distances = codebook.distances(vectors[:: max(1, len(vectors) // SPREAD_VECTORS)])
    return spread_loss(-distances / distances.detach().amin(1).mean().clamp_min(EPSILON))
