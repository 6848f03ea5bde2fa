"""Recipes: what to train, on which images and how, in one YAML file.

A recipe is a table of sections.  Each kind of training is a subclass of `Recipe`: a dataclass whose fields are the
sections that it knows, with their configs as types.  A file is of the kind whose section it has; a section that another
kind reads as well, as a prior's recipe reads `tokenizer`, decides only where it stands alone::

    data: {source: my_pictures}      data: {source: my_pictures}         data: {source: my_pictures}
    tokenizer: {name: vqvae}         tokenizer: {path: runs/vqvae}       prior: {name: pixelcnn}
                                     prior: {name: gpt}

The kinds live in `chainrule.training.tasks`, one file each, and are found there.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

import torch

from .core import entry
from .core.building import shapes_only
from .strict import build_dataclass, check_keys, cut, nearest, parse_yaml, read_yaml, rest, shown, to_plain

RECIPES = Path(__file__).parent / "recipes"
MAX_NAMED = 12
"""Overrides of a recipe that its name in a message has."""


class Recipe(ABC):
    """What one kind of training is told: a frozen dataclass whose fields are the sections of its file.

        @dataclass(frozen=True, kw_only=True)
        class ToyRecipe(Recipe, kind="toy"): ...

    Every kind has the sections `data`, `training` and `evaluation`.
    """

    kinds: ClassVar[dict[str, type[Recipe]]] = {}
    kind: ClassVar[str]

    def __init_subclass__(cls, kind: str) -> None:
        cls.kind = kind
        Recipe.kinds[kind] = cls

    @abstractmethod
    def build(self, device: Any, quiet: bool) -> tuple[Any, Recipe]:
        """The task, and this recipe with every default written out.

        Args:
            device: the `torch.device` for what is computed here, such as the codes of all images.  On "meta" nothing is
                computed, and new models have shapes but no weights.
            quiet: whether to print nothing.

        Raises:
            ValueError: images, models or values that do not go together.
        """

    def plain(self) -> dict[str, Any]:
        """The sections as plain values, as the file of a run holds them."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: to_plain(value) for name, value in found.items() if value is not None}


# ---------------------------------------------------------------- models in recipes


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """A model to build.

    name:    of a registered tokenizer or prior
    options: fields of the model's config, where `data` stands for what the data has (`num_classes: data`), and
             `preset`, the name of sizes (see `chainrule presets`); without a preset, sizes that a CPU trains
    """

    name: str
    options: Mapping[str, Any] = rest()

    def config(self, kind: str, defaults: Mapping[str, Any] = {}, words: Mapping[str, Any] = {}) -> Any:
        """The config of the model.

        Args:
            kind: "tokenizers" or "priors".
            defaults: values of fields that are not among the options, where the config has such fields.
            words: what `data` stands for, by field: {"num_classes": 10} turns `num_classes: data` into 10; None
                where the data has nothing to say, which makes `data` an error.

        Raises:
            ValueError: a model, preset, field or value that does not exist.
        """
        found, section = entry(kind, self.name), kind[:-1]
        known = {f.name for f in fields(found.config)}
        given = dict(self.options)
        sizes = to_plain(found.preset(given.pop("preset")).config) if "preset" in given else dict(found.small)
        options = {key: value for key, value in (sizes | dict(defaults)).items() if key in known}
        for key, value in given.items():
            if value == "data" and key in words:
                value = words[key]
                if value is None:
                    raise ValueError(f"'{section}.{key}' is taken from the data, and these data have none")
            options[key] = value
        return build_dataclass(found.config, options, "", section)

    @staticmethod
    def of(name: str, config: Any) -> NewModel:
        """The model of a name with all fields of its config."""
        return NewModel(name=name, options=to_plain(config))


@dataclass(frozen=True, kw_only=True)
class SavedTokenizer:
    """A trained tokenizer.

    path: a folder that holds one, the folder of a run, or the name of a bundled model
    hash: its sha256, checked where it is given; a run writes down the one that it has found
    """

    path: str
    hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class SavedPrior:
    """A trained prior, which is trained further; its tokenizer and the vocabulary of its captions come with it.

    path:        a folder that holds one, the folder of a run, or the name of a bundled model
    num_classes: classes in place of its own, whose weights are new; `data` are those of the images, 0 is none, and left
                 out it keeps its classes
    """

    path: str
    num_classes: int | Literal["data"] | None = None


