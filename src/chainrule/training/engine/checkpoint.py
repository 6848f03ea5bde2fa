"""Checkpoints of a run: the newest two."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...files import check_space, write_file

_NAME = re.compile(r"step-(\d+)\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes `folder/step-N.pt` and keeps, of the others, the one before it.

    Args:
        folder: where the checkpoints of a run are.
        step: number of steps taken.
        state: tensors, numbers, strings, dicts and lists.
    """
    mine = folder / f"step-{step:08d}.pt"

    def write(path: Path) -> None:
        check_space(path.parent, _size(state))
        try:
            torch.save(state, path)
        except RuntimeError as error:  # of a full disk; torch says no more
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path)) from error

    write_file(mine, write)
    before = [path for path in list_checkpoints(folder) if path.name < mine.name]
    for path in list_checkpoints(folder):
        if path not in [mine, *before[:1]]:  # those with more steps are damaged, or this would go on from them
            path.unlink(missing_ok=True)


def _size(state: Any) -> int:
    """Bytes of the tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(_size(value) for value in values)


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
            report(f"{path} is damaged ({type(error).__name__}); trying the one before it")
    if paths:
        raise ValueError(f"no checkpoint in {folder} can be read; remove the folder to start again")
    return None
