"""Images that a prior draws while it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...decoding import image_seeds
from ...pipeline import Pipeline
from ...processes import shared, shares

IMAGES = 16


def draw_preview(pipeline: Pipeline, texts: Sequence[str] | None, images: Tensor, seed: int) -> Tensor:
    """Images uint8 (N, C, H, W), of the classes in turn, of the first texts or from the first images, where the model
    draws from an image; the processes share the work."""
    count = IMAGES if texts is None else len(texts[:IMAGES])
    label = torch.arange(count) % pipeline.num_classes if pipeline.num_classes else None
    seeds = image_seeds(seed, count)

    def draw(part: range) -> Tensor:
        where = slice(part.start, part.stop)
        given = {"label": None if label is None else label[where], "text": None if texts is None else texts[where]}
        prefix = pipeline.own_prefix(images[torch.tensor(part) % len(images)])
        return pipeline.sample(len(part), seed=seeds[where], prefix=prefix, **given).cpu()

    return torch.cat(shared(draw, shares(count)))
