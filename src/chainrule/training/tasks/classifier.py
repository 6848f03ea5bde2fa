"""A classifier of images, which can judge what a prior of the same classes draws (`chainrule.scorers`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import Batch, DataConfig, ImageDataset, augment, binarize
from ...recipe import Recipe
from ...scorers.classifier import Classifier, ClassifierConfig
from ...strict import build_dataclass, to_plain
from ..engine.order import derive_seed
from ..engine.task import DataTask
from .prior import OPTIONS_OF_PRIORS, load_examples, recipe_card


class ClassifierTask(DataTask):
    """Trains a classifier by the cross-entropy of the labels.

    Measured on the evaluation images are `accuracy`, the share whose most probable class is theirs, and `nats`, the
    mean of -log p of their class.

    Args:
        classifier: what is trained.
        data: how images are prepared.
        training: training images with labels.
        evaluation: images with labels to evaluate on.
        limit: number of them that serve while training.
        batch_size: of evaluation.
        card: plain values to save with the model.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: DataConfig,
        training: ImageDataset,
        evaluation: ImageDataset,
        limit: int = 1000,
        batch_size: int = 100,
        card: dict[str, Any] | None = None,
    ) -> None:
        assert training.labels is not None and evaluation.labels is not None
        super().__init__(classifier, data, training, evaluation, limit, batch_size, card)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> Batch:
        whole = augment(self.training.batch(indices), self.data, generator)
        return Batch(whole.images[part], whole.labels[part])

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        labels = batch.labels.to(self.device)
        logits = model(batch.images.to(self.device)).float()
        loss = F.cross_entropy(logits, labels)
        return loss, {"nats": loss.detach(), "accuracy": (logits.argmax(1) == labels).float().mean()}

    def evaluate(self, model: Classifier, final: bool) -> dict[str, float]:
        """See the class; sampled binarisation is the same at every call."""
        count = self.num_evaluated(final)
        right, nats = 0, 0.0
        for start in range(0, count, self.batch_size):
            batch = self.evaluation.batch(torch.arange(start, min(start + self.batch_size, count)))
            generator = torch.Generator().manual_seed(derive_seed("evaluation", start))
            images = binarize(batch.images, self.data.binarize, generator)
            logits, labels = model(images.to(self.device)).float(), batch.labels.to(self.device)
            right += (logits.argmax(1) == labels).sum().item()
            nats += F.cross_entropy(logits, labels, reduction="sum").item()
        return {"accuracy": right / count, "nats": nats / count}

    def preview(self, model: Classifier, seed: int) -> None:
        return None

    def save(self, model: Classifier, folder: Path, card: dict[str, Any]) -> None:
        model.save(folder, self.card | card)


def classifier_task(recipe: Recipe) -> tuple[ClassifierTask, dict[str, Any]]:
    """The task of a recipe with the section `classifier`, and the recipe in full, every default written out, as plain
    values.

    Raises:
        ValueError: data, sizes or values that do not go together.
    """
    for name in (*OPTIONS_OF_PRIORS, "sample_every"):
        if getattr(recipe.training, name):
            raise ValueError(f"{recipe.where}: 'training.{name}' would be ignored by a classifier; leave it out")
    training, evaluation = load_examples(recipe)
    for images in (training, evaluation):
        if images.labels is None:
            raise ValueError(
                f"{recipe.where}: a classifier needs labels, but {images.name} has none; see data.label_column"
            )
    found = {
        "image_shape": training.image_shape,
        "num_classes": training.num_classes,
        "class_names": training.class_names,
    }
    config = build_dataclass(ClassifierConfig, found | recipe.classifier, recipe.where, "classifier")
    for name, value in found.items():
        if getattr(config, name) != value:
            raise ValueError(f"{recipe.where}: 'classifier.{name}' must be {value!r}, as {training.name} has it")
    plain = {
        "data": to_plain(recipe.data),
        "classifier": to_plain(config),
        "training": to_plain(recipe.training),
        "evaluation": to_plain(recipe.evaluation),
    }
    torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
    task = ClassifierTask(
        Classifier(config), recipe.data, training, evaluation, recipe.evaluation.limit, recipe.evaluation.batch_size,
        {"recipe": recipe_card(plain, training)},
    )  # fmt: skip
    return task, plain
