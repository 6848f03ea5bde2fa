"""Stage two: a prior over the codes of a tokenizer that stays as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import ClassLabels, Codes, Context, Entry, LearnedTokenizer, Prior, StochasticTokenizer, Tokenizer, entry
from ...data import DataConfig, augment, binarize, draw_flips
from ...pipeline import Pipeline
from ...recipe import NewModel, Recipe, SavedPrior, SavedTokenizer
from ...strict import section
from ...text.bpe import TextConfig, TextTokenizer, check_text_tokenizer
from ...zoo import load_kind
from ..engine.config import EvaluationConfig, TrainingConfig, check_at_least, check_share
from ..engine.order import derive_seed
from .captions import Captions, check_captions, learn_text
from .codes import cached_codes, check_shape, encode, fit_to, open_tokenizer
from .examples import Examples, ExamplesTask, load_examples, sized

PREVIEW_IMAGES = 16
LARGEST_OF_PIXELS = 32
"""Pixels of the shorter side where a prior models pixels and the recipe gives no size."""
EMBEDDING_DIM = 64
"""Width of the learned vectors of codes without an order, for priors that otherwise read codes as numbers."""


@dataclass(frozen=True, kw_only=True)
class PriorTrainingConfig(TrainingConfig):
    """How to train a prior.

    label_dropout:   share of the training labels that become "no class", so that the prior can be guided; 0 is none
    caption_dropout: share of the training captions that become the empty text, for the same purpose; 0 is none
    soft_targets:    temperature at which codes are drawn and softened, as RQ-VAE can; 0 is none
    code_noise:      largest share of the prior's inputs, not its targets, that random codes replace, drawn anew for
                     each image; 0 is none
    """

    label_dropout: float = 0.0
    caption_dropout: float = 0.0
    soft_targets: float = 0.0
    code_noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "label_dropout", "caption_dropout", "code_noise")
        check_at_least(self, 0, "soft_targets")


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


class PriorTask(ExamplesTask):
    """Trains p(codes | context).

    The loss is the mean of -log p over codes (nats per code, so that learning rates do not depend on the size of
    images), or of the grids' means as the prior weighs them (`Prior.grid_weights`); logged are `nats`, the sum over the
    codes of an image, and beside it, for a tokenizer of pixels, `bits_per_dim`, nats / (C H W ln 2), for a learned one
    `nats_per_code` and `bits_per_image`.

    With soft targets, codes are drawn anew at each visit and the loss is the cross entropy with the distributions they
    are drawn from (Lee et al., arXiv:2203.01941, section 3.2.3); what is logged is -log p of the drawn codes.

    With noise, some of the codes that the model reads are replaced by random ones, and it still predicts the true ones:
    it leans less on what is already drawn and more on its label or caption (`pkeep` in the code of Esser et al.,
    arXiv:2012.09841).  What is logged in training is -log p given what the model read.

    Args:
        tokenizer: images <-> codes.
        prior: what is trained.
        examples: the images.
        training: the shares that are dropped, softened and replaced.
        captions: of a prior that reads captions, or models them before the image.
        card: plain values to save with the model.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prior: Prior,
        examples: Examples,
        training: PriorTrainingConfig,
        captions: Captions | None = None,
        card: Mapping[str, Any] = {},
    ) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        super().__init__(prior, examples, card)
        self.options, self.captions = training, captions
        self.training_codes: list[Codes] = []  # of the images and, with flips, of their mirror images, if kept
        self.evaluation_codes: Codes | None = None
        self._check()

    def _check(self) -> None:
        given, options, images = self.model.conditions, self.options, self.training
        if given.num_classes and given.num_classes != images.num_classes:
            raise ValueError(
                f"the prior has num_classes {given.num_classes} but {images.name} has {images.num_classes or 0}; "
                "write num_classes: data"
            )
        dropped = options.label_dropout
        if dropped and not given.num_classes:
            raise ValueError("label_dropout would be ignored: the prior has no classes; write num_classes: data")
        if given.null_label != (dropped > 0):
            has = "has" if given.null_label else "lacks"
            raise ValueError(f"the prior {has} the label for no class, which label_dropout {dropped} contradicts")
        if options.caption_dropout and self.captions is None:
            raise ValueError("caption_dropout would be ignored: the prior reads no texts; leave it out")
        if options.soft_targets and not isinstance(self.tokenizer, StochasticTokenizer):
            raise ValueError(
                f"soft_targets need a tokenizer whose codes can be drawn, as rqvae, not {self.tokenizer.name}"
            )
        if self.captions is not None:
            check_text_tokenizer(self.captions.tokenizer, self.model)

    def keep_codes(self, device: torch.device, quiet: bool) -> None:
        """Encodes all images once, or takes their codes from the cache, if they are learned and the same at each visit.

        Codes that are drawn anew, for soft targets or from sampled binary images, are not kept.
        """
        mode = self.data.binarize
        if not isinstance(self.tokenizer, LearnedTokenizer) or mode == "sample":
            return
        if not self.options.soft_targets:
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
        if self.options.soft_targets:
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
        if not self.options.label_dropout:
            return labels
        dropped = torch.rand(len(labels), generator=generator) < self.options.label_dropout
        return torch.where(dropped, self.training.num_classes, labels)

    def _draw_text(self, indices: Tensor, generator: torch.Generator) -> Tensor | None:
        """Captions of training images, some merges left out and some captions replaced by the empty text."""
        if self.captions is None:
            return None
        text = self.captions.draw(indices, generator)
        if self.options.caption_dropout:
            dropped = torch.rand(len(text), generator=generator) < self.options.caption_dropout
            text = text.masked_fill(dropped[:, None], self.captions.tokenizer.pad)
        return text

    def _soft_loss(self, model: nn.Module, batch: PriorBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`; the engine has seeded the draws by the step."""
        images = batch.images.to(self.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            codes, targets = self.tokenizer.encode_soft(images, self.options.soft_targets)
        (logits,) = model(self._corrupt(codes), self._context(batch))
        log_prob = logits.float().log_softmax(-1)
        nats = -log_prob.detach().gather(-1, codes[0].unsqueeze(-1)).sum() / len(batch)
        return -(targets * log_prob).sum(-1).mean(), {"nats": nats} | self._rates(nats)

    def _corrupt(self, codes: Codes) -> Codes:
        """The codes of a batch as the model reads them, some of the image's replaced by random ones.

        The engine has seeded the draws by the step.
        """
        if not self.options.code_noise:
            return codes
        text = int(self.model.conditions.joint_text)
        sizes = [grid.codebook_size for grid in self.model.spec.grids[text:]]
        share = self.options.code_noise * torch.rand(len(codes[0]), 1, 1, 1, device=self.device)
        image = [
            torch.where(torch.rand(grid.shape, device=self.device) < share, torch.randint_like(grid, size), grid)
            for grid, size in zip(codes[text:], sizes, strict=True)
        ]
        return *codes[:text], *image

    def evaluate(self, model: Prior, final: bool) -> dict[str, float]:
        """Mean over the evaluation images; sampled binarisation is the same at every call."""
        chosen = self.evaluated(final)
        total = torch.zeros(len(self.model.spec.grids), dtype=torch.float64)
        for number, indices in enumerate(chosen.split(self.batch_size)):
            whole, codes, images = self.evaluation.batch(indices), None, None
            if self.evaluation_codes is not None:
                codes = _at(self.evaluation_codes, indices)
            else:
                generator = torch.Generator().manual_seed(derive_seed("evaluation", number * self.batch_size))
                images = binarize(whole.images, self.data.binarize, generator)
            text = None if self.captions is None else self.captions.evaluation[indices]
            grids = model.log_prob_grids(*self._encode(PriorBatch(images, codes, whole.labels, text)))
            total -= torch.stack([grid.double().sum().cpu() for grid in grids])
        return self._figures((total / len(chosen)).tolist())

    def preview(self, model: Prior, seed: int) -> Tensor:
        pipeline = self._pipeline(model, {})
        label = torch.arange(PREVIEW_IMAGES) % pipeline.num_classes if pipeline.num_classes else None
        text = None if self.captions is None else self.evaluation.texts[:PREVIEW_IMAGES]
        return pipeline.sample(PREVIEW_IMAGES if text is None else len(text), label=label, text=text, seed=seed)

    def save(self, model: Prior, folder: Path, card: dict[str, Any]) -> None:
        self._pipeline(model, card).save(folder)

    def _pipeline(self, model: Prior, card: dict[str, Any]) -> Pipeline:
        names = self.training.class_names if model.conditions.num_classes else None
        text_tokenizer = None if self.captions is None else self.captions.tokenizer
        return Pipeline(self.tokenizer, model, names, self.card | card, text_tokenizer)

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


def _at(codes: Codes, indices: Tensor) -> Codes:
    """The codes of the images `indices`, as models take them."""
    return tuple(grid[indices].long() for grid in codes)


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True, kw_only=True)
class PriorRecipe(Recipe, kind="prior"):
    """What to train a prior on.

    data:       the images
    tokenizer:  a trained one, or one that has nothing to learn; left out, `pixels`
    prior:      a new one, or a trained one, which brings its tokenizer and the vocabulary of its captions
    text:       how captions are read, where the prior reads captions
    training:   how to train
    evaluation: when to evaluate

    Labels condition a prior that can take them where `data.label_column` is given or the images lie in one folder per
    class; captions do where the prior cannot do without, or where `text` or `data.text_column` is given.  Keys of
    the prior such as `num_classes: 0` and `text_length: data` say otherwise.
    """

    data: DataConfig
    tokenizer: SavedTokenizer | NewModel | None = None
    prior: SavedPrior | NewModel
    text: TextConfig | None = None
    training: PriorTrainingConfig = section(PriorTrainingConfig, sample_every=1000)
    evaluation: EvaluationConfig = section(EvaluationConfig)

    def __post_init__(self) -> None:
        for name in ("tokenizer", "text"):
            if isinstance(self.prior, SavedPrior) and getattr(self, name) is not None:
                raise ValueError(f"the prior of a 'path' comes with its {name}; leave out {name!r}")

    def build(self, device: torch.device = torch.device("cpu"), quiet: bool = True) -> tuple[PriorTask, PriorRecipe]:
        """See `Recipe`; the codes of a learned tokenizer are computed here, if they are not in the cache."""
        torch.manual_seed(derive_seed(self.training.seed, "weights"))
        parts = self._open() if isinstance(self.prior, SavedPrior) else self._new()
        examples = parts.examples
        check_shape(parts.tokenizer, examples)
        card = examples.card(parts.recipe)
        task = PriorTask(parts.tokenizer, parts.prior, examples, self.training, parts.captions, card)
        task.keep_codes(device, quiet)
        return task, parts.recipe

    def _open(self) -> _Parts:
        """The parts of a trained prior."""
        saved, captions = load_kind(self.prior.path, "pipeline"), None
        examples = load_examples(sized(self.data, saved.tokenizer.image_shape), self.evaluation)
        prior = saved.prior.requires_grad_(True)
        if self.prior.num_classes is None:
            examples = examples.matched(saved.class_names, saved.num_classes, self.prior.path)
        else:
            given = self.prior.num_classes
            count = examples.training.num_classes or 0 if given == "data" else given
            prior = _with_classes(prior, count, null_label=self.training.label_dropout > 0)
        if saved.text_tokenizer is not None:
            check_captions("prior", examples)
            captions = Captions(saved.text_tokenizer, examples)
        elif saved.prior.conditions.reads_text:
            raise ValueError(
                f"{self.prior.path} draws from texts but holds no text tokenizer, so it cannot be trained further; "
                "save it with its text tokenizer"
            )
        recipe = replace(self, data=examples.data)
        return _Parts(saved.tokenizer, prior, examples, captions, recipe)

    def _new(self) -> _Parts:
        """The tokenizer and a new prior over its codes."""
        if isinstance(self.tokenizer, SavedTokenizer):
            tokenizer, found_hash = open_tokenizer(self.tokenizer.path, self.tokenizer.hash)
            tokenizer_section = replace(self.tokenizer, hash=found_hash)
            examples = load_examples(sized(self.data, tokenizer.image_shape), self.evaluation)
            tokenizer = fit_to(tokenizer, examples)
        else:
            examples = load_examples(self.data, self.evaluation, LARGEST_OF_PIXELS)
            tokenizer, tokenizer_section = self._tokenizer_of_pixels(examples)
        found = entry("priors", self.prior.name)
        text = self.text or self._implied_text(examples, tokenizer, found)
        captions = text and Captions(learn_text(text, examples), examples, text.bpe_dropout)
        reader = captions and captions.tokenizer
        config = self._prior_config(examples, reader, isinstance(tokenizer, LearnedTokenizer))
        prior = found.model(found.model.spec_of(tokenizer.spec, reader and reader.grid), config)
        if prior.conditions.reads_text and captions is None:
            raise ValueError("the prior reads texts (text_length); add the section 'text'")
        if captions is not None and not prior.conditions.reads_text:
            raise ValueError(f"{found.name} reads no texts; leave out 'text' or set prior.text_length: data")
        prior.attach(tokenizer.vectors())
        recipe = replace(
            self, data=examples.data, tokenizer=tokenizer_section, prior=NewModel.of(found.name, config), text=text
        )
        return _Parts(tokenizer, prior, examples, captions, recipe)

    def _tokenizer_of_pixels(self, examples: Examples) -> tuple[Tokenizer, NewModel]:
        given = self.tokenizer or NewModel(name="pixels")
        model = entry("tokenizers", given.name).model
        if issubclass(model, LearnedTokenizer):
            raise ValueError(
                f"the tokenizer {given.name} must be trained before a prior over its codes; "
                "write tokenizer: {path: the folder of its run}"
            )
        levels = 2 if self.data.binarize != "none" else self.data.levels
        config = given.config("tokenizers", examples.image_fields() | {"levels": levels})
        return model(config), NewModel.of(given.name, config)

    def _implied_text(self, examples: Examples, tokenizer: Tokenizer, found: Entry) -> TextConfig | None:
        """How captions are read where the recipe does not say it but the prior needs them, or else None."""
        if examples.training.texts is None or "text_length" in self.prior.options:
            return None
        try:
            found.model.spec_of(tokenizer.spec, None)
        except ValueError:
            return TextConfig()
        length = _default(found.config, "text_length")
        wanted = length is not None and (length > 0 or self.data.text_column is not None)
        return TextConfig() if wanted else None

    def _prior_config(self, examples: Examples, reader: TextTokenizer | None, learned: bool) -> Any:
        """The config of a new prior; `learned` says whether its codes are those of a learned tokenizer."""
        classes = {"num_classes": examples.training.num_classes}
        text = {"text_length": reader and reader.length, "text_vocab_size": reader and reader.text_vocab_size}
        implied = dict(classes) if examples.labels_are_meant else {}
        if learned and _default(entry("priors", self.prior.name).config, "embedding_dim") == 0:
            implied["embedding_dim"] = EMBEDDING_DIM
        if reader is not None:
            implied |= text
        config = self.prior.config("priors", implied, classes | text)
        if self.training.label_dropout and isinstance(config, ClassLabels) and config.num_classes:
            config = replace(config, null_label=True)
        return config


def _with_classes(prior: Prior, count: int, null_label: bool) -> Prior:
    """A prior of `count` other classes: weights whose shape depends on their number are new, the others stay.

    Raises:
        ValueError: a prior that can have no classes.
    """
    if not isinstance(prior.config, ClassLabels):
        raise ValueError(f"{prior.name} has no classes that could be replaced; leave out prior.num_classes")
    new = type(prior)(prior.spec, replace(prior.config, num_classes=count, null_label=null_label))
    weights, old = new.state_dict(), prior.state_dict()
    same = {name: value for name, value in old.items() if name in weights and weights[name].shape == value.shape}
    new.load_state_dict(weights | same)
    return new


def _default(config: type, name: str) -> Any:
    """The default of a field of a config, None where there is no such field."""
    return next((f.default for f in fields(config) if f.name == name), None)


@dataclass(frozen=True)
class _Parts:
    """What is trained, on what, and the recipe in full."""

    tokenizer: Tokenizer
    prior: Prior
    examples: Examples
    captions: Captions | None
    recipe: PriorRecipe
