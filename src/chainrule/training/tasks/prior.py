"""Stage two: a prior over the codes of a tokenizer that stays as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import ClassLabels, Codes, Context, LearnedTokenizer, Prior, StochasticTokenizer, Tokenizer, entry
from ...data import DataConfig, ImageDataset, augment, binarize, draw_flips, load
from ...pipeline import Pipeline, check_text_tokenizer
from ...recipe import Recipe, SavedPrior, SavedTokenizer, TextConfig, build_model_config
from ...saving.folder import tokenizer_hash
from ...strict import to_plain
from ...text.bpe import BPETokenizer, TextTokenizer, train_bpe
from ...zoo import load as load_pipeline
from ...zoo import load_tokenizer
from ..engine.order import derive_seed
from ..engine.task import DataTask
from .codes import cached_codes, encode

PREVIEW_IMAGES = 16
OPTIONS_OF_PRIORS = ("label_dropout", "caption_dropout", "soft_targets", "code_noise")
"""Keys of the section `training` that only a prior's training knows."""


@dataclass(frozen=True)
class PriorBatch:
    """Images uint8 (B, C, H, W), or their codes where they were encoded before, and what a prior is told of them.

    labels: int64 (B,), if any
    text:   token ids int64 (B, L), if any
    """

    images: Tensor | None
    codes: Codes | None
    labels: Tensor | None = None
    text: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes[0] if self.images is None else self.images)


