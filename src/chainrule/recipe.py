"""Recipes: what to train, on what and how, as one file.

A recipe is one YAML file of these sections; without `prior` it trains the tokenizer, with it the prior.  In place of
both, `classifier` or `reranker` trains a model that judges images, and `super_resolution` one that doubles them::

    data:        the images                          chainrule.data.DataConfig
    tokenizer:   {name: ..., fields of its config}   the image's height, width and channels default to the data's
                 or {path: ...}                      a trained one: SavedTokenizer
    prior:       {name: ..., fields of its config}   `num_classes: data` is the number of classes of the data, and
                                                     `text_length: data`, `text_vocab_size: data` are those of the text
    reranker:    {fields of its config}              scorers.reranker.RerankerConfig; those of images and texts
                                                     are those of the data
    text:        how captions are read               TextConfig
    losses:      what a tokenizer minimises besides  LossesConfig
    classifier:  sizes of a classifier of the data   scorers.classifier.ClassifierConfig, less what the data say
    super_resolution: {fields of its config}         upscaling.upscaler.UpscalerConfig; it doubles what
                                                     the tokenizer, if there is one, gives of the data at half size
    training:    how to train                        TrainingConfig
    evaluation:  how to evaluate while training      EvaluationConfig
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from .strict import build_dataclass, check_keys, nearest, parse_yaml, read_yaml

RECIPES = Path(__file__).parent / "recipes"

T = TypeVar("T")


# ---------------------------------------------------------------- sections of a recipe


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; the same for every model.

    steps:            number of optimizer steps
    batch_size:       images per step, over all processes together
    optimizer:        muon, adam, adamw, adamax or rmsprop
    betas:            of the Adams (in muon, too); left out, the optimizer's default
    weight_decay:     of matrices and filters; biases and gains are never decayed
    schedule:         constant; cosine or linear, which fall to 0 at the last step; or wsd (warm-up, stable,
                      decay: constant, then linear to 0 over the last `decay_share` of the steps)
    warmup_steps:     steps over which the learning rate first rises linearly, for every schedule
    gradient_clip:    largest norm of the whole gradient; 0 is no limit
    ema_decay:        of the exponential moving average of the weights, which is what is evaluated and saved; 0 is none
    precision:        float32; bfloat16 (autocast: weights stay float32); auto is bfloat16 where the hardware has it
    compile:          torch.compile of the model; auto where there is a C++ compiler and more than 500 steps repay it
    channels_last:    memory format of the filters
    label_dropout:    share of the labels that a prior is given as "no class", so that it can be guided; 0 is none
    caption_dropout:     share of the captions that a prior is given as the empty text, for the same; 0 is none
    soft_targets:     temperature at which a prior's codes are drawn and softened, as RQ-VAE can; 0 is none
    code_noise:       of the codes that a prior reads, not of those it tells, a share is replaced by random ones, drawn
                      for each image between 0 and this; 0 is none
    seed:             of the weights, the order of the images and all noise
    save_every, sample_every, log_every: steps; `sample_every: 0` draws no samples
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["muon", "adam", "adamw", "adamax", "rmsprop"] = "adam"
    betas: tuple[float, float] | None = None
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    warmup_steps: int = 0
    decay_share: float | None = None
    gradient_clip: float = 0.0
    ema_decay: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    channels_last: bool = False
    label_dropout: float = 0.0
    caption_dropout: float = 0.0
    soft_targets: float = 0.0
    code_noise: float = 0.0
    seed: int = 0
    save_every: int = 1000
    sample_every: int = 0
    log_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "gradient_clip", "soft_targets", "sample_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("label_dropout", "caption_dropout", "code_noise", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in 0..1, 1 excluded, got {getattr(self, name)}")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        if self.betas is not None and self.optimizer == "rmsprop":
            raise ValueError("betas would be ignored: rmsprop has none")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in 0..1, 1 excluded, got {list(self.betas)}")
        if (self.decay_share is not None) != (self.schedule == "wsd"):
            raise ValueError("decay_share belongs to the schedule wsd: give both or neither")
        if self.decay_share is not None and not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share must lie in 0..1, 0 excluded, got {self.decay_share}")


@dataclass(frozen=True)
class EvaluationConfig:
    """How to evaluate: every `every` steps on the first `limit` images of `split`, at the end on all of it."""

    split: str = "test"
    every: int = 1000
    limit: int = 1000
    batch_size: int = 100

    def __post_init__(self) -> None:
        for name in ("every", "limit", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class PerceptualConfig:
    """The distance of images in the features of a network, added to what a tokenizer or super-resolution minimises.

    weight:  of the distance
    network: efficientnet_lite0 (from packages, works offline) or vgg16_lpips (its weights are downloaded)
    side:    images whose shorter side is below it are enlarged to it, at a cost that grows with its square; 0 is
             never, and left out it is what the network was trained on
    """

    weight: float = 1.0
    network: Literal["efficientnet_lite0", "vgg16_lpips"] = "efficientnet_lite0"
    side: int | None = None

    def __post_init__(self) -> None:
        if self.side is not None and self.side < 0:
            raise ValueError(f"side must be at least 0, got {self.side}")
        if not self.weight > 0:
            raise ValueError(f"the weight of the perceptual loss must be above 0, got {self.weight}")


@dataclass(frozen=True)
class AdversarialConfig:
    """A discriminator of images and reconstructions, and how much the tokenizer minds it; defaults as VQGAN has.

    weight:        of the tokenizer's adversarial loss
    adaptive:      whether the weight is multiplied by the ratio of the gradients of all other losses and of this one,
                   at the tokenizer's last layer
    start:         share of the steps after which it begins
    discriminator: patch (PatchGAN) or style (residual, as StyleGAN2's)
    channels:      of the discriminator's first layer
    num_layers:    halvings of the patch discriminator, 3 if left out; the style one has as many as the image allows
    learning_rate, betas: of the discriminator's Adam; the rate follows the schedule of the section `training`
    """

    weight: float = 0.8
    adaptive: bool = True
    start: float = 0.25
    discriminator: Literal["patch", "style"] = "patch"
    channels: int = 64
    num_layers: int | None = None
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"the weight of the adversarial loss must be above 0, got {self.weight}")
        if not 0 <= self.start < 1:
            raise ValueError(f"start must lie in 0..1, 1 excluded (a share of the steps), got {self.start}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if self.num_layers is not None and self.discriminator != "patch":
            raise ValueError("num_layers belongs to the patch discriminator and would be ignored")
        if self.num_layers is not None and self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in 0..1, 1 excluded, got {list(self.betas)}")


@dataclass(frozen=True)
class LossesConfig:
    """What a tokenizer or super-resolution minimises besides its own loss; left out, nothing."""

    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None


@dataclass(frozen=True)
class TextConfig:
    """How a prior or a reranker reads captions: byte-pair encoding, learned from those of the training images.

    length:     tokens of a caption; of longer ones the rest is cut off
    text_vocab_size: at most so many tokens, at least 257: padding and all bytes
    lowercase:  whether capitals count as small letters
    vocabulary: instead of learning one, a file of the `tokenizers` package with a byte-pair encoding whose token 0 is
                the padding
    bpe_dropout:    share of merges left out at each visit of a training caption (BPE dropout); 0 is none
    """

    length: int
    text_vocab_size: int = 4096
    lowercase: bool = True
    vocabulary: Path | None = None
    bpe_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        if not 0 <= self.bpe_dropout < 1:
            raise ValueError(f"bpe_dropout must lie in 0..1, 1 excluded, got {self.bpe_dropout}")


@dataclass(frozen=True)
class ModelConfig:
    """The name of a registered model and those fields of its config that the recipe gives."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedTokenizer:
    """A trained tokenizer.

    path: a folder that holds one, the folder of a run, or the name of a bundled model
    hash: its sha256, checked where it is given; a run writes down that of the tokenizer it has found
    decoder: without a prior, its decoder is trained further and nothing else, with these fields of its config changed
    """

    path: str
    hash: str | None = None
    decoder: dict[str, Any] | None = None


@dataclass(frozen=True)
class SavedPrior:
    """A trained prior to go on with, on other data: a folder, the folder of a run, or the name of a bundled model.

    Its tokenizer and the vocabulary of its captions come with it."""

    path: str


@dataclass(frozen=True)
class Recipe:
    """A recipe as read; `where` names it in messages.  Without a prior it trains the tokenizer, which a saved
    prior brings; with a classifier or a reranker it has neither, and with a super-resolution no prior."""

    data: Any  # chainrule.data.DataConfig
    tokenizer: ModelConfig | SavedTokenizer | None
    prior: ModelConfig | SavedPrior | None
    training: TrainingConfig
    evaluation: EvaluationConfig
    losses: LossesConfig = LossesConfig()
    text: TextConfig | None = None
    classifier: Mapping[str, Any] | None = None
    reranker: Mapping[str, Any] | None = None
    super_resolution: Mapping[str, Any] | None = None
    where: str = "recipe"


# ---------------------------------------------------------------- recipes


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str | os.PathLike) -> Path:
    """The file of a recipe, given its path or the name of one that comes with the package.

    Raises:
        ValueError: there is none; the sentence names the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = RECIPES / f"{name}.yaml"
    if path.parent == Path(".") and bundled.is_file():
        return bundled
    names = recipe_names()
    raise ValueError(f"no recipe {str(name)!r}, neither a file nor one of the package; {nearest(path.stem, names)}")


def read_recipe(name: str | os.PathLike, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by path or name; `overrides` are of the form "training.steps=200".

    Raises:
        ValueError: no such recipe, or anything in it that is not understood.
    """
    path = find_recipe(name)
    mapping = read_yaml(path)
    for override in overrides:
        _apply_override(mapping, override)
    return build_recipe(mapping, " ".join([path.name, *overrides]))


