"""`chainrule models`, `info`, `recipes` and `presets`: what there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Model
from .output import print_json, print_table

if TYPE_CHECKING:
    from ..sizes import PresetInfo

MEMORY = {"float32": "float32, GB", "bfloat16": "bfloat16, GB", "adam": "training, GB", "lora": "training by LoRA, GB",
          "share": "LoRA's share"}  # fmt: skip


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

    firsts = ((name, find_recipe(name).read_text(encoding="utf-8").splitlines()[0]) for name in recipe_names())
    rows = [{"name": name, "about": first.removeprefix("#").strip()} for name, first in firsts]
    print_json(rows) if json else print_table(["recipe", "about"], [list(row.values()) for row in rows])


def presets(
    model: Annotated[str | None, typer.Argument(help="A tokenizer or prior; without one, all are listed.")] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Show the gigabytes that weights and trainings take.")
    ] = False,
    json: Json = False,
) -> None:
    """List the published sizes of tokenizers and priors, with their codes and numbers of parameters.

    A recipe names one in its section `tokenizer` or `prior`: `prior: {name: gpt, preset: imagenet-big}`.

    \b
    Examples:
      chainrule presets
      chainrule presets gpt
      chainrule presets rq_transformer --memory
    """
    from ..sizes import presets as find

    found = find(model)
    rows = [
        [one.model, one.preset, one.kind, ", ".join(_grid(*grid) for grid in one.codes), f"{one.parameters:,}"]
        for one in found
    ]
    if json:
        print_json([asdict(one) | {"memory": one.memory()} for one in found])
    elif not rows:
        print(f"{model} has no presets")
    elif memory:
        print_table(["model", "preset", "parameters", *MEMORY.values()], [_memory(one) for one in found])
    else:
        print_table(["model", "preset", "kind", "codes", "parameters"], rows)


def _memory(one: PresetInfo) -> list[str]:
    gigabytes = one.memory()
    sizes = [f"{gigabytes[name]:.2f}" if name in gigabytes else "" for name in MEMORY if name != "share"]
    return [
        one.model,
        one.preset,
        f"{one.parameters:,}",
        *sizes,
        f"{one.lora / one.parameters:.2%}" if one.lora else "",
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _grid(height: int, width: int, depth: int, codebook_size: int) -> str:
    shape = [height, width] if depth == 1 else [height, width, depth]
    return f"{'x'.join(map(str, shape))} of {codebook_size:,}"


def _figures(figures: Mapping[str, Any]) -> str:
    """Figures in words; each is a value, or a mapping with `value` and perhaps `standard_error`."""
    words = []
    for name, figure in figures.items():
        figure = figure if isinstance(figure, Mapping) else {"value": figure}
        error = f" ± {figure['standard_error']:.2g}" if figure.get("standard_error") is not None else ""
        words.append(f"{name} {_number(figure.get('value'))}{error}")
    return ", ".join(words)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
