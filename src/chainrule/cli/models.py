"""`chainrule models`, `info` and `recipes`: what there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .common import print_json, print_table
from .options import Json, Model


def models(json: Json = False) -> None:
    """List the bundled models with their figures.

    \b
    Examples:
      chainrule models
      chainrule models --json
    """
    from ..catalogue import bundled

    rows = bundled()
    if json:
        print_json(rows)
    elif not rows:
        print("No models are bundled with this installation; train one with: chainrule train RECIPE")
    else:
        print_table(
            ["model", "system", "data", "parameters", "size", "figures"],
            [
                [row["name"], row["system"], row["data"] or "", f"{row['parameters']:,}", _size(row["bytes"]),
                 _figures(row["figures"])]
                for row in rows
            ],
        )  # fmt: skip


def info(model: Model, json: Json = False) -> None:
    """Show a model's parts, codes, classes and card; or the config and card of a reranker, classifier or upscaler.

    \b
    Examples:
      chainrule info mnist_diagonal_bilstm
      chainrule info runs/mine --json
    """
    from ..catalogue import info as describe
    from ..strict import write_yaml

    value = describe(model)
    print_json(value) if json else print(write_yaml(value), end="")


def recipes(json: Json = False) -> None:
    """List the recipes that come with chainrule, for `chainrule train`.

    \b
    Examples:
      chainrule recipes
    """
    from ..recipe import find_recipe, recipe_names

    rows = []
    for name in recipe_names():
        first = find_recipe(name).read_text(encoding="utf-8").splitlines()[0]
        rows.append({"name": name, "about": first.removeprefix("#").strip()})
    if json:
        print_json(rows)
    else:
        print_table(["recipe", "about"], [[row["name"], row["about"]] for row in rows])


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _figures(figures: Mapping[str, Any]) -> str:
    """Figures in words; each is a value, or a mapping with `value` and perhaps `standard_error`."""
    words = []
    for name, figure in figures.items():
        if isinstance(figure, Mapping):
            error = f" ± {figure['standard_error']:.2g}" if figure.get("standard_error") is not None else ""
            words.append(f"{name} {_number(figure.get('value'))}{error}")
        else:
            words.append(f"{name} {_number(figure)}")
    return ", ".join(words)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
