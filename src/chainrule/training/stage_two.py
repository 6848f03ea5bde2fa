"""Stage two: a prior over the codes of a tokenizer that stays as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..artefact import load_tokenizer
from ..config import Recipe, SavedTokenizer, build_model_config, to_plain
from ..core import Codes, Context, LearnedTokenizer, Prior, StochasticTokenizer, Tokenizer, entry
from ..data import Batch, DataConfig, ImageDataset, augment, binarize, draw_flips, load
from ..pipeline import Pipeline, tokenizer_hash
from .codes import cached_codes, encode
from .order import derive_seed

PREVIEW_IMAGES = 16


@dataclass(frozen=True)
class CodedBatch:
    """Codes of a batch of images that were encoded before, and their labels int64 (B,), if any."""

    codes: Codes
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.codes[0])


class PriorTask:
    """Trains p(codes | context).

    The loss is the mean of -log p over codes (nats per code, so that learning rates do not depend on the size of
    images), or of the grids' means as the prior weighs them (`Prior.grid_weights`); logged are `nats`, the sum over the
    codes of an image, and beside it, for a tokenizer of pixels, `bits_per_dim`, nats / (C H W ln 2), for a learned one
    `nats_per_code` and `bits_per_image`.

    With soft targets, codes are drawn anew at each visit and the loss is the cross entropy with the distributions they
    are drawn from (Lee et al., arXiv:2203.01941, section 3.2.3); what is logged is -log p of the drawn codes.

    Args:
        tokenizer: images <-> codes.
        prior: what is trained.
        data: how training images are prepared.
        training: training images.
        evaluation: images to evaluate on.
        limit: number of them that serve while training.
        batch_size: of evaluation.
        card: plain values to save with the model.
        label_dropout: share of the training labels that become "no class", the prior's last label.
        soft_targets: temperature of soft targets; 0 is none.
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
        label_dropout: float = 0.0,
        soft_targets: float = 0.0,
    ) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.model, self.adversary = prior, None
        self.data, self.training, self.evaluation = data, training, evaluation
        self.limit, self.batch_size, self.card = limit, batch_size, card or {}
        self.num_examples = len(training)
        self.device = torch.device("cpu")
        self.label_dropout, self.soft_targets = label_dropout, soft_targets
        self.training_codes: list[Codes] = []  # of the images and, with flips, of their mirror images, if kept
        self.evaluation_codes: Codes | None = None
        num_classes = training.num_classes or 0
        if prior.num_classes and not (num_classes and prior.num_classes == num_classes + (label_dropout > 0)):
            more = " and label_dropout adds one" if label_dropout else ""
            raise ValueError(
                f"the prior has num_classes {prior.num_classes} but {training.name} has {num_classes}{more}; "
                "write num_classes: data"
            )
        if label_dropout and not prior.num_classes:
            raise ValueError("label_dropout would be ignored: the prior has no classes; write num_classes: data")
        if soft_targets and not isinstance(tokenizer, StochasticTokenizer):
            raise ValueError(f"soft_targets need a tokenizer whose codes can be drawn, as rqvae, not {tokenizer.name}")
        prior.null_label = label_dropout > 0

    def keep_codes(self, device: torch.device, quiet: bool) -> None:
        """Encodes all images once, or takes their codes from the cache, if they are learned and the same at each visit.

        Codes that are drawn anew, for soft targets or from sampled binary images, are not kept.
        """
        mode = self.data.binarize
        if not isinstance(self.tokenizer, LearnedTokenizer) or mode == "sample":
            return
        if not self.soft_targets:
            for mirrored in (False, True)[: 1 + self.data.flip]:
                codes = cached_codes(self.tokenizer, self.training, mode, mirrored, device, quiet)
                self.training_codes.append(codes)
        self.evaluation_codes = cached_codes(self.tokenizer, self.evaluation, mode, False, device, quiet)

    def setup(self, device: torch.device) -> None:
        self.device = device
        self.tokenizer.to(device)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> Batch | CodedBatch:
        if self.training_codes:
            labels = None if self.training.labels is None else self.training.labels[indices]
            codes = _at(self.training_codes[0], indices)
            if self.data.flip:
                flipped = draw_flips(len(indices), generator)[:, None, None, None]
                mirrored = _at(self.training_codes[1], indices)
                codes = tuple(torch.where(flipped, m, c) for m, c in zip(mirrored, codes, strict=True))
            labels = self._drop(labels, generator)
            return CodedBatch(tuple(grid[part] for grid in codes), None if labels is None else labels[part])
        whole = augment(self.training.batch(indices), self.data, generator)
        labels, texts = self._drop(whole.labels, generator), whole.texts
        return Batch(
            whole.images[part],
            None if labels is None else labels[part],
            None if texts is None else texts[part],
        )

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        if self.soft_targets:
            return self._soft_loss(model, batch)
        codes, context = self._encode(batch)
        nats_per_code = [
            F.cross_entropy(logits.float().flatten(0, -2), grid.flatten())
            for logits, grid in zip(model(codes, context), codes, strict=True)
        ]
        loss = sum(weight * mean for weight, mean in zip(self.model.grid_weights, nats_per_code, strict=True))
        nats = sum(grid.num_codes * mean for grid, mean in zip(self.model.spec.grids, nats_per_code, strict=True))
        return loss, {"nats": nats} | self._rates(nats)

    def _drop(self, labels: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Labels, some of them replaced by "no class"."""
        if not self.label_dropout:
            return labels
        dropped = torch.rand(len(labels), generator=generator) < self.label_dropout
        return torch.where(dropped, self.training.num_classes, labels)

    def _soft_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`; the engine has seeded the draws by the step."""
        images = batch.images.to(self.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            codes, targets = self.tokenizer.encode_soft(images, self.soft_targets)
        (logits,) = model(codes, self._context(batch.labels))
        log_prob = logits.float().log_softmax(-1)
        nats = -log_prob.detach().gather(-1, codes[0].unsqueeze(-1)).sum() / len(batch)
        return -(targets * log_prob).sum(-1).mean(), {"nats": nats} | self._rates(nats)

    def evaluate(self, model: Prior, final: bool) -> dict[str, float]:
        """Mean over the evaluation images; sampled binarisation is the same at every call."""
        count = len(self.evaluation) if final else min(self.limit, len(self.evaluation))
        total = 0.0
        for start in range(0, count, self.batch_size):
            indices = torch.arange(start, min(start + self.batch_size, count))
            batch = self.evaluation.batch(indices)
            if self.evaluation_codes is not None:
                batch = CodedBatch(_at(self.evaluation_codes, indices), batch.labels)
            else:
                generator = torch.Generator().manual_seed(derive_seed("evaluation", start))
                batch = replace(batch, images=binarize(batch.images, self.data.binarize, generator))
            codes, context = self._encode(batch)
            total -= model.log_prob(codes, context).cpu().double().sum().item()
        nats = total / count
        return {"nats": nats} | self._rates(nats)

    def preview(self, model: Prior, seed: int) -> Tensor:
        count = PREVIEW_IMAGES
        pipeline = self._pipeline(model, {})
        label = torch.arange(count) % pipeline.num_classes if pipeline.num_classes else None
        return pipeline.sample(count, label=label, seed=seed)

    def save(self, model: Prior, folder: Path, card: dict[str, Any]) -> None:
        self._pipeline(model, card).save(folder)

    def _pipeline(self, model: Prior, card: dict[str, Any]) -> Pipeline:
        names = self.training.class_names if model.num_classes else None
        return Pipeline(self.tokenizer, model, class_names=names, card=self.card | card)

    def _encode(self, batch: Batch | CodedBatch) -> tuple[Codes, Context]:
        if isinstance(batch, CodedBatch):
            codes = tuple(grid.to(self.device) for grid in batch.codes)
        else:
            codes = encode(self.tokenizer, batch.images.to(self.device))
        return codes, self._context(batch.labels)

    def _context(self, labels: Tensor | None) -> Context:
        return Context(label=labels.to(self.device) if self.model.num_classes else None)

    def _rates(self, nats: Any) -> dict[str, Any]:
        """What is reported beside the nats of an image, a number or a tensor."""
        if isinstance(self.tokenizer, LearnedTokenizer):
            return {"nats_per_code": nats / self.model.spec.num_codes, "bits_per_image": nats / math.log(2)}
        return {"bits_per_dim": nats / (math.prod(self.tokenizer.image_shape) * math.log(2))}


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


def _at(codes: Codes, indices: Tensor) -> Codes:
    """The codes of the images `indices`, as models take them."""
    return tuple(grid[indices].long() for grid in codes)


def prior_task(
    recipe: Recipe, device: torch.device = torch.device("cpu"), quiet: bool = True
) -> tuple[PriorTask, dict[str, Any]]:
    """The task of a recipe, and the recipe in full, every default written out, as plain values.

    The codes of a learned tokenizer are computed here, on the device, if they are not in the cache.

    Raises:
        ValueError: data, models or values that do not go together.
    """
    training, evaluation = load_examples(recipe)
    channels, height, width = training.image_shape
    levels = 2 if recipe.data.binarize != "none" else recipe.data.levels
    dropout, soft_targets = recipe.training.label_dropout, recipe.training.soft_targets
    words = {"num_classes": training.num_classes and training.num_classes + (dropout > 0)}
    torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
    if isinstance(recipe.tokenizer, SavedTokenizer):
        tokenizer, tokenizer_plain = open_tokenizer(recipe.tokenizer, recipe.where)
    else:
        defaults = {"height": height, "width": width, "channels": channels, "levels": levels}
        model = entry("tokenizers", recipe.tokenizer.name).model
        if issubclass(model, LearnedTokenizer):
            raise ValueError(
                f"{recipe.where}: the tokenizer {recipe.tokenizer.name} must be trained before a prior over its codes; "
                "write tokenizer: {path: the folder of its run}"
            )
        tokenizer_config = build_model_config("tokenizers", recipe.tokenizer, recipe.where, defaults, words)
        tokenizer_plain = {"name": recipe.tokenizer.name} | to_plain(tokenizer_config)
        tokenizer = model(tokenizer_config)
    if tokenizer.image_shape != training.image_shape:
        raise ValueError(
            f"the tokenizer is for images {tokenizer.image_shape}, those of {training.name} are {training.image_shape} "
            "(channels, height, width); set data.size and data.channels"
        )
    prior_config = build_model_config("priors", recipe.prior, recipe.where, {}, words)
    plain = {
        "data": to_plain(recipe.data),
        "tokenizer": tokenizer_plain,
        "prior": {"name": recipe.prior.name} | to_plain(prior_config),
        "training": to_plain(recipe.training),
        "evaluation": to_plain(recipe.evaluation),
    }
    prior = entry("priors", recipe.prior.name).model(tokenizer.spec, prior_config)
    prior.attach(tokenizer.vectors())
    card = plain | {"data": plain["data"] | {"source": training.name}}  # no paths of this machine
    if isinstance(recipe.tokenizer, SavedTokenizer):
        card["tokenizer"] = tokenizer_plain | {"path": Path(recipe.tokenizer.path).name}
    task = PriorTask(
        tokenizer, prior, recipe.data, training, evaluation, recipe.evaluation.limit, recipe.evaluation.batch_size,
        {"recipe": card}, dropout, soft_targets,
    )  # fmt: skip
    task.keep_codes(device, quiet)
    return task, plain


def open_tokenizer(saved: SavedTokenizer, where: str) -> tuple[Tokenizer, dict[str, Any]]:
    """A trained tokenizer, and its section of the recipe in full; raises ValueError if it is another than it was."""
    tokenizer = load_tokenizer(saved.path)
    found = tokenizer_hash(tokenizer)
    if saved.hash not in (None, found):
        raise ValueError(
            f"{where}: the tokenizer in {saved.path} is another than that of the recipe (sha256 {found[:12]}…, "
            f"not {saved.hash[:12]}…); give its path alone to train on it"
        )
    return tokenizer, {"path": saved.path, "hash": found}
