"""What is known of saved models: the bundled ones at a glance, and one model in full."""

from __future__ import annotations

import os
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from .core import Tokenizer
from .saving.hub import find, models
from .saving.model import read_model, tokenizer_hash
from .saving.weights import read_shapes, weights_sha256
from .strict import to_plain
from .zoo import load


def bundled() -> list[dict[str, Any]]:
    """The bundled models, without loading them.

    Returns:
        one dict per model: name, system, data (or None), parameters, bytes, and figures by name.
    """
    return [_row(name, find(name)) for name in models()]


def info(name: str | os.PathLike) -> dict[str, Any]:
    """A saved model in full, as plain values.

        info("emoji_gpt")["codes_per_image"]

    Args:
        name: a bundled model, a folder, or a hub id.

    Returns:
        Of a tokenizer, or a model with a prior: the configs and parameters of its parts, its codes and classes.  Of a
        reranker, a classifier or an upscaler: its config and parameters.  Of each: weights_sha256, bytes, and the card.

    Raises:
        ValueError: nothing of that name, or damaged files.
    """
    folder = find(name)
    saved = read_model(folder)
    value = {"name": os.fspath(name), "kind": saved.kind}
    if saved.tokenizer is None:
        value |= {"parameters": _parameters(folder)} | dict(getattr(saved, saved.kind).config)
    else:
        value |= _parts(folder)
    return value | {
        "weights_sha256": weights_sha256(folder),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "card": dict(saved.card),
    }


def _parts(folder: Path) -> dict[str, Any]:
    """The tokenizer, the codes and the prior, if any, of a model."""
    model = load(folder)
    pipeline = None if isinstance(model, Tokenizer) else model
    tokenizer: Tokenizer = model if pipeline is None else pipeline.tokenizer
    parts = {"tokenizer": tokenizer} | ({} if pipeline is None else {"prior": pipeline.prior})
    channels, height, width = tokenizer.image_shape
    value = {"image": {"height": height, "width": width, "channels": channels}}
    for kind, part in parts.items():
        value[kind] = {"name": part.name, "parameters": sum(parameter.numel() for parameter in part.parameters())}
        value[kind] |= to_plain(part.config)
    value |= {"codes": [asdict(grid) for grid in tokenizer.spec.grids], "codes_per_image": tokenizer.spec.length}
    if pipeline is not None:
        value |= {"num_classes": pipeline.num_classes, "guidance": pipeline.prior.conditions.null_label}
        value["class_names"] = None if pipeline.class_names is None else list(pipeline.class_names)
    return value | {"tokenizer_hash": tokenizer_hash(tokenizer)}


def _row(name: str, folder: Path) -> dict[str, Any]:
    """A bundled model, without loading it."""
    saved = read_model(folder)
    card, part = saved.card, saved.prior or saved.tokenizer
    return {
        "name": name,
        "system": saved.kind if part is None else part.name,
        "data": ((card.get("recipe") or {}).get("data") or {}).get("source"),
        "parameters": _parameters(folder),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "figures": card.get("figures") or card.get("metrics") or {},
    }


def _parameters(folder: Path) -> int:
    """Numbers in the files of weights, by their headers."""
    return sum(prod(shape) for path in folder.glob("*.safetensors") for shape, _ in read_shapes(path).values())
