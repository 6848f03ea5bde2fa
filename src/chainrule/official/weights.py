"""The tensors of a release: taken out of what they are wrapped in, and put into a model of ours.

People save one model in many ways: under `state_dict` or `model`, with `module.` of DataParallel or `_orig_mod.` of
torch.compile in its names, as the part of a larger model, whole, as safetensors, in several files. An importer names
one tensor (its mark) that every copy has; around this name everything else is undone here, for all releases alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .reader import Stub, module_tensors, read_checkpoint, sha256
from .sources import Accept, checkpoints, find_config, find_weights, parts, read_config

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Words that DataParallel, torch.compile, FSDP and checkpointing put into the names of tensors."""
MAX_DEPTH = 5  # mappings around a state dict


@dataclass(frozen=True)
class Weights:
    """What a release's files hold.

    path:    the checkpoint
    tensors: by the names of the original code
    content: all that the checkpoint holds
    files:   the sha256 of every file read, by its name
    notes:   what was chosen and what was unwrapped, a sentence each
    config:  what the release's YAML holds
    """

    path: Path
    tensors: dict[str, Tensor]
    content: Any
    files: dict[str, str]
    notes: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)


def read_release(source: Path, accept: Accept, mark: str) -> Weights:
    """The best checkpoint of a source, with the config that lies beside it; `matches` has found both.

    Args:
        accept: whether a config is the release's.
        mark: as in `read_weights`.
    """
    config, path = find_config(source, accept), find_weights(source, mark)
    weights = read_weights(path, mark)
    others = [] if source.is_file() else checkpoints(source, mark)[:-1]
    chosen = f"of {len(others) + 1} checkpoints {path.name} was read; to import another one, give its path"
    notes = ((chosen,) if others else ()) + weights.notes
    files = {config.name: sha256(config)} | weights.files
    return replace(weights, config=read_config(config), files=files, notes=notes)


def read_weights(path: Path, mark: str) -> Weights:
    """The tensors of a checkpoint under the names of the original code.

    Args:
        path: a file of weights, a part of one, or the index of its parts.
        mark: the name of a tensor that every copy of the release has.

    Raises:
        ValueError: there are no tensors by name, or parts are missing.
    """
    files = parts(path)
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{path.name} is one of {len(files)} parts, but {missing[0]} is not beside it")
    contents = [read_checkpoint(file) for file in files]
    content = contents[0]
    if len(contents) > 1:
        if not all(isinstance(one, Mapping) for one in contents):
            raise ValueError(f"the parts of {path.name} do not hold tensors by name")
        content = {key: value for one in contents for key, value in one.items()}
    found = [(where, names, _without_wrappers(names, path)) for where, names in _states(content)]
    if not found:
        raise ValueError(f"{path.name} holds no tensors by name")
    where, names, tensors = min(found, key=lambda one: _rank(one[0], one[2], mark))
    wrapping = [word for word in WRAPPERS if any(word in name.split(".") for name in names)]
    if prefix := _prefix(tensors, mark):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        wrapping.append(prefix.rstrip(".:"))
    notes = [f"under {'.'.join(where)}"] if where else []
    notes += [f"with {' and '.join(wrapping)} in their names"] if wrapping else []
    notes = [f"the tensors of {path.name} lie {', '.join(notes)}"] if notes else []
    hashes = {file.name: sha256(file) for file in dict.fromkeys([*files, path])}
    return Weights(path, tensors, content, hashes, tuple(notes))


def _states(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Tensor]]]:
    """Every mapping of tensors by name in a checkpoint, those of whole pickled modules too, with the keys before it."""
    if isinstance(value, Stub):
        value = module_tensors(value)
    if not isinstance(value, Mapping) or len(where) > MAX_DEPTH:
        return
    if tensors := {key: one for key, one in value.items() if isinstance(key, str) and isinstance(one, Tensor)}:
        yield where, tensors
    for key, one in value.items():
        if isinstance(key, str):
            yield from _states(one, (*where, key))


def _rank(where: tuple[str, ...], tensors: Mapping[str, Tensor], mark: str) -> tuple:
    """The smaller the better: the mark, not an average of the weights, few keys before; else the most tensors."""
    marked = _prefix(tensors, mark) is not None
    return not marked, any("ema" in key.lower() for key in where), len(where) if marked else -len(tensors)


def _prefix(tensors: Mapping[str, Tensor], mark: str) -> str | None:
    """What stands before the mark, at its shortest; None if no tensor is called so."""
    found = [name.removesuffix(mark) for name in tensors if name.endswith(mark)]
    return min((prefix for prefix in found if not prefix or prefix[-1] in ".:/"), key=len, default=None)


def _without_wrappers(names: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    tensors = {".".join(word for word in name.split(".") if word not in WRAPPERS): one for name, one in names.items()}
    if len(tensors) != len(names):
        raise ValueError(
            f"{path.name} holds tensors twice, with and without one of {', '.join(WRAPPERS)} in their names"
        )
    return tensors


UNFIT = "does not fit its config"


@contextmanager
def fitting(where: Path, problem: str = UNFIT) -> Iterator[None]:
    """Turns what is missing in a config or among tensors into a ValueError that says so of the file `where`."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{where.name} {problem}: {error} is missing or wrong") from None


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: Path, problem: str = UNFIT) -> None:
    """Fills a model, in its own type; raises ValueError where names or shapes do not fit exactly."""
    expected, problem = model.state_dict(), f"{where.name} {problem}"
    if left := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{problem}: it has {left[0]}, which the model has not")
    for key, value in expected.items():
        if key not in tensors:
            raise ValueError(f"{problem}: nothing in it is {key}")
        if tensors[key].shape != value.shape:
            raise ValueError(f"{problem}: {key} should be {tuple(value.shape)}, is {tuple(tensors[key].shape)}")
    with torch.no_grad():
        model.load_state_dict({key: value.to(expected[key].dtype) for key, value in tensors.items()})


def even_use(prefix: str, codebook: Tensor) -> dict[str, Tensor]:
    """Buffers of a codebook (K, C) whose use is not known: even, or all would be restarted by further training."""
    return {prefix + name: torch.ones(len(codebook)) for name in ("usage", "recent")}
