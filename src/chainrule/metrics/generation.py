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


@torch.no_grad()
def pooled_features(
    images: Tensor,
    network: FeatureNetwork,
    change: Callable[[Tensor], Tensor] = lambda images: images,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """`FeatureNetwork.pooled` of many images, a few at a time: float (N, C), on the CPU.

    Args:
        images: uint8 (N, C, H, W).
        network: what gives the features.
        change: is applied to the images before, uint8 (B, C, H, W) -> the same.
        on_batch: is told the number of images of each batch, when it is done.
    """
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    rows = []
    for part in images.split(BATCH):
        rows.append(network.pooled(change(part).to(device).float() / 255).cpu())
        on_batch(len(part))
    return torch.cat(rows)


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
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if on_batch is not None:
            on_batch(done)

    features, drawn = (pooled_features(images, network, on_batch=tell) for images in (real, generated))
    precision, recall = precision_recall(features, drawn)
    return GenerationQuality(
        frechet=frechet_distance(features, drawn),
        floor=frechet_distance(features, pooled_features(real, network, reconstruct, tell)),
        precision=precision,
        recall=recall,
        features=network.title,
        num_generated=len(generated),
        num_real=len(real),
    )
