"""Stage two: a prior over the codes of a tokenizer that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ...adapters import base_of
from ...core import ClassLabels, Entry, LearnedTokenizer, Prior, Tokenizer, entry
from ...data import DataConfig
from ...layers.lora import add_lora
from ...pipeline import Pipeline
from ...recipe import NewModel, Recipe, SavedPrior, SavedTokenizer, weights_on
from ...saving.model import AdapterPart, prior_hash
from ...strict import section
from ...text.bpe import TextConfig, TextTokenizer
from ...zoo import load_kind
from ..engine.config import EvaluationConfig
from ..engine.order import derive_seed
from .captions import Captions, check_captions, learn_text
from .codes import check_shape, fit_to, open_tokenizer
from .examples import Examples, load_examples, sized
from .further import Further, at_codes, with_classes
from .prior_task import PriorTask, PriorTrainingConfig
from .streams import stream_examples

LARGEST_OF_PIXELS = 32
"""Pixels of the shorter side where a prior models pixels and the recipe gives no size."""
EMBEDDING_DIM = 64
"""Width of the learned vectors of codes without an order, for priors that otherwise read codes as numbers."""


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
        """See `Recipe`; what is not in the cache of codes, `PriorTask.setup` encodes."""
        torch.manual_seed(derive_seed(self.training.seed, "weights"))
        parts = (self._open if isinstance(self.prior, SavedPrior) else self._new)(device, quiet)
        examples = parts.examples
        check_shape(parts.tokenizer, examples)
        card = examples.card(parts.recipe)
        task = PriorTask(
            parts.tokenizer, parts.prior, examples, self.training, parts.captions, card, parts.further, quiet
        )  # fmt: skip
        if device.type == "meta":
            task.keep_codes(device)
        return task, parts.recipe

    def _open(self, device: torch.device, quiet: bool) -> _Parts:
        """The parts of a trained prior."""
        saved, path = load_kind(self.prior.path, "pipeline"), self.prior.path
        examples = self._examples(saved.tokenizer, device, quiet)
        tokenizer = fit_to(saved.tokenizer, examples)
        prior, new, notes = at_codes(saved.prior, tokenizer.spec).requires_grad_(True), [], []
        if self.prior.num_classes is None:
            examples = examples.matched(saved.class_names, saved.num_classes, path)
        else:
            given = self.prior.num_classes
            count = examples.training.num_classes or 0 if given == "data" else given
            prior, new, note = with_classes(prior, count, null_label=self.training.label_dropout > 0)
            notes.append(note)
        captions, adapter, lora = self._captions_of(saved, examples), None, self.training.lora
        if lora is not None:
            adapter = AdapterPart(base=base_of(path), hash=prior_hash(saved.prior), rank=lora.rank, alpha=lora.alpha)
            notes.append(add_lora(prior, lora, new))
        further = Further(adapter, tuple(notes))
        return _Parts(tokenizer, prior, examples, captions, replace(self, data=examples.data), further)

    def _captions_of(self, saved: Pipeline, examples: Examples) -> Captions | None:
        """The captions as a trained prior reads them."""
        if saved.text_tokenizer is not None:
            check_captions("prior", examples)
            return Captions(saved.text_tokenizer, examples)
        if saved.prior.conditions.reads_text:
            raise ValueError(
                f"{self.prior.path} draws from texts but holds no text tokenizer, so it cannot be trained further; "
                "save it with its text tokenizer"
            )
        return None

    def _new(self, device: torch.device, quiet: bool) -> _Parts:
        """The tokenizer and a new prior over its codes."""
        if self.training.lora is not None:
            raise ValueError("lora changes a trained prior: give prior.path, or leave out training.lora")
        if isinstance(self.tokenizer, SavedTokenizer):
            tokenizer, found_hash = open_tokenizer(self.tokenizer.path, self.tokenizer.hash)
            tokenizer_section = replace(self.tokenizer, hash=found_hash)
            examples = self._examples(tokenizer, device, quiet)
            tokenizer = fit_to(tokenizer, examples)
        else:
            examples = load_examples(self.data, self.evaluation, LARGEST_OF_PIXELS)
            tokenizer, tokenizer_section = self._tokenizer_of_pixels(examples)
        found = entry("priors", self.prior.name)
        text = self.text or self._implied_text(examples, tokenizer, found)
        captions = text and Captions(learn_text(text, examples), examples, text.bpe_dropout)
        reader = captions and captions.tokenizer
        config = self._prior_config(examples, reader, isinstance(tokenizer, LearnedTokenizer))
        with weights_on(device):
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

    def _examples(self, tokenizer: Tokenizer, device: torch.device, quiet: bool) -> Examples:
        """The images for a trained tokenizer, or, of a stream, their codes."""
        data = sized(self.data, tokenizer.image_shape)
        if not data.stream or not isinstance(tokenizer, LearnedTokenizer):
            return load_examples(data, self.evaluation)
        return stream_examples(data, self.evaluation, tokenizer.at_size(*data.height_width), device, quiet)

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
    further: Further = Further()