class PriorTask(DataTask):
    """Trains p(codes | context).

    The loss is the mean of -log p over codes (nats per code, so that learning rates do not depend on the size of
    images), or of the grids' means as the prior weighs them (`Prior.grid_weights`); logged are `nats`, the sum over the
    codes of an image, and beside it, for a tokenizer of pixels, `bits_per_dim`, nats / (C H W ln 2), for a learned one
    `nats_per_code` and `bits_per_image`.

    With soft targets, codes are drawn anew at each visit and the loss is the cross entropy with the distributions they
    are drawn from (Lee et al., arXiv:2203.01941, section 3.2.3); what is logged is -log p of the drawn codes.

    With noise, the model reads codes some of which are not those of the image, and is to tell those that are: it leans
    less on what is already drawn and more on its label or caption (`pkeep` in the code of Esser et al.,
    arXiv:2012.09841).  What is logged in training is -log p given what the model read.

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
        text_tokenizer: of a prior that reads captions, or models them before the image.
        caption_dropout: share of the training captions that become the empty text.
        bpe_dropout: share of merges left out of a training caption, at each visit anew.
        code_noise: largest share of random codes among those that the prior reads in training.
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
        text_tokenizer: TextTokenizer | None = None,
        caption_dropout: float = 0.0,
        bpe_dropout: float = 0.0,
        code_noise: float = 0.0,
    ) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        super().__init__(prior, data, training, evaluation, limit, batch_size, card)
        self.label_dropout, self.soft_targets, self.code_noise = label_dropout, soft_targets, code_noise
        self.text_tokenizer, self.caption_dropout, self.bpe_dropout = text_tokenizer, caption_dropout, bpe_dropout
        self.training_codes: list[Codes] = []  # of the images and, with flips, of their mirror images, if kept
        self.evaluation_codes: Codes | None = None
        given = prior.conditions
        if given.num_classes and given.num_classes != training.num_classes:
            raise ValueError(
                f"the prior has num_classes {given.num_classes} but {training.name} has {training.num_classes or 0}; "
                "write num_classes: data"
            )
        if label_dropout and not given.num_classes:
            raise ValueError("label_dropout would be ignored: the prior has no classes; write num_classes: data")
        if given.null_label != (label_dropout > 0):
            has = "has" if given.null_label else "lacks"
            raise ValueError(f"the prior {has} the label for no class, which label_dropout {label_dropout} contradicts")
        if soft_targets and not isinstance(tokenizer, StochasticTokenizer):
            raise ValueError(f"soft_targets need a tokenizer whose codes can be drawn, as rqvae, not {tokenizer.name}")
        self.training_text, self.evaluation_text = None, None  # int64 (N, L)
        if text_tokenizer is not None:
            check_text_tokenizer(text_tokenizer, prior)
            self.training_text = text_tokenizer.encode(training.texts)
            self.evaluation_text = text_tokenizer.encode(evaluation.texts)

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

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> PriorBatch:
        if self.training_codes:
            codes, images = _at(self.training_codes[0], indices), None
            labels = None if self.training.labels is None else self.training.labels[indices]
            if self.data.flip:
                flipped = draw_flips(len(indices), generator)[:, None, None, None]
                mirrored = _at(self.training_codes[1], indices)
                codes = tuple(torch.where(flipped, m, c) for m, c in zip(mirrored, codes, strict=True))
        else:
            whole = augment(self.training.batch(indices), self.data, generator)
            codes, images, labels = None, whole.images, whole.labels
        labels, text = self._drop(labels, generator), self._draw_text(indices, generator)
        return PriorBatch(
            None if images is None else images[part],
            None if codes is None else tuple(grid[part] for grid in codes),
            None if labels is None else labels[part],
            None if text is None else text[part],
        )

    def loss(self, model: nn.Module, batch: PriorBatch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        if self.soft_targets:
            return self._soft_loss(model, batch)
        codes, context = self._encode(batch)
        nats_per_code = [
            F.cross_entropy(logits.float().flatten(0, -2), grid.flatten())
            for logits, grid in zip(model(self._corrupt(codes), context), codes, strict=True)
        ]
        loss = sum(weight * mean for weight, mean in zip(self.model.grid_weights, nats_per_code, strict=True))
        each = [grid.num_positions * mean for grid, mean in zip(self.model.spec.grids, nats_per_code, strict=True)]
        return loss, self._figures(each)

    def _drop(self, labels: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Labels, some of them replaced by "no class"."""
        if not self.label_dropout:
            return labels
        dropped = torch.rand(len(labels), generator=generator) < self.label_dropout
        return torch.where(dropped, self.training.num_classes, labels)

    def _draw_text(self, indices: Tensor, generator: torch.Generator) -> Tensor | None:
        """Captions of training images, some merges left out and some captions replaced by the empty text."""
        if self.training_text is None:
            return None
        text = self.training_text[indices]
        if self.bpe_dropout:
            text = drop_merges(self.text_tokenizer, self.training.texts, indices, self.bpe_dropout, generator)
        if self.caption_dropout:
            dropped = torch.rand(len(text), generator=generator) < self.caption_dropout
            text = text.masked_fill(dropped[:, None], self.text_tokenizer.pad)
        return text

    def _soft_loss(self, model: nn.Module, batch: PriorBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`; the engine has seeded the draws by the step."""
        images = batch.images.to(self.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            codes, targets = self.tokenizer.encode_soft(images, self.soft_targets)
        (logits,) = model(self._corrupt(codes), self._context(batch))
        log_prob = logits.float().log_softmax(-1)
        nats = -log_prob.detach().gather(-1, codes[0].unsqueeze(-1)).sum() / len(batch)
        return -(targets * log_prob).sum(-1).mean(), {"nats": nats} | self._rates(nats)

    def _corrupt(self, codes: Codes) -> Codes:
        """The codes of a batch as the model reads them, some of the image's replaced by random ones.

        The engine has seeded the draws by the step.
        """
        if not self.code_noise:
            return codes
        text = int(self.model.conditions.joint_text)
        sizes = [grid.codebook_size for grid in self.model.spec.grids[text:]]
        share = self.code_noise * torch.rand(len(codes[0]), 1, 1, 1, device=self.device)
        image = [
            torch.where(torch.rand(grid.shape, device=self.device) < share, torch.randint_like(grid, size), grid)
            for grid, size in zip(codes[text:], sizes, strict=True)
        ]
        return *codes[:text], *image

    def evaluate(self, model: Prior, final: bool) -> dict[str, float]:
        """Mean over the evaluation images; sampled binarisation is the same at every call."""
        count = self.num_evaluated(final)
        total = torch.zeros(len(self.model.spec.grids), dtype=torch.float64)
        for start in range(0, count, self.batch_size):
            indices = torch.arange(start, min(start + self.batch_size, count))
            whole, codes, images = self.evaluation.batch(indices), None, None
            if self.evaluation_codes is not None:
                codes = _at(self.evaluation_codes, indices)
            else:
                generator = torch.Generator().manual_seed(derive_seed("evaluation", start))
                images = binarize(whole.images, self.data.binarize, generator)
            text = None if self.evaluation_text is None else self.evaluation_text[indices]
            grids = model.log_prob_grids(*self._encode(PriorBatch(images, codes, whole.labels, text)))
            total -= torch.stack([grid.double().sum().cpu() for grid in grids])
        return self._figures((total / count).tolist())

    def preview(self, model: Prior, seed: int) -> Tensor:
        pipeline = self._pipeline(model, {})
        label = torch.arange(PREVIEW_IMAGES) % pipeline.num_classes if pipeline.num_classes else None
        text = None if self.text_tokenizer is None else self.evaluation.texts[:PREVIEW_IMAGES]
        return pipeline.sample(PREVIEW_IMAGES if text is None else len(text), label=label, text=text, seed=seed)

    def save(self, model: Prior, folder: Path, card: dict[str, Any]) -> None:
        self._pipeline(model, card).save(folder)

    def _pipeline(self, model: Prior, card: dict[str, Any]) -> Pipeline:
        names = self.training.class_names if model.conditions.num_classes else None
        return Pipeline(self.tokenizer, model, names, self.card | card, self.text_tokenizer)

    def _encode(self, batch: PriorBatch) -> tuple[Codes, Context]:
        """All codes of the prior, a caption of a joint stream before those of the image, and the context."""
        if batch.codes is None:
            codes = encode(self.tokenizer, batch.images.to(self.device))
        else:
            codes = tuple(grid.to(self.device) for grid in batch.codes)
        if self.model.conditions.joint_text:
            codes = batch.text[:, None, :, None].to(self.device), *codes
        return codes, self._context(batch)

    def _context(self, batch: PriorBatch) -> Context:
        return Context(
            label=batch.labels.to(self.device) if self.model.conditions.num_classes else None,
            text=batch.text.to(self.device) if self.model.conditions.text_length else None,
        )

    def _figures(self, nats: list[Any]) -> dict[str, Any]:
        """What is reported of the nats of each grid: those of the image, and those of a text before it."""
        image = sum(nats[int(self.model.conditions.joint_text) :])
        return (
            {"nats": image} | self._rates(image) | ({"text_nats": nats[0]} if self.model.conditions.joint_text else {})
        )

    def _rates(self, nats: Any) -> dict[str, Any]:
        """What is reported beside the nats of an image, a number or a tensor."""
        if isinstance(self.tokenizer, LearnedTokenizer):
            return {"nats_per_code": nats / self.tokenizer.spec.length, "bits_per_image": nats / math.log(2)}
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


def drop_merges(
    text_tokenizer: TextTokenizer, texts: list[str], indices: Tensor, dropout: float, generator: torch.Generator
) -> Tensor:
    """Some texts read anew, this share of the merges left out: token ids int64 (B, L)."""
    return text_tokenizer.encode([texts[index] for index in indices.tolist()], dropout, generator)


def recipe_card(plain: dict[str, Any], training: ImageDataset) -> dict[str, Any]:
    """A recipe as plain values, as a saved model may have it: without paths of this machine."""
    card = plain | {"data": plain["data"] | {"source": training.name}}
    for section in ("tokenizer", "prior"):
        if "path" in (model := plain.get(section) or {}):
            card |= {section: model | {"path": Path(model["path"]).name}}
    return card


def refuse_options_of_priors(recipe: Recipe) -> None:
    """Raises ValueError where a recipe without prior has options that only a prior's training knows."""
    for name in OPTIONS_OF_PRIORS:
        if getattr(recipe.training, name):
            raise ValueError(f"{recipe.where}: 'training.{name}' belongs to a prior and would be ignored; leave it out")


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
    torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
    if isinstance(recipe.prior, SavedPrior):
        saved = load_pipeline(recipe.prior.path)
        tokenizer, prior, text_tokenizer = saved.tokenizer, saved.prior.requires_grad_(True), saved.text_tokenizer
        models = {"prior": {"path": recipe.prior.path}}
        if text_tokenizer is not None:
            check_captions(recipe.where, "prior", training, evaluation)
    else:
        tokenizer, prior, text_tokenizer, models = _build(recipe, training, evaluation)
    if tokenizer.image_shape != training.image_shape:
        raise ValueError(
            f"the tokenizer is for images {tokenizer.image_shape}, those of {training.name} are {training.image_shape} "
            "(channels, height, width); set data.size and data.channels"
        )
    if recipe.training.caption_dropout and text_tokenizer is None:
        raise ValueError(f"{recipe.where}: caption_dropout would be ignored: the prior reads no texts; leave it out")
    plain = {
        "data": to_plain(recipe.data),
        **models,
        "training": to_plain(recipe.training),
        "evaluation": to_plain(recipe.evaluation),
    }
    task = PriorTask(
        tokenizer, prior, recipe.data, training, evaluation, recipe.evaluation.limit, recipe.evaluation.batch_size,
        {"recipe": recipe_card(plain, training)}, recipe.training.label_dropout, recipe.training.soft_targets,
        text_tokenizer, recipe.training.caption_dropout, 0.0 if recipe.text is None else recipe.text.bpe_dropout,
        recipe.training.code_noise,
    )  # fmt: skip
    task.keep_codes(device, quiet)
    return task, plain


def _build(
    recipe: Recipe, training: ImageDataset, evaluation: ImageDataset
) -> tuple[Tokenizer, Prior, BPETokenizer | None, dict[str, Any]]:
    """The tokenizer, the new prior and what reads captions, and their sections of the recipe in full."""
    channels, height, width = training.image_shape
    levels = 2 if recipe.data.binarize != "none" else recipe.data.levels
    words = {"num_classes": training.num_classes}
    if isinstance(recipe.tokenizer, SavedTokenizer):
        tokenizer, tokenizer_plain = open_tokenizer(recipe.tokenizer, recipe.where)
    else:
        defaults = {"image_height": height, "image_width": width, "image_channels": channels, "levels": levels}
        model = entry("tokenizers", recipe.tokenizer.name).model
        if issubclass(model, LearnedTokenizer):
            raise ValueError(
                f"{recipe.where}: the tokenizer {recipe.tokenizer.name} must be trained before a prior over its codes; "
                "write tokenizer: {path: the folder of its run}"
            )
        tokenizer_config = build_model_config("tokenizers", recipe.tokenizer, recipe.where, defaults, words)
        tokenizer_plain = {"name": recipe.tokenizer.name} | to_plain(tokenizer_config)
        tokenizer = model(tokenizer_config)
    text_tokenizer = None if recipe.text is None else learn_text(recipe.text, training, evaluation, recipe.where)
    words |= {
        "text_length": text_tokenizer and text_tokenizer.length,
        "text_vocab_size": text_tokenizer and text_tokenizer.text_vocab_size,
    }
    prior_config = build_model_config("priors", recipe.prior, recipe.where, {}, words)
    if recipe.training.label_dropout and isinstance(prior_config, ClassLabels) and prior_config.num_classes:
        prior_config = replace(prior_config, null_label=True)
    model = entry("priors", recipe.prior.name).model
    try:
        spec = model.spec_of(tokenizer.spec, text_tokenizer and text_tokenizer.grid)
    except ValueError as error:
        raise ValueError(f"{recipe.where}: {error}") from error
    prior = model(spec, prior_config)
    reads = prior.conditions.reads_text
    if reads and text_tokenizer is None:
        raise ValueError(f"{recipe.where}: the prior reads texts (text_length); add the section 'text'")
    if text_tokenizer is not None and not reads:
        raise ValueError(
            f"{recipe.where}: {recipe.prior.name} reads no texts; leave out 'text' or set prior.text_length: data"
        )
    prior.attach(tokenizer.vectors())
    return tokenizer, prior, text_tokenizer, {
        "tokenizer": tokenizer_plain,
        "prior": {"name": recipe.prior.name} | to_plain(prior_config),
        **({} if recipe.text is None else {"text": to_plain(recipe.text)}),
    }  # fmt: skip


def check_captions(where: str, section: str, *datasets: ImageDataset) -> None:
    """Raises ValueError where a data set lacks the captions that a section of the recipe asks for."""
    for images in datasets:
        if images.texts is None:
            raise ValueError(f"{where}: {section!r} needs captions, but {images.name} has none; see data.text_column")


def learn_text(config: TextConfig, training: ImageDataset, evaluation: ImageDataset, where: str) -> BPETokenizer:
    """The text tokenizer of a recipe; raises ValueError where there are no captions, or a vocabulary does not fit."""
    check_captions(where, "text", training, evaluation)
    if config.vocabulary is None:
        return train_bpe(training.texts, config.text_vocab_size, config.length, config.lowercase)
    try:
        return BPETokenizer(config.vocabulary.read_text(encoding="utf-8"), config.length)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: text.vocabulary {config.vocabulary}: {error}") from None


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
