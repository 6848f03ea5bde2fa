"""Checkpoints of a run: the newest two.

`step-N.pt` is one file.  Where weights are spread over processes, a checkpoint is the folder `step-N`, in which each
process writes its part (`torch.distributed.checkpoint`) and the first one `rest.pt`, all else.  Both forms are read
by any number of processes, whether these spread their weights or not.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import check_space, write_file, write_folder
from .sharding import empty_like, spread_like

_NAME = re.compile(r"step-(\d+)(\.pt)?")


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
    _remove_others(mine)


def save_shards(folder: Path, step: int, state: dict[str, Any], fabric: Any) -> None:
    """Writes `folder/step-N/` and keeps, of the others, the one before it; all processes of `fabric` take part."""
    from torch.distributed import checkpoint

    mine = folder / f"step-{step:08d}"

    def write(path: Path | None) -> None:
        path = Path(fabric.broadcast(path and str(path)))
        checkpoint.save(_tensors(state), checkpoint_id=path)
        if fabric.is_global_zero:
            shapes = _changed(state, lambda _, tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
            torch.save(shapes, path / "rest.pt")

    if fabric.is_global_zero:
        write_folder(mine, write)
        _remove_others(mine)
    else:
        write(None)


def _remove_others(mine: Path) -> None:
    """Removes all checkpoints but this one and the one before it."""
    found = list_checkpoints(mine.parent)
    before = [path for path in found if path.name < mine.name]
    for path in found:
        if path not in [mine, *before[:1]]:  # those with more steps are damaged, or this would go on from them
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _size(state: Any) -> int:
    """Bytes of the tensors in a state."""
    return sum(tensor.nbytes for tensor in _tensors(state).values())


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def load_checkpoint(
    folder: Path, report: Callable[[str], object], spread: Mapping[str, Tensor] = {}
) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU where it is not spread; None where there are none at all.

    Args:
        folder: where the checkpoints of a run are.
        report: is told, in a sentence, of every checkpoint that cannot be read.
        spread: of a state's tensors that are to be spread over processes, what is spread as they are: by their place in
            the state, such as "average/module/head.weight", or by that of the dict that holds them.

    Raises:
        ValueError: there are some, and none can be read.
    """

    def like(place: str) -> Tensor | None:
        return spread.get(place, spread.get(place.rpartition("/")[0]))

    paths = list_checkpoints(folder)
    for path in paths:
        try:
            if path.is_dir():
                return _load_shards(path, like)
            state = torch.load(path, map_location="cpu", weights_only=True)
            return _changed(state, lambda place, tensor: spread_like(tensor, like(place)))
        except Exception as error:
            report(f"{path} is damaged ({type(error).__name__}); trying the one before it")
    if paths:
        raise ValueError(f"no checkpoint in {folder} can be read; remove the folder to start again")
    return None


def _load_shards(path: Path, like: Callable[[str], Tensor | None]) -> dict[str, Any]:
    from torch.distributed import checkpoint

    state = torch.load(path / "rest.pt", weights_only=True)
    state = _changed(state, lambda place, tensor: empty_like(tensor, like(place)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it would tell that there is one process
        checkpoint.load(_tensors(state), checkpoint_id=path)
    return state


def _tensors(state: Any) -> dict[str, Tensor]:
    """The tensors in a state by their places."""
    found: dict[str, Tensor] = {}
    _changed(state, lambda place, tensor: found.setdefault(place, tensor))
    return found


def _changed(state: Any, change: Callable[[str, Tensor], Tensor], place: str = "") -> Any:
    """A state whose tensors are what `change` makes of them and their places."""
    if isinstance(state, Tensor):
        return change(place, state)
    if isinstance(state, dict):
        return {key: _changed(value, change, f"{place}/{key}".lstrip("/")) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_changed(value, change, f"{place}/{index}") for index, value in enumerate(state))
    return state
