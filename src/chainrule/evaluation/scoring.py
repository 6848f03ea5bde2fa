"""The likelihood of single images, and where in an image the model is surprised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import LearnedTokenizer
from ..core.values import as_tensor
from ..pipeline import Pipeline
from ..progress import progress

BATCH = 32


@dataclass(frozen=True)
class Scores:
    """Likelihoods of B images.

    nats:          -log p, float (B,); less is more probable
    bits_per_dim:  for a model of pixels, the same in bits per channel of a pixel, float (B,); else None
    bits_of_codes: for a model of learned codes, `nats` in bits, float (B,); else None
    surprise:      nats at each position of the finest grid of codes, float (B, H, W), if they were asked for
    """

    nats: Tensor
    bits_per_dim: Tensor | None
    bits_of_codes: Tensor | None
    surprise: Tensor | None


def score(
    model: Pipeline, images: Tensor, label: int | str | Sequence[int | str] | Tensor | None = None,
    text: str | Sequence[str] | None = None, surprise: bool = False,
) -> Scores:  # fmt: skip
    """-log p of images.

        score(chainrule.load("mnist_pixelcnn"), images).bits_per_dim

    Args:
        model: a model with a prior.
        images: uint8 (B, C, H, W), of the model's size.
        label, text: for all images, or one per image, as in `Pipeline.log_prob`.
        surprise: whether to compute the maps of surprise too.

    Raises:
        ValueError: images, labels or texts that the model cannot read.
    """
    images, nats, maps = as_tensor(images, "images"), [], []
    with progress("Scoring", len(images), "images") as done:
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            conditions = {"label": _part(label, part), "text": _part(text, part)}
            nats.append(-model.log_prob(images[part], **conditions).cpu())
            if surprise:
                maps.append(model.surprise(images[part], **conditions).cpu())
            done(start + len(nats[-1]))
    total, learned = torch.cat(nats), isinstance(model.tokenizer, LearnedTokenizer)
    return Scores(
        nats=total,
        bits_per_dim=None if learned else model.bits_per_dim(total),
        bits_of_codes=total / math.log(2) if learned else None,
        surprise=torch.cat(maps) if surprise else None,
    )


def _part(values, part: slice):
    """Those of a batch, where there is one value per image."""
    return values if values is None or np.ndim(values) == 0 else values[part]
