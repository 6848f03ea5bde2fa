"""A tokenizer alone as an artefact: a saved model's folder whose config.yaml has no prior.

config.yaml              format, tokenizer (name and config), card
tokenizer.safetensors    its weights
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .core import Tokenizer
from .pipeline import FORMAT, describe, find, read_config, read_tokenizer, refuse_scorer, write_model


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
    refuse_scorer(folder, config)
    description = config.get("tokenizer")
    if not isinstance(description, Mapping) or not {"name", "config"} <= set(description):
        raise ValueError(f"{folder / 'config.yaml'} is incomplete or damaged; copy it again")
    return read_tokenizer(folder, description).eval().to(device)


def has_prior(name: str | os.PathLike) -> bool:
    """Whether a saved model is more than a tokenizer; raises ValueError as `load_tokenizer` does."""
    return "prior" in read_config(find(name))


def read_card(name: str | os.PathLike) -> dict[str, Any]:
    """The card of a saved model, {} if it has none; raises ValueError as `load_tokenizer` does."""
    card = read_config(find(name)).get("card") or {}
    return dict(card)
