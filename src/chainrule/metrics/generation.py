"""How good and how varied generated images are, beside images of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .features import FeatureNetwork
from .frechet import frechet_distance, precision_recall

BATCH = 32
"""Images whose features are computed at once: they are enlarged, so this is what memory depends on."""


@dataclass(frozen=True)
class GenerationQuality:
    """Figures of generated images; of equally many, and with the same features, they can be compared.

    frechet:           Fréchet distance of generated and real images
    floor:             of the reconstructions of the real ones: what the tokenizer alone costs
    precision, recall: see `precision_recall`
    features:          what all of them are made of
    num_generated, num_real: number of images
    """

    frechet: float
    floor: float
    precision: float
    recall: float
    features: str
    num_generated: int
    num_real: int


def generation_quality(
    real: Tensor,
    generated: Tensor,
    reconstruct: Callable[[Tensor], Tensor],
    network: FeatureNetwork,
    on_batch: Callable[[int], object] | None = None,
) -> GenerationQuality:
    """Compares generated images with real ones.

    Args:
        real, generated: uint8 (N, C, H, W) and (M, C, H, W), of one shape.
        reconstruct: decode(encode(images)) of the tokenizer, uint8 (B, C, H, W) -> the same.
        network: its pooled features are compared.
        on_batch: is told the number of images done, of 2 N + M.

    Raises:
        ValueError: images of two shapes, or fewer than 4 of a kind.
    """
    if real.dtype != torch.uint8 or generated.dtype != torch.uint8 or real.shape[1:] != generated.shape[1:]:
        raise ValueError(
            f"real and generated images must be uint8 of one shape, got {str(real.dtype)[6:]} {tuple(real.shape)} and "
            f"{str(generated.dtype)[6:]} {tuple(generated.shape)}"
        )
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    done = 0

    @torch.no_grad()
    def pooled(images: Tensor, change: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        nonlocal done
        rows = []
        for part in images.split(BATCH):
            rows.append(network.pooled(change(part).to(device).float() / 255).cpu())
            done += len(part)
            if on_batch is not None:
                on_batch(done)
        return torch.cat(rows)

    features, drawn = pooled(real), pooled(generated)
    precision, recall = precision_recall(features, drawn)
    return GenerationQuality(
        frechet=frechet_distance(features, drawn),
        floor=frechet_distance(features, pooled(real, reconstruct)),
        precision=precision,
        recall=recall,
        features=network.title,
        num_generated=len(generated),
        num_real=len(real),
    )
