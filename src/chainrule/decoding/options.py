"""The options of sampling, all in one value: temperature, top-k, top-p, guidance, precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..core import Prior, Runner
from ..core.values import plain
from .guidance import Guided

COLDEST = 1e-6
"""The smallest temperature above 0: a smaller one is hardly another than 0, and logits divided by it overflow."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How codes are drawn; the defaults draw from the model itself.

    temperature: divides the logits; 1 is the model itself, 0 takes the most probable code
    top_k:       keeps the k most probable codes
    top_p:       keeps the fewest codes whose probabilities reach p (Holtzman et al. 2020, arXiv:1904.09751)
    guidance:    the scale of a `GuidedContext`; 1 is no guidance, above 1 draws further towards the label or text
    precision:   of the prior's weights, see `Prior.runner`
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if self.temperature != 0 and not COLDEST <= self.temperature < math.inf:
            raise ValueError(
                f"temperature must be 0, for the most probable code, or a number from {COLDEST}, got {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")

    def runner(self, prior: Prior) -> Runner:
        """The runner of a prior in this precision; with guidance other than 1, its context is a `GuidedContext`."""
        return (prior if self.guidance == 1 else Guided(prior)).runner(self.precision)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, K) -> probabilities (B, K) in float64.

        Raises:
            ValueError: logits that are nan or infinite.
        """
        logits = logits.double()
        if not logits.amax(-1).isfinite().all():
            scale = "" if self.guidance == 1 else f", or the guidance {self.guidance} is too large"
            raise ValueError(f"the model gives logits that are nan or infinite: its weights are damaged{scale}")
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities
