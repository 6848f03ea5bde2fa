"""What several commands write: files that replace nothing unasked, JSON, and figures in columns."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import recover, recover_all, temporary_folder


def check_file(path: Path, suffix: str, force: bool, option: str = "--out") -> Path:
    """`path`, if a file may be written there.

    Raises:
        ValueError: another suffix, a folder, or a file that exists without `force`.
    """
    recover(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{option} must be a {suffix} file, got {path}")
    if path.is_dir():
        raise ValueError(f"{option} must be a {suffix} file, but {path} is a folder")
    if path.exists() and not force:
        raise ValueError(f"{path} exists; add --force to replace it, or choose another name with {option}")
    _check_writable(path)
    return path


def check_folder(path: Path, force: bool, option: str = "--out") -> Path:
    """`path`, if files may be written into it.

    Raises:
        ValueError: a file, or a folder that is not empty without `force`.
    """
    recover_all(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option} must be a folder, but {path} is a file")
    if path.exists() and any(path.iterdir()) and not force:
        raise ValueError(f"the folder {path} is not empty; add --force to write into it, or choose another name")
    _check_writable(path / "file" if path.exists() else path)
    return path


def _check_writable(path: Path) -> None:
    """Raises OSError where nothing can be written at `path`, before a command has worked in vain; leaves no trace."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    with temporary_folder(folder / path.name):
        pass


def check_pictures(path: Path, force: bool, option: str = "--out") -> bool:
    """Whether `path` is a .png file and no folder; raises ValueError as `check_file` or `check_folder`."""
    single = path.suffix.lower() == ".png"
    check_file(path, ".png", force, option) if single else check_folder(path, force, option)
    return single


def free_name(stem: str, suffix: str = "") -> Path:
    """stem.suffix in the current folder, or stem-2.suffix, stem-3.suffix, … if that is taken."""
    path, number = Path(stem + suffix), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}{suffix}"), number + 1
    return path


def file_stem(text: str) -> str:
    """A name for a file, from a model or a split."""
    return re.sub(r"[^\w.]+", "-", text).strip("-") or "model"


def print_json(value: Any) -> None:
    """Prints a value as JSON; raises ValueError as `to_json`."""
    print(to_json(value))


def to_json(value: Any) -> str:
    """A value as JSON; raises ValueError where a figure is nan or infinite, which JSON has no word for."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ValueError("a figure is nan or infinite, so no JSON is written: the model may be damaged") from None


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need; those of numbers to the right."""
    table = [headers, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    right = [all(re.fullmatch(r"[-+]?[\d.,]+|", row[column]) for row in rows) for column in range(len(headers))]
    for row in table:
        cells = zip(row, widths, right, strict=True)
        print("  ".join(cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in cells).rstrip())
