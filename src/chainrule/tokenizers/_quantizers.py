"""Quantizers: maps of vectors (or logits) to codes and back, usable without any network around them.

    VectorQuantizer     the nearest code: van den Oord et al. 2017 (arXiv:1711.00937); with metric "cosine" on
                        the unit sphere: Yu et al. 2021 (arXiv:2110.04627)
    ResidualQuantizer   D codes per position, each the nearest to what is left: Lee et al. 2022 (arXiv:2203.01941)
    GumbelQuantizer     a relaxed sample of logits: Jang et al. 2016 (arXiv:1611.01144), Ramesh et al. 2021
                        (arXiv:2102.12092)

A codebook is learned in one of two ways.  By loss, with sg the stop-gradient and means over all elements:

    ||sg[z] - e||^2 + beta ||z - sg[e]||^2

By exponential moving averages ("ema", appendix A.1 of 1711.00937), with decay g, where n_k vectors of sum s_k
chose code k in this batch, and only the term with beta is left in the loss:

    N_k <- g N_k + (1 - g) n_k        e_k <- e_k + (1 - g) (s_k - n_k e_k) / N_k

which is the running mean of the papers (its numerator g N_k e_k + (1 - g) s_k is not stored).  N_k is smoothed to
(N_k + eps) / (N + K eps) N.  Gradients pass straight through: dz = dq.

Dead codes are restarted: where the recent use of code k falls below `restart_below` times the mean of all codes, it
becomes a random vector of the batch.  Recent are 20 batches, or as many as bring 20 vectors per code, where that is
more.  (1711.00937 has no restarts; 2203.01941 restarts below N_k = 1, which depends on the size of the batch.)  As all
use starts at 0, the first batches also initialise the codebook.  Under torch.distributed, counts, sums and restart
candidates are summed over all processes, so that all hold the same codebook.

Shape letters: B batch, C channels of a vector, h w grid, D depth, K codes, N vectors.
Deviation from the residual quantizer's published code: one update per batch over all depths, not one per depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
"""Of the smoothed counts."""
WINDOW = 20
"""Batches, or vectors per code, over which use is recent."""
CHUNK = 1 << 26
"""Most distances held at once."""


SPREAD_VECTORS = 2048
"""Of a batch, about as many are looked at by `spread_loss`."""


@dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of a map.

    quantized: (B, C, h, w), the vectors of the codes; gradients pass to the input
    codes:     int64 (B, h, w, D), D = 1 but for the residual quantizer
    loss:      scalar, weighted as the quantizer was told; 0 where it has none
    metrics:   scalars of the batch by name: perplexity 1..K, commitment (mean (z - q)^2, unweighted) or kl, and the
               number of codes restarted in training
    """

    quantized: Tensor
    codes: Tensor
    loss: Tensor
    metrics: dict[str, Tensor]


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
        if codebook_size < 2 or embedding_dim < 1:
            raise ValueError(
                f"a codebook needs at least 2 codes of at least 1 dimension, got {codebook_size} of {embedding_dim}"
            )
        if learning not in ("ema", "loss"):
            raise ValueError(f"learning must be ema or loss, got {learning!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in 0..1, 1 excluded, got {decay}")
        if not 0 <= restart_below < 1:
            raise ValueError(f"restart_below must lie in 0..1, 1 excluded (0: no restarts), got {restart_below}")
        self.learning, self.decay, self.restart_below, self.unit = learning, decay, restart_below, unit
        weight = torch.empty(codebook_size, embedding_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if unit:
            weight = F.normalize(torch.randn(codebook_size, embedding_dim), dim=1)
        if learning == "loss" or as_parameter:
            self.weight = nn.Parameter(weight, requires_grad=learning == "loss")
        else:
            self.register_buffer("weight", weight)
        self.register_buffer("usage", torch.zeros(codebook_size))
        self.register_buffer("recent", torch.zeros(codebook_size))

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


def _vectors(z: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C), at least float32: codes are never chosen in half precision."""
    z = z if z.dtype == torch.float64 else z.float()
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def _map(vectors: Tensor, like: Tensor) -> Tensor:
    """(B h w, C) -> (B, C, h, w), with B, h, w of `like`."""
    b, _, h, w = like.shape
    return vectors.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()


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


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of z."""
    return quantized.detach() + (z - z.detach())


class VectorQuantizer(nn.Module):
    """One code per position: the nearest.

    Args:
        codebook_size: K.
        embedding_dim: C, channels of the map.
        metric: "euclidean", or "cosine": vectors and codes are first scaled to length 1, and so is the result.
        learning: "ema" or "loss", see above.
        beta: weight of the commitment (0.25 in 1711.00937; 0.1 to 2 work alike there).
        legacy_beta: taming-transformers weights the codebook term with beta and the commitment with 1 instead.
        decay: g, of the usage and of the averages.
        restart_below: share of the mean usage below which a code is restarted; 0 is never.
        spread: weight of `spread_loss`, which has the encoder use all codes alike; 0 (the papers) is none.
    """

    def __init__(
        self, codebook_size: int, embedding_dim: int, *, metric: Literal["euclidean", "cosine"] = "euclidean",
        learning: Literal["ema", "loss"] = "ema", beta: float = 0.25, legacy_beta: bool = False, decay: float = 0.99,
        restart_below: float = 0.1, spread: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric must be euclidean or cosine, got {metric!r}")
        if beta < 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        if legacy_beta and learning == "ema":
            raise ValueError("legacy_beta would be ignored: a codebook learned by ema has no codebook loss")
        self.metric, self.beta, self.legacy_beta, self.spread = metric, beta, legacy_beta, spread
        self.codebook = Codebook(
            codebook_size,
            embedding_dim,
            learning=learning,
            decay=decay,
            restart_below=restart_below,
            unit=metric == "cosine",
        )

    def forward(self, z: Tensor) -> Quantized:
        """(B, C, h, w) -> Quantized; in training mode the codebook learns."""
        with torch.autocast(z.device.type, enabled=False):
            vectors = self._scaled(z)
            codes = self.codebook.nearest(vectors)
            chosen = self.codebook.lookup(codes).to(vectors.dtype)
            commitment = (vectors - chosen.detach()).square().mean()
            loss = self.beta * commitment
            if self.codebook.learning == "loss":
                loss = self._loss(vectors, chosen)
            if self.spread and self.training:
                loss = loss + self.spread * codebook_spread(self.codebook, vectors)
            quantized = _map(straight_through(vectors, chosen), z)
            metrics = {"commitment": commitment.detach(), **_upkeep(self, self.codebook, vectors, codes)}
        return Quantized(quantized, _grid(codes, z), loss, metrics)

    def _loss(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        codebook = (vectors.detach() - chosen).square().mean()
        commitment = (vectors - chosen.detach()).square().mean()
        return self.beta * codebook + commitment if self.legacy_beta else codebook + self.beta * commitment

    def _scaled(self, z: Tensor) -> Tensor:
        return F.normalize(_vectors(z), dim=1) if self.metric == "cosine" else _vectors(z)

    def encode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> codes int64 (B, h, w, 1); nothing is learned."""
        with torch.autocast(z.device.type, enabled=False):
            return _grid(self.codebook.nearest(self._scaled(z)), z)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, 1) -> vectors (B, C, h, w)."""
        return self.codebook.lookup(codes.squeeze(-1)).permute(0, 3, 1, 2).contiguous()


def _grid(codes: Tensor, like: Tensor) -> Tensor:
    """(B h w,) -> (B, h, w, 1)."""
    return codes.reshape(like.shape[0], *like.shape[2:], 1)


def _upkeep(module: nn.Module, codebook: Codebook, vectors: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """Metrics of a batch; in training mode, of all processes, and the codebook learns."""
    if not module.training:
        return {"perplexity": perplexity(torch.bincount(codes, minlength=codebook.usage.numel()))}
    counts, restarted = codebook.update(vectors, codes)
    return {"perplexity": perplexity(counts), "restarted": restarted.float()}


class ResidualQuantizer(nn.Module):
    """D codes per position, each the nearest to what the codes before it left: q^d = e_{c_1} + ... + e_{c_d}.

    Learned by ema.  The loss is beta times the mean over depths of mean (z - sg[q^d])^2.

    Args:
        codebook_size: K.
        embedding_dim: C, channels of the map.
        depth: D.
        shared: one codebook for all depths (as in the paper) or one each.
        beta, decay, restart_below, spread: as in VectorQuantizer.
    """

    def __init__(
        self, codebook_size: int, embedding_dim: int, depth: int, *, shared: bool = True, beta: float = 0.25,
        decay: float = 0.99, restart_below: float = 0.1, spread: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if beta < 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        self.depth, self.shared, self.beta, self.spread = depth, shared, beta, spread
        self.codebooks = nn.ModuleList(
            Codebook(codebook_size, embedding_dim, decay=decay, restart_below=restart_below, as_parameter=True)
            for _ in range(1 if shared else depth)
        )

    def codebook(self, depth: int) -> Codebook:
        """The codebook of depth 0..D-1."""
        return self.codebooks[0 if self.shared else depth]

    def forward(self, z: Tensor) -> Quantized:
        """(B, C, h, w) -> Quantized; in training mode the codebooks learn."""
        with torch.autocast(z.device.type, enabled=False):
            vectors = _vectors(z)
            residuals, codes, partial, losses = [], [], torch.zeros_like(vectors), []
            for d in range(self.depth):
                residuals.append(vectors - partial)
                codes.append(self.codebook(d).nearest(residuals[-1]))
                partial = partial + self.codebook(d).lookup(codes[-1]).to(partial.dtype)
                losses.append((vectors - partial).square().mean())
            commitment = torch.stack(losses).mean()
            loss = self.beta * commitment
            if self.spread and self.training:
                spreads = [codebook_spread(self.codebook(d), residuals[d]) for d in range(self.depth)]
                loss = loss + self.spread * torch.stack(spreads).mean()
            metrics: dict[str, Tensor] = {}
            if self.shared:
                metrics = _upkeep(self, self.codebooks[0], torch.cat(residuals), torch.cat(codes))
            else:
                each = [_upkeep(self, self.codebook(d), residuals[d], codes[d]) for d in range(self.depth)]
                metrics = {name: torch.stack([m[name] for m in each]).mean() for name in each[0]}
            metrics["commitment"] = commitment.detach()
            quantized = _map(straight_through(vectors, partial), z)
        return Quantized(quantized, _deep_grid(codes, z), loss, metrics)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> codes int64 (B, h, w, D); nothing is learned."""
        with torch.autocast(z.device.type, enabled=False):
            residual, codes = _vectors(z), []
            for d in range(self.depth):
                codes.append(self.codebook(d).nearest(residual))
                residual = residual - self.codebook(d).lookup(codes[-1]).to(residual.dtype)
        return _deep_grid(codes, z)

    @torch.no_grad()
    def encode_soft(
        self, z: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stochastic codes and soft targets (section 3.2.3 of 2203.01941): p_d(k) = softmax_k(-||r_d - e_k||^2 / T).

        Args:
            z: (B, C, h, w).
            temperature: T > 0 (0.5 in the paper); towards 0 the codes are those of `encode`.
            generator: of the draws, on z's device.

        Returns:
            codes int64 (B, h, w, D), each drawn from p_d, where r_d is what the drawn codes before it left,
            and p (B, h, w, D, K).
        """
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        with torch.autocast(z.device.type, enabled=False):
            residual, codes, targets = _vectors(z), [], []
            for d in range(self.depth):
                targets.append((-self.codebook(d).distances(residual) / temperature).softmax(1))
                codes.append(torch.multinomial(targets[-1], 1, generator=generator).squeeze(1))
                residual = residual - self.codebook(d).lookup(codes[-1]).to(residual.dtype)
        shape = (z.shape[0], *z.shape[2:], self.depth)
        return _deep_grid(codes, z), torch.stack(targets, 1).reshape(*shape, -1)

    def embed_depths(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, d) of the first d <= D depths -> their vectors (B, h, w, d, C), not summed."""
        if codes.shape[-1] > self.depth:
            raise ValueError(f"this quantizer has depth {self.depth}; the codes have depth {codes.shape[-1]}")
        return torch.stack([self.codebook(d).lookup(codes[..., d]) for d in range(codes.shape[-1])], dim=-2)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, d) of the first d <= D depths -> q^d (B, C, h, w)."""
        return self.embed_depths(codes).sum(-2).permute(0, 3, 1, 2).contiguous()


def _deep_grid(codes: list[Tensor], like: Tensor) -> Tensor:
    """D tensors (B h w,) -> (B, h, w, D)."""
    return torch.stack(codes, 1).reshape(like.shape[0], *like.shape[2:], len(codes))


@dataclass(frozen=True)
class Relaxed:
    """A relaxed sample of logits.

    weights: (B, K, h, w), over K of sum 1; one-hot (with the gradient of the relaxed sample) if asked hard
    codes:   int64 (B, h, w, 1), the most probable, without noise
    kl:      scalar, KL(softmax(logits) || uniform) per position in nats, mean over batch and positions
    metrics: perplexity of the codes
    """

    weights: Tensor
    codes: Tensor
    kl: Tensor
    metrics: dict[str, Tensor]


def relax_codes(logits: Tensor, temperature: float, hard: bool, generator: torch.Generator | None = None) -> Relaxed:
    """softmax((logits + Gumbel noise) / temperature) over K of logits (B, K, h, w).

    Args:
        temperature: above 0; towards 0 the sample approaches one-hot.
        hard: one-hot forwards, relaxed backwards (straight-through).
        generator: of the noise, on the logits' device.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        noise = torch.empty_like(logits).uniform_(1e-20, 1, generator=generator).log_().neg_().log_()
        weights = ((logits - noise) / temperature).softmax(1)
        if hard:
            one_hot = torch.zeros_like(weights).scatter_(1, weights.argmax(1, keepdim=True), 1.0)
            weights = straight_through(weights, one_hot)
        logs = logits.log_softmax(1)
        codebook_size = logits.shape[1]
        kl = ((logs.exp() * logs).sum(1) + torch.tensor(float(codebook_size)).log().item()).mean()
        codes = logits.argmax(1)
        metrics = {"perplexity": perplexity(torch.bincount(codes.flatten(), minlength=codebook_size))}
    return Relaxed(weights, codes.unsqueeze(-1), kl, metrics)


class GumbelQuantizer(nn.Module):
    """Codes of logits: in training a relaxed sample of the codebook's vectors, else the most probable one.

    Args:
        codebook_size: K, channels of the logits.
        embedding_dim: C, channels of the result.
        kl_weight: of KL(softmax(logits) || uniform) per position, the loss.
        hard: one-hot samples in training, see `relax_codes`.
    """

    def __init__(self, codebook_size: int, embedding_dim: int, *, kl_weight: float = 1e-8, hard: bool = True) -> None:
        super().__init__()
        if codebook_size < 2 or embedding_dim < 1:
            raise ValueError(
                f"a codebook needs at least 2 codes of at least 1 dimension, got {codebook_size} of {embedding_dim}"
            )
        self.kl_weight, self.hard = kl_weight, hard
        self.weight = nn.Parameter(torch.randn(codebook_size, embedding_dim))

    def forward(self, logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Quantized:
        """(B, K, h, w) -> Quantized; in evaluation mode without noise, and the temperature is of no effect."""
        relaxed = relax_codes(logits, temperature, self.hard, generator)
        if self.training:
            quantized = torch.einsum("bkhw,kc->bchw", relaxed.weights, self.weight.to(relaxed.weights.dtype))
        else:
            quantized = self.embed(relaxed.codes)
        metrics = {"kl": relaxed.kl.detach(), **relaxed.metrics}
        return Quantized(quantized, relaxed.codes, self.kl_weight * relaxed.kl, metrics)

    def encode(self, logits: Tensor) -> Tensor:
        """(B, K, h, w) -> codes int64 (B, h, w, 1), the most probable."""
        return logits.argmax(1).unsqueeze(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, 1) -> vectors (B, C, h, w)."""
        return F.embedding(codes.squeeze(-1), self.weight).permute(0, 3, 1, 2).contiguous()
