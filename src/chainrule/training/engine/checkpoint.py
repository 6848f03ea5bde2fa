"""Files of a run that survive a kill at any moment.

A file or folder is written beside its place, forced to the disk, and then renamed into it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"step-(\d+)\.pt")


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Makes the file `path` appear complete or not at all; `write` is given the path to write to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    _force(temporary)
    os.replace(temporary, path)
    _force(path.parent)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces the folder `path`; `write` is given the folder to fill.

    Between two renames the folder is called `.old`: `recover_folder` puts it back after a kill in between.
    """
    temporary, old = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    recover_folder(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for file in temporary.rglob("*"):
        _force(file)
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)
    _force(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undoes what a kill inside `write_folder` left."""
    old = path.with_name(path.name + ".old")
    if old.exists() and not path.exists():
        os.replace(old, path)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes `folder/step-N.pt` and keeps, of the others, the one before it.

    Args:
        folder: where the checkpoints of a run are.
        step: number of steps taken.
        state: tensors, numbers, strings, dicts and lists.
    """
    mine = folder / f"step-{step:08d}.pt"
    write_file(mine, lambda path: torch.save(state, path))
    before = [path for path in list_checkpoints(folder) if path.name < mine.name]
    for path in list_checkpoints(folder):
        if path not in [mine, *before[:1]]:  # those with more steps are damaged, or this would go on from them
            path.unlink(missing_ok=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def load_checkpoint(folder: Path, report: Callable[[str], object]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None where there are none at all.

    Args:
        folder: where the checkpoints of a run are.
        report: is told, in a sentence, of every checkpoint that cannot be read.

    Raises:
        ValueError: there are some, and none can be read.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            report(f"{path} is damaged ({reason.rstrip('.')}); trying the one before it")
    if paths:
        raise ValueError(f"no checkpoint in {folder} can be read; remove the folder to start again")
    return None


def _force(path: Path) -> None:
    """Forces a file or, where the system allows it, a folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
