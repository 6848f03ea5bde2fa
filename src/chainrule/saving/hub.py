"""Names of models to folders: bundled models, folders, hub ids."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from ..files import recover

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def models() -> list[str]:
    """Names of the bundled models."""
    return sorted(folder.parent.name for folder in PRETRAINED.glob("*/config.yaml"))


def find(name: str | os.PathLike) -> Path:
    """The folder that `load` reads.

    Raises:
        ValueError: nothing of that name.
    """
    text = os.fspath(name)
    if text in models():
        return PRETRAINED / text
    folder = Path(text)
    for saved in (folder, folder / "model"):
        recover(saved)
    if (folder / "model" / "config.yaml").is_file():  # the folder of a training run
        folder = folder / "model"
    if (folder / "config.yaml").is_file():
        return folder
    if folder.exists():
        raise ValueError(f"{text} is no saved model: a folder with config.yaml is needed")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(text, allow_patterns=["*.yaml", "*.safetensors", "*.json", "*.txt"]))
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise ValueError(f"{text} is neither a folder nor a model on the hub ({type(error).__name__})") from error
    near = get_close_matches(text, models(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"bundled are: {', '.join(models()) or 'none'}"
    raise ValueError(f"no model is called {text!r} and there is no such folder; {hint}")
