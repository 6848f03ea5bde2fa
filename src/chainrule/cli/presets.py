"""`chainrule presets`: the published sizes of models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .common import print_json, print_table
from .options import Json


def presets(
    model: Annotated[str | None, typer.Argument(help="A tokenizer or prior; without one, all are listed.")] = None,
    json: Json = False,
) -> None:
    """List the published sizes of tokenizers and priors, with their codes and numbers of parameters.

    A recipe names one in its section `tokenizer` or `prior`: `prior: {name: gpt, preset: imagenet-big}`.

    \b
    Examples:
      chainrule presets
      chainrule presets gpt
    """
    from ..sizes import presets as find

    found = find(model)
    if json:
        print_json([asdict(info) for info in found])
        return
    if not found:
        print(f"{model} has no presets")
        return
    rows = [
        [info.model, info.preset, info.kind, ", ".join(_grid(*grid) for grid in info.codes), f"{info.parameters:,}"]
        for info in found
    ]
    print_table(["model", "preset", "kind", "codes", "parameters"], rows)


def _grid(height: int, width: int, depth: int, codebook_size: int) -> str:
    shape = f"{height}x{width}" + (f"x{depth}" if depth > 1 else "")
    return f"{shape} of {codebook_size:,}"
