"""Distances of two sets of images by their pooled features (`FeatureNetwork.pooled`).

A Fréchet distance is named after its features: "Fréchet distance, EfficientNet-Lite0 features".  FID is the one with
Inception-V3 features; its numbers cannot be compared with others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import shared

CHUNK = 1024
"""Rows of a matrix of distances that are held at once."""


@dataclass(frozen=True)
class Gaussian:
    """Mean (C,) and a factor F (R, C) of the covariance F^T F of features, in float64.

    A few images need no matrix of C x C: their centred features are such a factor.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """The one fitted to features (N, C), N at least 2; its covariance is unbiased."""
        features = features.double()
        mean = features.mean(0)
        if len(features) > len(mean):
            return cls.with_covariance(mean, torch.cov(features.T))
        return cls(mean, (features - mean) / (len(features) - 1) ** 0.5)

    @classmethod
    def with_covariance(cls, mean: Tensor, covariance: Tensor) -> Gaussian:
        """The one with this mean (C,) and covariance (C, C)."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(mean.double(), (vectors * values.clamp(min=0).sqrt()).T)

    @property
    def covariance(self) -> Tensor:
        """(C, C)."""
        return self.factor.T @ self.factor

    def distance(self, other: Gaussian) -> float:
        """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)); raises ValueError for features of two widths.

        With S = F^T F, the trace of (S_a S_b)^(1/2) is the sum of the singular values of F_a F_b^T.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features of two widths, {len(self.mean)} and {len(other.mean)}, have no distance")
        traces = self.factor.square().sum() + other.factor.square().sum()
        overlap = torch.linalg.svdvals(self.factor @ other.factor.T).sum()
        return ((self.mean - other.mean).square().sum() + traces - 2 * overlap).clamp(min=0).item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017, arXiv:1706.08500).

    With few images it is too large: compare figures of equally many.

    Args:
        a, b: float (N, C) and (M, C).

    Raises:
        ValueError: fewer than two images in a set.
    """
    _check(a, b, 2)
    return Gaussian.of(a).distance(Gaussian.of(b))


def frechet_standard_error(real: Gaussian, generated: Tensor, groups: int = 10) -> float:
    """Standard error of a Fréchet distance over other samples of the same model: the jackknife (Efron 1982) with the
    generated images in groups, each left out once; joined processes share the groups.

    Args:
        real: of the features of real images.
        generated: float (M, C), M at least 2 * groups.
    """
    left_out = torch.arange(len(generated)) % groups
    values = shared(lambda group: real.distance(Gaussian.of(generated[left_out != group])), range(groups))
    return ((groups - 1) * torch.tensor(values, dtype=torch.float64).var(correction=0)).sqrt().item()


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall of generated images (Kynkäänniemi et al. 2019, arXiv:1904.06991).

    A set covers what is no farther from one of its members than that member's k-th nearest neighbour in the set.
    Joined processes share the work.

    Args:
        real, generated: features, float (N, C) and (M, C).
        k: the paper's 3.

    Returns:
        precision: share of the generated that the real cover (how good they are);
        recall: share of the real that the generated cover (how varied they are).

    Raises:
        ValueError: k or fewer images in a set.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    _check(real, generated, k + 1)
    real, generated = real.double(), generated.double()
    precision, recall = shared(lambda sets: _covered(*sets, k), [(generated, real), (real, generated)])
    return precision, recall


def _covered(points: Tensor, members: Tensor, k: int) -> float:
    radii = torch.cat([torch.cdist(part, members).kthvalue(k + 1, dim=1).values for part in members.split(CHUNK)])
    inside = [(torch.cdist(part, members) <= radii).any(1) for part in points.split(CHUNK)]
    return torch.cat(inside).double().mean().item()


def _check(a: Tensor, b: Tensor, at_least: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, C) and (M, C), got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < at_least:
        raise ValueError(f"at least {at_least} images of each kind are needed, got {len(a)} and {len(b)}")