# ---------------------------------------------------------------- reading


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
        apply_override(mapping, override)
    return build_recipe(mapping, describe(path, overrides))


def describe(name: str | os.PathLike, overrides: Sequence[str] = ()) -> str:
    """A recipe and its overrides, as messages call them."""
    return " ".join([Path(name).name, *map(cut, overrides[:MAX_NAMED]), *["…"] * (len(overrides) > MAX_NAMED)])


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """Puts the name of a recipe before the sentence of each ValueError inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def weights_on(device: torch.device | None) -> AbstractContextManager:
    """Inside, a new model has no memory for weights if the device is "meta"; otherwise it is as always."""
    return nullcontext() if device is None or device.type != "meta" else shapes_only()


def recipe_kinds() -> dict[str, type[Recipe]]:
    """The kinds of training by the section that decides; imports the files of all tasks."""
    package = importlib.import_module("chainrule.training.tasks")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(Recipe.kinds.items()))


def build_recipe(mapping: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from the mapping that its file holds; raises ValueError as `build_dataclass` does."""
    kinds = recipe_kinds()
    known = list(dict.fromkeys(name for kind in kinds.values() for name in _sections(kind)))
    check_keys(mapping, known, where, "")
    with blaming(where):
        kind = _kind(mapping, kinds)
    for name, optional in _sections(kind).items():
        if name not in mapping and not optional:
            raise ValueError(f"{where}: the section {name!r} is missing")
        if not isinstance(mapping.get(name, {}), Mapping):
            raise ValueError(f"{where}: {name!r} must hold keys and values, got {shown(mapping[name])}")
    return build_dataclass(kind, mapping, where)


def _sections(kind: type[Recipe]) -> dict[str, bool]:
    """The sections of a kind, and whether each may be left out."""
    return {f.name: f.default is not MISSING or f.default_factory is not MISSING for f in fields(kind)}


def _kind(mapping: Mapping[str, Any], kinds: Mapping[str, type[Recipe]]) -> type[Recipe]:
    """The kind of a recipe, which has no section of another kind."""
    found = [name for name in kinds if name in mapping]
    deciding = [name for name in found if not any(name in _sections(kinds[other]) for other in found if other != name)]
    if not deciding:
        raise ValueError(f"a recipe needs one of the sections {', '.join(kinds)}, which say what to train")
    kind = kinds[deciding[0]]
    for name in mapping:
        if name not in _sections(kind):
            raise ValueError(f"a recipe with {kind.kind!r} has no {name!r}; leave out {name!r} or {kind.kind!r}")
        for key in mapping[name] if isinstance(mapping[name], Mapping) else ():
            owners = [other for other in kinds if key in _keys(kinds[other], name)]
            if owners and key not in _keys(kind, name) and _keys(kind, name):
                raise ValueError(f"'{name}.{key}' belongs to a recipe with {owners[0]!r} and would be ignored")
    return kind


def _keys(kind: type[Recipe], section: str) -> dict[str, Any]:
    """The keys of a section and their defaults, where its config is one dataclass."""
    config = get_type_hints(kind).get(section)
    return {f.name: f.default for f in fields(config)} if is_dataclass(config) else {}


def section_defaults(section: str) -> dict[str, Any]:
    """The defaults of a section in recipes of all kinds, as plain values."""
    found = {key: value for kind in recipe_kinds().values() for key, value in _keys(kind, section).items()}
    return {key: to_plain(value) for key, value in found.items() if value is not MISSING}


def apply_override(mapping: dict[str, Any], override: str) -> None:
    """Sets what "training.steps=200" says in the mapping of a recipe."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ValueError(f"an override reads section.key=value, such as training.steps=200, got {shown(override)}")
    for depth, key in enumerate(keys[:-1]):
        mapping = mapping.setdefault(key, {})
        if not isinstance(mapping, dict):
            above = shown(".".join(keys[: depth + 1]))
            raise ValueError(f"{shown(override)} reaches into {above}, which holds a plain value")
    mapping[keys[-1]] = parse_yaml(text, cut(override))
