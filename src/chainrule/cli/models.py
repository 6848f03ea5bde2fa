"""`chainrule models`, `info` and `recipes`: what there is."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from .common import open_model, open_tokenizer, print_json, print_table
from .options import Json, Model


def models(json: Json = False) -> None:
    """List the bundled models with their figures.

    \b
    Examples:
      chainrule models
      chainrule models --json
    """
    from ..saving.hub import find
    from ..saving.hub import models as names

    rows = [_row(name, find(name)) for name in names()]
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
    """Show the parts of a model, its codes and classes, and its card; of a scorer or super-resolution, its config.

    \b
    Examples:
      chainrule info mnist_diagonal_bilstm
      chainrule info runs/mine --json
    """
    from ..evaluation.records import weights_sha256
    from ..saving.folder import read_config
    from ..saving.hub import find
    from ..strict import write_yaml
    from ..zoo import read_card

    folder = find(model)
    config = read_config(folder)
    if "kind" in config:
        value = {"name": model, "kind": config["kind"], "parameters": _parameters(folder)}
        value |= config.get("config") or {}
    else:
        value = _parts(model)
    value |= {
        "weights_sha256": weights_sha256(folder),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "card": read_card(model),
    }
    print_json(value) if json else print(write_yaml(value), end="")


def _parts(model: str) -> dict[str, Any]:
    """The tokenizer, the codes and the prior, if any, of a model."""
    from ..saving.folder import tokenizer_hash
    from ..strict import to_plain
    from ..zoo import has_prior

    pipeline = open_model(model) if has_prior(model) else None
    tokenizer = open_tokenizer(model) if pipeline is None else pipeline.tokenizer
    parts = {"tokenizer": tokenizer} | ({} if pipeline is None else {"prior": pipeline.prior})
    channels, height, width = tokenizer.image_shape
    value = {"name": model, "image": {"height": height, "width": width, "channels": channels}}
    for kind, part in parts.items():
        value[kind] = {"name": part.name, "parameters": sum(parameter.numel() for parameter in part.parameters())}
        value[kind] |= to_plain(part.config)
    value |= {
        "codes": [
            {"height": grid.height, "width": grid.width, "depth": grid.depth, "codebook_size": grid.codebook_size}
            for grid in tokenizer.spec.grids
        ],
        "codes_per_image": tokenizer.spec.length,
    }
    if pipeline is not None:
        value |= {
            "num_classes": pipeline.num_classes,
            "guidance": pipeline.prior.conditions.null_label,
            "class_names": None if pipeline.class_names is None else list(pipeline.class_names),
        }
    return value | {"tokenizer_hash": tokenizer_hash(tokenizer)}


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


def _row(name: str, folder: Path) -> dict[str, Any]:
    """A bundled model, without loading it."""
    from ..strict import read_yaml

    config = read_yaml(folder / "config.yaml")
    card = config.get("card") or {}
    return {
        "name": name,
        "system": config.get("kind") or (config.get("prior") or config["tokenizer"])["name"],
        "data": ((card.get("recipe") or {}).get("data") or {}).get("source"),
        "parameters": _parameters(folder),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "figures": card.get("figures") or card.get("metrics") or {},
    }


def _parameters(folder: Path) -> int:
    return sum(_count(path) for path in folder.glob("*.safetensors"))


def _count(path: Path) -> int:
    """Numbers in a safetensors file, by its header: 8 bytes of length, then JSON."""
    from ..saving.weights import SCALE

    with open(path, "rb") as file:
        header = json_module.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__" and not name.endswith(SCALE)}
    return sum(prod(tensor["shape"]) for tensor in tensors.values())


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
