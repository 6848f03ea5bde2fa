"""A classifier of images, which can judge what a prior of the same classes draws (`chainrule.scorers`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import Batch, DataConfig, augment, binarize
from ...processes import shared
from ...recipe import Recipe
from ...scorers.classifier import Classifier, ClassifierConfig
from ...strict import build_dataclass, section, to_plain
from ...zoo import save
from ..engine.config import EvaluationConfig, TrainingConfig
from ..engine.order import derive_seed
from .examples import Examples, ExamplesTask, load_examples


class ClassifierTask(ExamplesTask):
    """Trains a classifier by the cross-entropy of the labels.

    Measured on the evaluation images are `accuracy`, the share whose most probable class is theirs, and `nats`, the
    mean of -log p of their class.

    Args:
        classifier: what is trained.
        examples: images with labels.
        card: plain values to save with the model.
    """

    def __init__(self, classifier: Classifier, examples: Examples, card: Mapping[str, Any] = {}) -> None:
        assert examples.training.labels is not None and examples.evaluation.labels is not None
        super().__init__(classifier, examples, card)

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
        chosen = self.evaluated(final)

        def sums(part: tuple[int, Tensor]) -> tuple[int, float]:
            number, indices = part
            batch = self.evaluation.batch(indices)
            generator = torch.Generator().manual_seed(derive_seed("evaluation", number * self.batch_size))
            images = binarize(batch.images, self.data.binarize, generator)
            logits, labels = model(images.to(self.device)).float(), batch.labels.to(self.device)
            return (logits.argmax(1) == labels).sum().item(), F.cross_entropy(logits, labels, reduction="sum").item()

        right, nats = zip(*shared(sums, enumerate(chosen.split(self.batch_size))), strict=True)
        return {"accuracy": sum(right) / len(chosen), "nats": sum(nats) / len(chosen)}

    def preview(self, model: Classifier, seed: int) -> None:
        return None

    def save(self, model: Classifier, folder: Path, card: dict[str, Any]) -> None:
        save(model, folder, self.card | card)


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(Recipe, kind="classifier"):
    """What to train a classifier on.

    data:       images with labels
    classifier: fields of `chainrule.scorers.classifier.ClassifierConfig`, whose image size and classes are the data's
    training:   how to train
    evaluation: when to evaluate
    """

    data: DataConfig
    classifier: dict[str, Any]
    training: TrainingConfig = section(TrainingConfig, learning_rate=1e-3, weight_decay=0.05, channels_last=True)
    evaluation: EvaluationConfig = section(EvaluationConfig)

    def build(self, device: Any = None, quiet: bool = True) -> tuple[ClassifierTask, ClassifierRecipe]:
        """See `Recipe`."""
        if self.training.sample_every:
            raise ValueError("'training.sample_every' would be ignored by a classifier; leave it out")
        examples = load_examples(self.data, self.evaluation)
        training = examples.training
        for images in (training, examples.evaluation):
            if images.labels is None:
                raise ValueError(f"a classifier needs labels, but {images.name} has none; see data.label_column")
        found = {
            "image_shape": training.image_shape,
            "num_classes": training.num_classes,
            "class_names": training.class_names,
        }
        config = build_dataclass(ClassifierConfig, found | self.classifier, "", "classifier")
        for name, value in found.items():
            if getattr(config, name) != value:
                raise ValueError(f"'classifier.{name}' must be {value!r}, as {training.name} has it")
        recipe = replace(self, data=examples.data, classifier=to_plain(config))
        torch.manual_seed(derive_seed(self.training.seed, "weights"))
        return ClassifierTask(Classifier(config), examples, examples.card(recipe)), recipe
