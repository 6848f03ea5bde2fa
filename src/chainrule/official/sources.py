"""What importers share: where a release's files lie, reading its config, filling a model with its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..strict import parse_yaml

Accept = Callable[[Mapping[str, Any]], bool]


def find_config(source: Path, accept: Accept) -> Path | None:
    """The YAML of a release that `accept` knows: in or beside the source, or in a folder `configs` there.

    Of several, the one named like the source's checkpoint, else the first by name.
    """
    found = [path for folder in _folders(source) for path in sorted(folder.glob("*.y*ml")) if _accepted(path, accept)]
    weights = source if source.is_file() else find_weights(source, "*.ckpt", "*.pt", "*.pth")
    named = [path for path in found if weights is not None and path.stem == weights.stem]
    return (named or found or [None])[0]


def find_weights(source: Path, *patterns: str) -> Path | None:
    """The checkpoint of a release: the source itself, or a file of such a name in it or in its folder `checkpoints`.

    Of several, the one called "last", else the last by name.
    """
    if source.is_file():
        return source if any(source.match(pattern) for pattern in patterns) else None
    found = [path for folder in (source, source / "checkpoints") for pattern in patterns
             for path in sorted(folder.glob(pattern))]  # fmt: skip
    last = [path for path in found if path.stem == "last"]
    return (last or found[-1:] or [None])[0]


def _folders(source: Path) -> list[Path]:
    if not source.is_file():
        return [source, source / "configs"]
    folder = source.absolute().parent
    above = [folder.parent, folder.parent / "configs"] if folder.name == "checkpoints" else []
    return [folder, folder / "configs", *above]


def _accepted(path: Path, accept: Accept) -> bool:
    try:
        return accept(read_config(path))
    except (ValueError, OSError):
        return False


def read_config(path: Path) -> dict[str, Any]:
    """The mapping that a release's YAML holds; raises ValueError where it is anything else."""
    value = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must hold keys and values")
    return value


def marked_files(source: Path, mark: bytes) -> list[Path]:
    """The files of a folder, or the file, in which a name stands near the beginning: names come before numbers."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [path for path in files if path.is_file() and has_mark(path, mark)]


def has_mark(path: Path, mark: bytes) -> bool:
    """Whether a name stands in the first megabyte of a file."""
    with path.open("rb") as file:
        return mark in file.read(1 << 20)


def the_only(files: list[Path], source: Path, what: str) -> Path:
    """The file of a list; raises ValueError where there are none or several."""
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise ValueError(f"{source} should hold one {what}, but there are: {names}; name the file")
    return files[0]


def even_use(prefix: str, codebook: Tensor) -> dict[str, Tensor]:
    """Buffers of a codebook (K, C) whose use is not known: even, or all would be restarted by further training."""
    return {prefix + name: torch.ones(len(codebook)) for name in ("usage", "recent")}


def state_dict(checkpoint: Any, where: Path) -> dict[str, Tensor]:
    """The tensors of a model by name: a checkpoint itself, or its entry `state_dict`.

    Raises:
        ValueError: there are none.
    """
    if isinstance(checkpoint, Mapping):
        checkpoint = checkpoint.get("state_dict", checkpoint)
    found = checkpoint.items() if isinstance(checkpoint, Mapping) else ()
    tensors = {key: value for key, value in found if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{where.name} holds no tensors by name")
    return tensors


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Fills a model, in its own type; raises ValueError where names or shapes do not fit exactly."""
    expected = model.state_dict()
    if left := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{where.name} does not fit its config: it has {left[0]}, which the model has not")
    for key, value in expected.items():
        if key not in tensors:
            raise ValueError(f"{where.name} does not fit its config: nothing in it is {key}")
        if tensors[key].shape != value.shape:
            raise ValueError(
                f"{where.name} does not fit its config: {key} should be {tuple(value.shape)}, "
                f"is {tuple(tensors[key].shape)}"
            )
    with torch.no_grad():
        model.load_state_dict({key: value.to(expected[key].dtype) for key, value in tensors.items()})