def build_recipe(mapping: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from the mapping that its file holds; raises ValueError as `build_dataclass` does."""
    from .data import DataConfig

    sections = [f.name for f in fields(Recipe) if f.name != "where"]
    check_keys(mapping, sections, where, "")
    alone = {"classifier": set(), "reranker": {"text"}, "super_resolution": {"tokenizer", "losses"}}
    other = next((section for section in alone if section in mapping), None)
    required = {"data", "training", other or "tokenizer"} | ({"text"} if other == "reranker" else set())
    if not other and "path" in (mapping.get("prior") or {}):
        required.remove("tokenizer")
        for section in mapping.keys() & {"tokenizer", "text"}:
            raise ValueError(f"{where}: the prior of a 'path' comes with its {section}; leave out {section!r}")
    for section in mapping:
        if other and section not in required | alone[other] | {"evaluation"}:
            raise ValueError(f"{where}: a recipe with a {other!r} trains nothing else; leave out {section!r}")
    for section in sections:
        if section not in mapping and section in required:
            raise ValueError(f"{where}: the section {section!r} is missing")
        if not isinstance(mapping.get(section, {}), Mapping):
            raise ValueError(f"{where}: {section!r} must hold keys and values, got {mapping[section]!r}")
    if "prior" in mapping and "losses" in mapping:
        raise ValueError(f"{where}: 'losses' are those of a tokenizer's training; a recipe with a 'prior' has none")
    if "text" in mapping and "prior" not in mapping and not other:
        raise ValueError(f"{where}: a 'text' is read by a prior; a tokenizer's recipe has none")
    tokenizer = _model(mapping["tokenizer"], SavedTokenizer, where, "tokenizer") if "tokenizer" in mapping else None
    if isinstance(tokenizer, SavedTokenizer) and tokenizer.decoder is not None and ("prior" in mapping or other):
        raise ValueError(f"{where}: a 'tokenizer.decoder' is trained alone; leave it out, or {other or 'prior'!r}")
    return Recipe(
        data=build_dataclass(DataConfig, mapping["data"], where, "data"),
        tokenizer=tokenizer,
        prior=_model(mapping["prior"], SavedPrior, where, "prior") if "prior" in mapping else None,
        training=build_dataclass(TrainingConfig, mapping["training"], where, "training"),
        evaluation=build_dataclass(EvaluationConfig, mapping.get("evaluation", {}), where, "evaluation"),
        losses=build_dataclass(LossesConfig, mapping.get("losses", {}), where, "losses"),
        text=build_dataclass(TextConfig, mapping["text"], where, "text") if "text" in mapping else None,
        classifier=mapping.get("classifier"),
        reranker=mapping.get("reranker"),
        super_resolution=mapping.get("super_resolution"),
        where=where,
    )


def build_model_config(
    kind: str, given: ModelConfig, where: str, defaults: Mapping[str, Any] = {}, words: Mapping[str, Any] = {}
) -> Any:
    """The config of a registered model ("tokenizers" or "priors").

    Args:
        kind: "tokenizers" or "priors".
        given: what the recipe says.
        where: the recipe, for messages.
        defaults: values of fields that the recipe leaves out, where the config has such fields.
        words: what `data` stands for, by field: {"num_classes": 10} turns `num_classes: data` into 10; None
            where the data has nothing to say, which makes `data` an error.
    """
    from .core import entry

    cls = entry(kind, given.name).config
    known = {f.name for f in fields(cls)}
    options = {key: value for key, value in defaults.items() if key in known}
    for key, value in given.options.items():
        if value == "data" and key in words:
            value = words[key]
            if value is None:
                raise ValueError(f"{where}: '{kind[:-1]}.{key}' is to be that of the data, which has none")
        options[key] = value
    return build_dataclass(cls, options, where, kind[:-1])


# ---------------------------------------------------------------- parts


def _model_config(mapping: Mapping[str, Any], where: str, section: str) -> ModelConfig:
    options = dict(mapping)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"{where}: {section + '.name'!r} must be the name of a {section}, got {name!r}")
    return ModelConfig(name, options)


def _model(mapping: Mapping[str, Any], saved: type[T], where: str, section: str) -> ModelConfig | T:
    """A model to build, by its `name`, or one that is there, by its `path`."""
    if "path" in mapping:
        return build_dataclass(saved, mapping, where, section)
    return _model_config(mapping, where, section)


def _apply_override(mapping: dict[str, Any], override: str) -> None:
    """Sets what "training.steps=200" says in the mapping of a recipe."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ValueError(f"an override reads section.key=value, such as training.steps=200, got {override!r}")
    for depth, key in enumerate(keys[:-1]):
        mapping = mapping.setdefault(key, {})
        if not isinstance(mapping, dict):
            raise ValueError(f"{override!r} reaches into {'.'.join(keys[: depth + 1])!r}, which holds a plain value")
    mapping[keys[-1]] = parse_yaml(text, override)
