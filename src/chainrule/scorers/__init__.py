"""Models that judge images, for `Pipeline.sample(best_of=, scorer=)`, and their artefacts.

A scorer is saved as a folder:

config.yaml          format, scorer (name and config), card
scorer.safetensors   its weights
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..pipeline import FORMAT, describe, find, read_config, read_part, write_model


def save_scorer(scorer: nn.Module, folder: str | os.PathLike, card: Mapping[str, Any] | None = None) -> None:
    """Writes a scorer; a folder that holds a model is replaced as a whole.

    Args:
        scorer: any registered one.
        folder: new, empty, or a saved model.
        card: what is known of it (data, licence, figures), any plain values.

    Raises:
        ValueError: the folder exists and is not a saved model.
    """
    config = {"format": FORMAT, "scorer": describe("scorers", scorer), "card": dict(card or {})}
    write_model(Path(folder), config, {"scorer": scorer})


def load_scorer(name: str | os.PathLike, device: str = "cpu") -> Any:
    """A saved scorer, in evaluation mode: see its class for what it gives `Pipeline.sample`.

        scorer = load_scorer("runs/emoji_classifier")
        images = model.sample(16, "Flags", best_of=8, scorer=scorer.wanting("Flags"))

    Args:
        name: a folder, that of a run, or a hub id, as for `chainrule.load`.
        device: where it computes.

    Raises:
        ValueError: nothing of that name, a model of another kind, or damaged files.
    """
    folder = find(name)
    description = read_config(folder).get("scorer")
    if not isinstance(description, Mapping) or not isinstance(description.get("config"), Mapping):
        raise ValueError(f"{folder} holds no scorer: its config.yaml has no section of that name")
    return read_part(folder, "scorers", description).eval().to(device)
