"""Stage two: a prior over the codes of a tokenizer that stays as it is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Recipe, build_model_config, to_plain
from ..core import Codes, Context, Prior, Tokenizer, entry
from ..data import Batch, DataConfig, ImageDataset, augment, binarize, load
from .order import derive_seed

PREVIEW_IMAGES = 16


class PriorTask:
    """Trains p(codes | context).

    The loss is the mean of -log p over codes (nats per code, so that learning rates do not depend on the size of
    images); logged are `nats`, the sum over the codes of an image, and `bits_per_dim`, nats / (C H W ln 2), which
    for a tokenizer of pixels is the usual measure and for others the rate of the codes.

    Args:
        tokenizer: images <-> codes.
        prior: what is trained.
        data: how training images are prepared.
        training: training images.
        evaluation: images to evaluate on.
        limit: number of them that serve while training.
        batch_size: of evaluation.
        card: plain values to save with the model.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prior: Prior,
        data: DataConfig,
        training: ImageDataset,
        evaluation: ImageDataset,
        limit: int = 1000,
        batch_size: int = 100,
        card: dict[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.model, self.adversary = prior, None
        self.data, self.training, self.evaluation = data, training, evaluation
        self.limit, self.batch_size, self.card = limit, batch_size, card or {}
        self.num_examples = len(training)
        self.device = torch.device("cpu")
        if prior.num_classes and prior.num_classes != training.num_classes:
            raise ValueError(
                f"the prior has num_classes {prior.num_classes} but {training.name} has {training.num_classes or 0}; "
                "write num_classes: data"
            )

    def setup(self, device: torch.device) -> None:
        self.device = device
        self.tokenizer.to(device)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> Batch:
        whole = augment(self.training.batch(indices), self.data, generator)
        labels, texts = whole.labels, whole.texts
        return Batch(
            whole.images[part],
            None if labels is None else labels[part],
            None if texts is None else texts[part],
        )

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        codes, context = self._encode(batch)
        nats = sum(
            F.cross_entropy(logits.float().flatten(0, -2), grid.flatten(), reduction="sum")
            for logits, grid in zip(model(codes, context), codes, strict=True)
        ) / len(batch)
        return nats / self.model.spec.num_codes, {"nats": nats, "bits_per_dim": nats * self._bits_per_nat()}

    def evaluate(self, model: Prior, final: bool) -> dict[str, float]:
        """Mean over the evaluation images; sampled binarisation is the same at every call."""
        count = len(self.evaluation) if final else min(self.limit, len(self.evaluation))
        total = 0.0
        for start in range(0, count, self.batch_size):
            batch = self.evaluation.batch(torch.arange(start, min(start + self.batch_size, count)))
            generator = torch.Generator().manual_seed(derive_seed("evaluation", start))
            batch = replace(batch, images=binarize(batch.images, self.data.binarize, generator))
            codes, context = self._encode(batch)
            total -= model.log_prob(codes, context).cpu().double().sum().item()
        nats = total / count
        return {"nats": nats, "bits_per_dim": nats * self._bits_per_nat()}

    def preview(self, model: Prior, seed: int) -> Tensor:
        count = PREVIEW_IMAGES
        label = torch.arange(count) % model.num_classes if model.num_classes else None
        return self._pipeline(model, {}).sample(count, label=label, seed=seed)

    def save(self, model: Prior, folder: Path, card: dict[str, Any]) -> None:
        self._pipeline(model, card).save(folder)

    def _pipeline(self, model: Prior, card: dict[str, Any]) -> Any:
        from ..pipeline import Pipeline

        names = self.training.class_names if model.num_classes else None
        return Pipeline(self.tokenizer, model, class_names=names, card=self.card | card)

    @torch.no_grad()
    def _encode(self, batch: Batch) -> tuple[Codes, Context]:
        codes = self.tokenizer.encode(batch.images.to(self.device))
        label = batch.labels.to(self.device) if self.model.num_classes else None
        return codes, Context(label=label)

    def _bits_per_nat(self) -> float:
        return 1 / (math.prod(self.tokenizer.image_shape) * math.log(2))


def load_examples(recipe: Recipe) -> tuple[ImageDataset, ImageDataset]:
    """The images to train and to evaluate on; raises ValueError unless they are of one size."""
    training = load(recipe.data)
    evaluation = load(replace(recipe.data, split=recipe.evaluation.split, flip=False))
    if evaluation.image_shape != training.image_shape:
        raise ValueError(
            f"the images of split {recipe.data.split} are {training.image_shape} and those of "
            f"{recipe.evaluation.split} {evaluation.image_shape} (channels, height, width); set data.size"
        )
    return training, evaluation


def prior_task(recipe: Recipe) -> tuple[PriorTask, dict[str, Any]]:
    """The task of a recipe, and the recipe in full, every default written out, as plain values.

    Raises:
        ValueError: data, models or values that do not go together.
    """
    training, evaluation = load_examples(recipe)
    channels, height, width = training.image_shape
    levels = 2 if recipe.data.binarize != "none" else recipe.data.levels
    words = {"num_classes": training.num_classes}
    defaults = {"height": height, "width": width, "channels": channels, "levels": levels}
    tokenizer_config = build_model_config("tokenizers", recipe.tokenizer, recipe.where, defaults, words)
    prior_config = build_model_config("priors", recipe.prior, recipe.where, {}, words)
    plain = {
        "data": to_plain(recipe.data),
        "tokenizer": {"name": recipe.tokenizer.name} | to_plain(tokenizer_config),
        "prior": {"name": recipe.prior.name} | to_plain(prior_config),
        "training": to_plain(recipe.training),
        "evaluation": to_plain(recipe.evaluation),
    }
    torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
    tokenizer = entry("tokenizers", recipe.tokenizer.name).model(tokenizer_config)
    prior = entry("priors", recipe.prior.name).model(tokenizer.spec, prior_config)
    task = PriorTask(
        tokenizer, prior, recipe.data, training, evaluation, recipe.evaluation.limit, recipe.evaluation.batch_size,
        card={"recipe": plain | {"data": plain["data"] | {"source": training.name}}},  # no paths of this machine
    )  # fmt: skip
    return task, plain
