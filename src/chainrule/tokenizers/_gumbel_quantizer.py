"""Codes of logits by the Gumbel-softmax (Jang et al. 2016, arXiv:1611.01144; Ramesh et al. 2021, arXiv:2102.12092).

    w = softmax((logits + g) / T),  g standard Gumbel noise        q = sum_k w_k e_k

Shape letters: B batch, C channels of a vector, h w grid, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._codebook import check_codebook, perplexity
from ._vector_quantizer import Quantized, straight_through


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
        check_codebook(codebook_size=codebook_size, embedding_dim=embedding_dim, kl_weight=kl_weight)
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
