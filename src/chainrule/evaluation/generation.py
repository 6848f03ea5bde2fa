"""How good and how varied generated images are, beside images of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import shared
from ..scorers.features import FeatureNetwork
from .frechet import Gaussian, frechet_standard_error, precision_recall

BATCH = 32
"""Images whose features are computed at once: they are enlarged, so this is what memory depends on."""


@dataclass(frozen=True)
class GenerationQuality:
    """Figures of generated images, comparable between equally many images with the same features.

    frechet:           Fréchet distance of generated and real images
    floor:             Fréchet distance of the real images and their reconstructions: what the tokenizer alone costs
    precision, recall: see `precision_recall`
    features:          the title of the network that gives the features
    num_generated, num_real: number of images
    frechet_standard_error: of `frechet`, over other samples of the same model; None for fewer than 20 samples
    """

    frechet: float
    floor: float
    precision: float
    recall: float
    features: str
    num_generated: int
    num_real: int
    frechet_standard_error: float | None = None


@torch.no_grad()
def pooled_features(
    images: Tensor,
    network: FeatureNetwork,
    change: Callable[[Tensor], Tensor] = lambda images: images,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """`FeatureNetwork.pooled` of many images, a few at a time: float (N, C), on the CPU; joined processes share them.

    Args:
        images: uint8 (N, C, H, W).
        network: on any device.
        change: applied to each part of the images first, uint8 (B, C, H, W) -> the same.
        on_batch: called with the number of images done so far.
    """
    done = 0

    def measure(part: Tensor) -> Tensor:
        nonlocal done
        found = network.pooled(change(part).to(network.device).float() / 255).cpu()
        on_batch(done := done + len(part))
        return found

    return torch.cat(shared(measure, images.split(BATCH)))


def generation_quality(real: Tensor, generated: Tensor, reconstructed: Tensor, features: str) -> GenerationQuality:
    """Compares generated images with real ones by their pooled features.

    Args:
        real, generated: float (N, C) and (M, C), see `pooled_features`.
        reconstructed: features of the tokenizer's reconstructions of the real images, (N, C).
        features: the title of their network.

    Raises:
        ValueError: features of two widths, or fewer than 4 images of a kind.
    """
    precision, recall = precision_recall(real, generated)
    gaussian = Gaussian.of(real)
    frechet, floor = shared(lambda features: gaussian.distance(Gaussian.of(features)), [generated, reconstructed])
    error = frechet_standard_error(gaussian, generated) if min(len(real), len(generated)) >= 20 else None
    return GenerationQuality(
        frechet=frechet, floor=floor, precision=precision, recall=recall, features=features,
        num_generated=len(generated), num_real=len(real), frechet_standard_error=error,
    )  # fmt: skip
