"""Vector quantization: the nearest code for each vector of a map (van den Oord et al. 2017, arXiv:1711.00937).

    c = argmin_k ||z - e_k||        q = e_c

With metric "cosine", vectors and codes are on the unit sphere (Yu et al. 2021, arXiv:2110.04627).  Gradients pass
straight through: dz = dq.

Shape letters: B batch, C channels of a vector, h w grid, D depth, K codes, N vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._codebook import Codebook, check_codebook, codebook_spread, perplexity


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


def to_vectors(z: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C), at least float32: codes are never chosen in half precision."""
    z = z if z.dtype == torch.float64 else z.float()
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def to_map(vectors: Tensor, like: Tensor) -> Tensor:
    """(B h w, C) -> (B, C, h, w), with B, h, w of `like`."""
    b, _, h, w = like.shape
    return vectors.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of z."""
    return quantized.detach() + (z - z.detach())


class VectorQuantizer(nn.Module):
    """One code per position: the nearest.

    Args:
        codebook_size: K.
        embedding_dim: C, channels of the map.
        metric: "euclidean", or "cosine": vectors and codes are first scaled to length 1, and so is the result.
        beta: weight of the commitment (0.25 in 1711.00937; 0.1 to 2 work alike there).
        legacy_beta: taming-transformers weights the codebook term with beta and the commitment with 1 instead.
        spread: weight of `codebook_spread`, which has the encoder use all codes alike; 0 (the papers) is none.
        learning: `learning`, `decay` and `restart_below` of the `Codebook`.
    """

    def __init__(
        self, codebook_size: int, embedding_dim: int, *, metric: Literal["euclidean", "cosine"] = "euclidean",
        beta: float = 0.25, legacy_beta: bool = False, spread: float = 0.0, **learning: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.metric, self.beta, self.legacy_beta, self.spread = metric, beta, legacy_beta, spread
        self.codebook = Codebook(codebook_size, embedding_dim, unit=metric == "cosine", **learning)
        check_codebook(
            metric=metric, learning=self.codebook.learning, beta=beta, legacy_beta=legacy_beta, spread=spread
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
            quantized = to_map(straight_through(vectors, chosen), z)
            metrics = {"commitment": commitment.detach(), **upkeep(self, self.codebook, vectors, codes)}
        return Quantized(quantized, _grid(codes, z), loss, metrics)

    def _loss(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        codebook = (vectors.detach() - chosen).square().mean()
        commitment = (vectors - chosen.detach()).square().mean()
        return self.beta * codebook + commitment if self.legacy_beta else codebook + self.beta * commitment

    def _scaled(self, z: Tensor) -> Tensor:
        return F.normalize(to_vectors(z), dim=1) if self.metric == "cosine" else to_vectors(z)

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


def upkeep(module: nn.Module, codebook: Codebook, vectors: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """Metrics of a batch; in training mode, of all processes, and the codebook learns."""
    if not module.training:
        return {"perplexity": perplexity(torch.bincount(codes, minlength=codebook.usage.numel()))}
    counts, restarted = codebook.update(vectors, codes)
    return {"perplexity": perplexity(counts), "restarted": restarted.float()}
