"""Mixtures of discretised logistics: Salimans et al., "PixelCNN++", arXiv:1701.05517, sections 2.1 and 2.2.

    p(r, g, b) = sum_k pi_k P(r | mu_k, s_k) P(g | mu'_k + a_k r, s'_k) P(b | mu''_k + b_k r + c_k g, s''_k)
    P(v | mu, s) = sigma((v + d - mu) / s) - sigma((v - d - mu) / s),    2 d = distance of two levels in [-1, 1],

where the bins of the first and the last level reach to infinity.  One by one the codes have the conditionals

    p(g | r) = sum_k [pi_k P_k(r) / sum_j pi_j P_j(r)] P_k(g | r),    and p(b | r, g) likewise,

exactly normalised over the levels, so that their product is the mixture's joint likelihood.

Shape letters: D channels (3, or 1 of grey images, without coefficients), M mixtures, K levels, P numbers per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_LOG_SCALE = -7.0


@dataclass
class LogisticMixture:
    """log pi (..., M); means and logarithms of scales (..., D, M); coefficients (..., D, M), None for grey images."""

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor | None

    @classmethod
    def of(cls, numbers: Tensor, depth: int, num_mixtures: int) -> LogisticMixture:
        """What the network gives, (..., P): first the weights, then the parameters of one channel after the other."""
        weights, rest = numbers.split([num_mixtures, numbers.shape[-1] - num_mixtures], -1)
        parts = rest.unflatten(-1, (depth, -1, num_mixtures)).unbind(-2)
        scales = parts[1].clamp(min=MIN_LOG_SCALE)
        return cls(weights.log_softmax(-1), parts[0], scales, parts[2].tanh() if depth > 1 else None)

    def log_mass(self, codes: Tensor, depth: int, levels: Tensor, codebook_size: int) -> Tensor:
        """log P_k of the levels of one channel.

        Args:
            codes: (..., D); only the channels before `depth` are read.
            levels: (..., N), the levels of channel `depth` that are asked for.

        Returns:
            (..., N, M).
        """
        known = codes.to(self.means.dtype) * (2 / (codebook_size - 1)) - 1
        means = self.means[..., depth, :]
        for earlier in range(depth):
            coefficient = self.coefficients[..., depth * (depth - 1) // 2 + earlier, :]
            means = means + coefficient * known[..., earlier, None]
        half = 1 / (codebook_size - 1)
        inverse = torch.exp(-self.log_scales[..., depth, :]).unsqueeze(-2)
        levels = levels.to(means.dtype).unsqueeze(-1)
        centred = levels * (2 * half) - 1 - means.unsqueeze(-2)
        upper, lower = (centred + half) * inverse, (centred - half) * inverse
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)), of which the first and last bins lack factors
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        inside = below + above + torch.log(-torch.expm1(-2 * half * inverse))
        return torch.where(levels == 0, below, torch.where(levels == codebook_size - 1, above, inside))

    def joint(self, codes: Tensor, depth: int, codebook_size: int) -> Tensor:
        """log pi_k + log P_k of the channels before `depth` of codes (..., D): (..., M)."""
        total = self.log_weights
        for earlier in range(depth):
            total = total + self.log_mass(codes, earlier, codes[..., earlier, None], codebook_size)[..., 0, :]
        return total

    def logits(self, codes: Tensor, depth: int, codebook_size: int) -> Tensor:
        """log p of all levels of channel `depth` given the earlier ones in codes (..., D): (..., K)."""
        levels = torch.arange(codebook_size, device=codes.device).expand(*codes.shape[:-1], -1)
        weights = self.joint(codes, depth, codebook_size).log_softmax(-1)
        return torch.logsumexp(weights.unsqueeze(-2) + self.log_mass(codes, depth, levels, codebook_size), -1)
