"""Finds the files of a release: its checkpoints, whole or in parts, and its config."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..strict import read_yaml

Accept = Callable[[Mapping[str, Any]], bool]
SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".safetensors")
"""Endings of files of weights; what such a file holds is told by its content."""
INDEX = ".index.json"
"""End of the name of a file that lists the parts of a checkpoint."""


def find_config(source: Path, accept: Accept) -> Path | None:
    """The YAML of a release that `accept` knows: in or beside the source, or in a folder `configs` there.

    Of several, the one named like the source's checkpoint, else the first by name.
    """
    found = [path for path in config_files(source) if accepts(path, accept)]
    weights = find_weights(source)
    named = [path for path in found if weights is not None and path.stem == weights.stem]
    return (named or found or [None])[0]


def config_files(source: Path) -> list[Path]:
    """The YAML files in or beside a source and in the folders `configs` there."""
    folder = folder_of(source)
    folders = [folder, folder / "configs"]
    if folder.name == "checkpoints":
        folders += [folder.parent, folder.parent / "configs"]
    return [path for folder in folders for path in sorted(folder.glob("*.y*ml")) if path.is_file()]


def folder_of(source: Path) -> Path:
    """A folder, or that in which a file lies."""
    return source.absolute().parent if source.is_file() else source


def accepts(path: Path, accept: Accept) -> bool:
    """Whether a file is a config that `accept` knows."""
    try:
        return accept(read_config(path))
    except (ValueError, OSError):
        return False


def read_config(path: Path) -> dict[str, Any]:
    """The mapping that a release's YAML holds; raises ValueError where it is anything else.

    A model of Hydra's form (`_target_`, its parameters beside it) gets that of OmegaConf's (`target`, `params`), and a
    file that begins with the model's keys gets the key `model` before them.
    """
    config = _with_targets(read_yaml(path))
    return {"model": config} if "target" in config and "model" not in config else config


def _with_targets(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_targets(one) for one in value]
    if not isinstance(value, dict):
        return value
    value = {key: _with_targets(one) for key, one in value.items()}
    if "_target_" in value and "target" not in value:
        target = value.pop("_target_")
        value = {"target": target, "params": value.get("params", value)}
    return value


def find_weights(source: Path, mark: str = "") -> Path | None:
    """The checkpoint of a release: the source itself, or the best of `checkpoints`."""
    if source.is_file():
        return source if source.name.endswith((*SUFFIXES, INDEX)) else None
    return (checkpoints(source, mark) or [None])[-1]


def named(folder: Path, stem: str) -> Path | None:
    """The checkpoint of that name in a folder, whatever its ending, whole or in parts."""
    name = re.compile(rf"{re.escape(stem)}(-\d+-of-\d+)?\.\w+({re.escape(INDEX)})?")
    return next((path for path in checkpoints(folder) if name.fullmatch(path.name)), None)


def checkpoints(folder: Path, mark: str = "") -> list[Path]:
    """The checkpoints in a folder and its folder `checkpoints`, the best last: the highest number, or "last".

    Args:
        mark: a name of a tensor; files without it are left out, unless no file has it.
    """
    files = [path for place in (folder, folder / "checkpoints") for path in place.glob("*") if path.is_file()]
    indices = [path for path in files if path.name.endswith(INDEX)]
    listed = {part for index in indices for part in parts(index)}
    whole = {tuple(parts(path)): path for path in files if path.suffix.lower() in SUFFIXES and path not in listed}
    found = sorted([*indices, *whole.values()], key=lambda path: (path.stem.startswith("last"), natural(path.name)))
    if not mark:
        return found
    return [path for path in found if any(has_mark(part, mark) for part in parts(path))] or found


def natural(name: str) -> list[str | int]:
    """A key for sorting by the numbers in names: epoch=9 before epoch=10."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"([0-9]+)", name)]


def parts(path: Path) -> list[Path]:
    """The files over which a checkpoint is spread: those of an index, or all of `name-00001-of-00002`; else the file.

    Raises:
        ValueError: a damaged index.
    """
    if path.name.endswith(INDEX):
        try:
            names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{path} is no index of a checkpoint's parts: it should hold weight_map") from None
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError(f"{path} must name files beside it, but it names {str(names)[:80]}")
        return [path.parent / name for name in names]
    numbered = re.fullmatch(r"(.+-)(\d+)-of-(\d+)(\.\w+)", path.name)
    if not numbered or not 0 < int(numbered[3]) < 10_000:
        return [path]
    begin, digits, count, end = numbered.groups()
    return [path.with_name(f"{begin}{index:0{len(digits)}}-of-{count}{end}") for index in range(1, int(count) + 1)]


def marked_files(source: Path, mark: str) -> list[Path]:
    """The file, or those of a folder with an ending of weights, with the name of a tensor near the beginning."""
    inside = [path for path in sorted(source.glob("*")) if path.suffix.lower() in SUFFIXES]
    return [path for path in (inside if source.is_dir() else [source]) if has_mark(path, mark)]


def has_mark(path: Path, mark: str) -> bool:
    """Whether a name stands in the first megabyte of a file: names come before numbers."""
    if not path.is_file() or not path.stat().st_size:
        return False
    try:
        with path.open("rb") as file:
            return mark.encode() in file.read(1 << 20)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def the_only(files: list[Path], source: Path, what: str) -> Path:
    """The file of a list; raises ValueError where there are none or several."""
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise ValueError(f"{source} should hold one {what}, but there are: {names}; name the file")
    return files[0]
