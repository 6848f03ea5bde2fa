"""What the tasks of models that make images have in common: their losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...data import Batch, DataConfig, augment
from ..engine.config import TrainingConfig
from .examples import Examples, ExamplesTask
from .losses import ImageLosses, LossesConfig


class ImageTask(ExamplesTask):
    """Trains a model that makes images.

    Args:
        model: what is trained.
        examples: the images.
        losses: the perceptual and the adversarial loss.
        card: plain values to save with the model.
    """

    def __init__(self, model: nn.Module, examples: Examples, losses: ImageLosses, card: Mapping[str, Any]) -> None:
        super().__init__(model, examples, card)
        self.losses, self.adversary = losses, losses.adversary

    def setup(self, device: torch.device) -> None:
        super().setup(device)
        self.losses.to(device)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> Batch:
        return Batch(augment(self.training.batch(indices), self.data, generator).images[part])

    def adversary_loss(self, module: nn.Module, batch: Batch) -> Tensor:
        return self.losses.adversary_loss(module, batch.images.to(self.device) / 255)


def check_recipe(data: DataConfig, training: TrainingConfig, losses: LossesConfig) -> None:
    """Raises ValueError where a recipe has options with which no model that makes images can be trained."""
    if data.binarize != "none":
        raise ValueError("such a model is trained on images as they are; set data.binarize to none")
    if training.compile is True and losses.adversarial and losses.adversarial.adaptive:
        raise ValueError(
            "the adaptive weight needs the gradient of one layer, which a compiled model does not give; leave "
            "training.compile out, or set losses.adversarial.adaptive to false"
        )
