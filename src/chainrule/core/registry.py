"""Names of models, for recipes, saved pipelines, the command line and the contract tests.

Registering a model is one decorator above its class.  The contract tests find it there and hold the model to them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

from .codes import CodeSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Preset:
    """A size of a model: its config and, for priors, the codes it is meant for."""

    config: object
    spec: CodeSpec | None = None


@dataclass(frozen=True)
class Entry:
    """A registered model.

    name:    of the model
    model:   its class
    config:  the class of its config
    presets: published sizes by name
    small:   fields of the config for a size that a CPU trains, from which a recipe without a preset begins
    """

    name: str
    model: type
    config: type
    presets: Mapping[str, Preset]
    small: Mapping[str, object]

    def preset(self, name: str) -> Preset:
        """The preset of a name.

        Raises:
            ValueError: there is none; the sentence names the nearest.
        """
        return _lookup(self.presets, name, f"{self.name} has no preset {name!r}")


_TABLES: dict[str, dict[str, Entry]] = {"tokenizers": {}, "priors": {}}


def register(
    kind: str, name: str, config: type, presets: Mapping[str, Preset] = {}, small: Mapping[str, object] = {}
) -> Callable[[type], type]:
    """Class decorator: enrols a model of `kind` ("tokenizers" or "priors") under `name`."""

    def decorate(model: type) -> type:
        assert not any(name in table for table in _TABLES.values()), f"{name} is registered twice"
        model.name = name
        _TABLES[kind][name] = Entry(name, model, config, presets, small)
        return model

    return decorate


def entries(kind: str) -> dict[str, Entry]:
    """All models of a kind by name; imports the model files of that kind."""
    package = importlib.import_module(f"chainrule.{kind}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"chainrule.{kind}.{module.name}")
    return dict(sorted(_TABLES[kind].items()))


def entry(kind: str, name: str) -> Entry:
    """The model `name` of a kind.

    Raises:
        ValueError: no such model; the sentence names the nearest.
    """
    return _lookup(entries(kind), name, f"no {kind[:-1]} is called {name!r}")


def find_entry(name: str) -> Entry:
    """The tokenizer or prior of a name; their names differ.

    Raises:
        ValueError: no such model; the sentence names the nearest.
    """
    both = entries("tokenizers") | entries("priors")
    return _lookup(both, name, f"no tokenizer or prior is called {name!r}")


def _lookup(table: Mapping[str, T], name: str, missing: str) -> T:
    if name not in table:
        near = get_close_matches(name, table, n=1)
        names = f"there are: {', '.join(table)}" if table else "there are none"
        raise ValueError(f"{missing}; {f'did you mean {near[0]!r}?' if near else names}")
    return table[name]
