"""Saved models by name: a bundled one, a folder, or a hub id."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .core import Tokenizer
from .pipeline import Pipeline
from .saving.folder import (
    FORMAT,
    SUPER_RESOLUTION,
    describe,
    holds,
    read_config,
    read_part,
    read_tokenizer,
    tokenizer_hash,
    write_model,
)
from .saving.hub import find
from .saving.weights import read_weights
from .strict import build_dataclass, to_plain
from .text.bpe import read_text_tokenizer
from .upscaling.upscaler import Upscaler, UpscalerConfig


def load(name: str | os.PathLike, device: str = "cpu") -> Pipeline:
    """A pipeline by the name of a bundled model, a folder, or a hub id such as "user/model".

    Raises:
        ValueError: nothing of that name, or files that do not belong together.
    """
    return _read(find(name)).to(device)


def refuse_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError if a folder holds no model of images but one that doubles or judges them."""
    if config.get("kind") == SUPER_RESOLUTION:
        raise ValueError(
            f"{folder} holds a super-resolution, which draws nothing by itself; open it with "
            "chainrule.load_super_resolution, or give it to chainrule sample as --upscaler"
        )
    if "kind" in config:
        raise ValueError(
            f"{folder} holds a scorer ({config['kind']}), which draws nothing; open it with "
            "chainrule.scorers.load_scorer, or give it to chainrule sample as --reranker"
        )


def _read(folder: Path) -> Pipeline:
    config, path = read_config(folder), folder / "config.yaml"
    refuse_kind(folder, config)
    if "tokenizer" in config and "prior" not in config:
        raise ValueError(f"{folder} holds a tokenizer without a prior; open it with chainrule.load_tokenizer")
    if not (
        holds(config, "tokenizer", "prior", "class_names", "card")
        and holds(config["tokenizer"], "name", "config")
        and holds(config["prior"], "name", "config", "codes", "tokenizer_hash")
        and all(isinstance(part, Mapping) for part in (config["prior"]["config"], config["tokenizer"]["config"]))
        and isinstance(config["card"], Mapping)
    ):
        raise ValueError(f"{path} is incomplete or damaged; copy it again")
    tokenizer = read_tokenizer(folder, config["tokenizer"])
    prior = read_part(folder, "priors", config["prior"])
    if config["prior"]["tokenizer_hash"] != tokenizer_hash(tokenizer):
        raise ValueError(f"the prior in {folder} was trained on the codes of another tokenizer than the one beside it")
    text = config.get("text_tokenizer")
    if text is None:
        return Pipeline(tokenizer, prior, config["class_names"], config["card"])
    if not holds(text, "name", "config"):
        raise ValueError(f"{path} is incomplete or damaged; copy it again")
    text_tokenizer = read_text_tokenizer(folder, text["name"], text["config"])
    if config["prior"].get("text_hash") != text_tokenizer.hash():
        raise ValueError(f"the prior in {folder} was trained on another text tokenizer than the one beside it")
    return Pipeline(tokenizer, prior, config["class_names"], config["card"], text_tokenizer)


def save_tokenizer(
    tokenizer: Tokenizer, folder: str | os.PathLike, card: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Writes a tokenizer; a folder that holds a model is replaced as a whole.

    Args:
        tokenizer: any registered one.
        folder: new, empty, or a saved model.
        card: what is known of it (data, licence, origin, figures), any plain values.
        dtype: of the weights in the file, such as torch.bfloat16 for half the bytes; None: as they are.

    Raises:
        ValueError: the folder exists and is not a saved model.
    """
    config = {"format": FORMAT, "tokenizer": describe("tokenizers", tokenizer), "card": dict(card or {})}
    write_model(Path(folder), config, {"tokenizer": tokenizer}, dtypes={"tokenizer": dtype})


def load_tokenizer(name: str | os.PathLike, device: str = "cpu") -> Tokenizer:
    """The tokenizer of a saved model, with or without a prior, in evaluation mode.

    Args:
        name: a bundled model, a folder, or a hub id, as for `chainrule.load`.
        device: where it computes.

    Raises:
        ValueError: nothing of that name, or damaged files.
    """
    folder = find(name)
    config = read_config(folder)
    refuse_kind(folder, config)
    description = config.get("tokenizer")
    if not isinstance(description, Mapping) or not {"name", "config"} <= set(description):
        raise ValueError(f"{folder / 'config.yaml'} is incomplete or damaged; copy it again")
    return read_tokenizer(folder, description).eval().to(device)


def save_super_resolution(
    model: Upscaler, folder: str | os.PathLike, card: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Writes a super-resolution; arguments and errors as for `save_tokenizer`."""
    config = {"format": FORMAT, "kind": SUPER_RESOLUTION, "config": to_plain(model.config), "card": dict(card or {})}
    write_model(Path(folder), config, {SUPER_RESOLUTION: model}, dtypes={SUPER_RESOLUTION: dtype})


def load_super_resolution(name: str | os.PathLike, device: str = "cpu") -> Upscaler:
    """What takes images to twice their size, in evaluation mode.

        model.upscale(chainrule.load("shapes_parti").sample(4, text="a red circle"))  # uint8 (4, 3, 64, 64)

    Args:
        name: a bundled model, a folder, or a hub id, as for `chainrule.load`.
        device: where it computes.

    Raises:
        ValueError: nothing of that name, a model of another kind, or damaged files.
    """
    folder = find(name)
    config, path = read_config(folder), folder / "config.yaml"
    if config.get("kind") != SUPER_RESOLUTION:
        raise ValueError(f"{folder} holds no super-resolution; train one by a recipe with that section")
    if not isinstance(config.get("config"), Mapping):
        raise ValueError(f"{path} is incomplete or damaged; copy it again")
    model = Upscaler(build_dataclass(UpscalerConfig, config["config"], str(path)))
    read_weights(model, folder / f"{SUPER_RESOLUTION}.safetensors")
    return model.eval().to(device)


def has_prior(name: str | os.PathLike) -> bool:
    """Whether a saved model is more than a tokenizer; raises ValueError as `load_tokenizer` does."""
    return "prior" in read_config(find(name))


def read_card(name: str | os.PathLike) -> dict[str, Any]:
    """The card of a saved model, {} if it has none; raises ValueError as `load_tokenizer` does."""
    card = read_config(find(name)).get("card") or {}
    return dict(card)
