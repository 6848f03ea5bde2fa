"""Strict YAML -> frozen dataclasses -> objects.

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

Nothing in a file is ignored: an unknown key, a wrong type or a value out of range is a ValueError
of one sentence that says where it stands.  `build_dataclass` does this for every dataclass, so a
model's config needs type hints and, for ranges, a ValueError in its `__post_init__`.
"""

from __future__ import annotations

import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

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
    raise ValueError(f"no recipe {str(name)!r}, neither a file nor one of the package; {_hint(path.stem, names)}")


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
    _check_keys(mapping, sections, where, "")
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


def to_plain(value: Any) -> Any:
    """A dataclass as what YAML holds: mappings, lists, numbers and strings."""
    if is_dataclass(value):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


# ---------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML that rejects a key given twice and reads 1e-3 as a number (YAML 1.1 has it a string)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name)
        key: list(rules) for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; raises ValueError of one line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping that a YAML file holds; raises ValueError where it holds anything else."""
    path = Path(path)
    value = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: must hold keys and values")
    return value


def write_yaml(value: Any) -> str:
    """A plain value as YAML, keys in the given order."""
    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=120)


# ---------------------------------------------------------------- dataclasses


def build_dataclass(cls: type[T], mapping: Mapping[str, Any], where: str, section: str = "") -> T:
    """An instance of the dataclass `cls` from plain values, strictly.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, Literal, tuple, list, Path, dataclasses, or
            unions of these.
        mapping: plain values by field name; a list for a tuple, a mapping for a dataclass.
        where: what is read, for messages ("recipe.yaml").
        section: the part of it that `mapping` is ("training").

    Raises:
        ValueError: an unknown or missing key, a wrong type, or a value that `cls` itself rejects.
    """
    _check_keys(mapping, [f.name for f in fields(cls) if f.init], where, section)
    hints = typing.get_type_hints(cls)
    values = {}
    for f in fields(cls):
        if not f.init:
            continue
        if f.name in mapping:
            values[f.name] = _convert(mapping[f.name], hints[f.name], where, _join(section, f.name))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{where}: {_join(section, f.name)!r} is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: in {section!r}: {error}" if section else f"{where}: {error}") from None


def _convert(value: Any, hint: Any, where: str, name: str) -> Any:
    """`value` as the type `hint` asks for, or ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        errors = []
        for option in arguments:
            try:
                return _convert(value, option, where, name)
            except ValueError as error:
                errors.append((option, error))
        if isinstance(value, Mapping):  # the sentence about a key inside says more
            for option, error in errors:
                if is_dataclass(option):
                    raise error
        raise _wrong(value, hint, where, name)
    if origin is Literal:
        for allowed in arguments:
            if value == allowed and type(value) is type(allowed):
                return value
        near = _hint(str(value), [str(a) for a in arguments], always=False)
        raise ValueError(f"{where}: {name!r} must be {_describe(hint)}, got {value!r}{near}")
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: {name!r} must hold keys and values, got {value!r}")
        return build_dataclass(hint, value, where, name)
    if origin in (tuple, list) or hint in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, hint, where, name)
        if origin is tuple and arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise _wrong(value, hint, where, name)
            options = arguments
        else:
            options = (arguments[0] if arguments else Any,) * len(value)
        items = [_convert(v, o, where, f"{name}[{i}]") for i, (v, o) in enumerate(zip(value, options, strict=True))]
        return items if list in (origin, hint) else tuple(items)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(value, hint, where, name)
        return dict(value)
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {name!r} must be finite, got {value!r}")
        return float(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is type(None) and value is None:
        return None
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise _wrong(value, hint, where, name)


def _wrong(value: Any, hint: Any, where: str, name: str) -> ValueError:
    return ValueError(f"{where}: {name!r} must be {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(str(option) for option in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} ({', '.join(_describe(a) for a in arguments)})"
    if origin in (tuple, list):
        return f"a list, each {_describe(arguments[0])}"
    words = {
        int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "empty",
        Path: "a path", tuple: "a list", list: "a list", dict: "keys and values",
    }  # fmt: skip
    return words.get(origin or hint, "keys and values")


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


def _check_keys(mapping: Mapping[str, Any], known: Sequence[str], where: str, section: str) -> None:
    for key in mapping:
        if key not in known:
            place = f" in {section!r}" if section else ""
            raise ValueError(f"{where}: unknown key {str(key)!r}{place}; {_hint(str(key), known)}")


def _hint(name: str, known: Sequence[str], always: bool = True) -> str:
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?" if always else f"; did you mean {near[0]!r}?"
    return f"there are: {', '.join(known)}" if always else ""


def _join(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name
