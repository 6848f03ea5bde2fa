"""Names of models to folders: bundled models, folders, hub ids."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from ..files import recover
from ..network import hub_answers, why_no_hub

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def models() -> list[str]:
    """Names of the bundled models."""
    return sorted(folder.parent.name for folder in PRETRAINED.glob("*/config.yaml"))


def find(name: str | os.PathLike, revision: str | None = None, token: str | None = None) -> Path:
    """The folder that `load` reads.

    Args:
        revision, token: of a model on the hub, see `load`.

    Raises:
        ValueError: nothing of that name, or a revision or token that would be ignored.
    """
    text = os.fspath(name)
    folder = PRETRAINED / text if text in models() else _folder(Path(text))
    if folder is not None:
        if revision is not None or token is not None:
            raise ValueError(f"{text} is not read from the hub: leave revision and token out")
        return folder
    folder = Path(text)
    if folder.exists():
        raise ValueError(f"{text} is no saved model: a folder with config.yaml is needed")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return _fetch(text, revision, token)
    near = get_close_matches(text, models(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"bundled are: {', '.join(models()) or 'none'}"
    raise ValueError(f"no model is called {text!r} and there is no such folder; {hint}")


def _fetch(name: str, revision: str | None, token: str | None) -> Path:
    """The folder of a model of the hub; where the hub does not answer, of what was fetched before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    reached = hub_answers()
    try:
        patterns = ["*.yaml", "*.safetensors", "*.json", "*.txt"]
        return Path(
            snapshot_download(
                name, revision=revision, token=token, allow_patterns=patterns, local_files_only=not reached
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        if reached:
            raise ValueError(f"{name} is neither a folder nor a model on the hub ({type(error).__name__})") from error
        raise ValueError(f"{name} is no folder, was not fetched before, and {why_no_hub()}") from error


def find_bundled(name: str, where: str) -> Path:
    """The folder of a bundled model; raises ValueError, which begins with `where`, if there is none of that name."""
    if name not in models():
        raise ValueError(f"{where} must be the name of a bundled model, got {name!r}")
    return PRETRAINED / name


def is_local(name: str | os.PathLike) -> bool:
    """Whether `find` needs no network: a bundled model, or a folder with config.yaml."""
    return os.fspath(name) in models() or _folder(Path(name)) is not None


def _folder(folder: Path) -> Path | None:
    """The folder of a saved model, or that of the model in the folder of a training run."""
    for saved in (folder / "model", folder):
        recover(saved)
        if (saved / "config.yaml").is_file():
            return saved
    return None
