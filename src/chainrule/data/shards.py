"""Arrays in parts: each part is built once, whole or not at all, by whichever process comes first.

A part is a folder of the cache with ``0.bin``, ``1.bin``, …, the rows of one array each, perhaps ``labels.bin`` int64,
``texts.bin`` with ``ends.bin`` int64 (where each text ends), and ``meta.json``.  A process that is killed loses the
part that it was writing.  Several processes that ask for the same parts build them together; where the file system has
no locks, some are built twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import cache_root, owned, recover_all, write_folder
from .cache import needs_cache

PAUSE = 0.2
"""Seconds between looks at a part that another process builds."""


def cached_parts(key: Any, parts: Sequence[Any], build: Callable[[int, Path], object]) -> list[Path]:
    """The folders of all parts; those that are missing are built here, or by another process that does the same.

    Args:
        key: a JSON value of what all parts depend on.
        parts: a JSON value of each part.
        build: fills the folder of the part whose number it is given.

    Raises:
        ValueError: where the cache cannot be written.
    """
    root = cache_root() / "data" / f"parts-{_digest(key)}"
    folders = [root / _digest(part) for part in parts]
    with needs_cache(root):
        recover_all(root)
        missing = [number for number, folder in enumerate(folders) if not folder.exists()]
        while missing:
            later = [number for number in missing if not _built(folders[number], number, build)]
            if len(later) == len(missing):
                time.sleep(PAUSE)
            missing = later
    return folders


def _built(folder: Path, number: int, build: Callable[[int, Path], object]) -> bool:
    """Whether a part is there, after it was built if nobody else is building it."""
    if folder.exists():
        return True
    lock = folder.with_name(f"{folder.name}.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(owned(lock))
        except (ValueError, FileNotFoundError):  # another process builds it, or has just built it
            return False
        if not folder.exists():
            write_folder(folder, lambda target: build(number, target), replace=False)
    with suppress(OSError):
        lock.rmdir()
    return True


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:24]


class PartWriter:
    """Writes the rows of a part, batch by batch; nothing but a batch is in memory.

    Args:
        folder: of the part.
        dtypes: of its arrays.
    """

    def __init__(self, folder: Path, dtypes: Sequence[np.dtype]) -> None:
        self.dtypes, self.shapes, self.count, self.ended = [np.dtype(one) for one in dtypes], [], 0, 0
        self.folder = folder

    def add(self, arrays: Sequence[np.ndarray], labels: Sequence[int] = (), texts: Sequence[str] = ()) -> None:
        """Adds some rows: (B, …) of each array, with B labels and texts where there are any."""
        self.shapes = [list(array.shape[1:]) for array in arrays]
        self.count += len(arrays[0])
        for index, (array, dtype) in enumerate(zip(arrays, self.dtypes, strict=True)):
            self._append(str(index), array.astype(dtype).tobytes())
        self._append("labels", np.array(labels, np.int64).tobytes())
        encoded = [text.encode() for text in texts]
        ends = self.ended + np.cumsum([len(one) for one in encoded], dtype=np.int64)
        self.ended = int(ends[-1]) if encoded else self.ended
        self._append("texts", b"".join(encoded))
        self._append("ends", ends.tobytes())

    def _append(self, name: str, content: bytes) -> None:
        with open(self.folder / f"{name}.bin", "ab") as file:
            file.write(content)

    def close(self, **meta: Any) -> None:
        """Ends the part; `meta` are further JSON values."""
        plain = {"count": self.count, "dtypes": [dtype.str for dtype in self.dtypes], "shapes": self.shapes}
        (self.folder / "meta.json").write_text(json.dumps(plain | meta))


class Part:
    """A part that is read: its arrays, labels and texts as private maps of the files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.meta = folder, json.loads((folder / "meta.json").read_text())
        self.count: int = self.meta["count"]

    def arrays(self) -> list[Tensor]:
        """The arrays, (N, …) each."""
        kinds = zip(self.meta["dtypes"], self.meta["shapes"], strict=True)
        return [self._map(f"{index}.bin", dtype, shape) for index, (dtype, shape) in enumerate(kinds)]

    def labels(self) -> Tensor:
        """int64 (N,)."""
        return self._map("labels.bin", "<i8", [])

    def text(self, row: int) -> str:
        """The text of a row."""
        ends = np.memmap(self.folder / "ends.bin", "<i8", "r")
        start, stop = int(ends[row - 1]) if row else 0, int(ends[row])
        with open(self.folder / "texts.bin", "rb") as file:
            file.seek(start)
            return file.read(stop - start).decode()

    def _map(self, name: str, dtype: str, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.memmap(self.folder / name, dtype, "c", shape=(self.count, *shape)))


class Rows:
    """Rows of arrays of equal shapes as those of one array, without copying them: `rows[indices]`, `len(rows)`."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The rows of int64 (B,): (B, …), copied."""
        where = torch.searchsorted(self.ends, indices, right=True)
        first = self.parts[0]
        found = first.new_empty(len(indices), *first.shape[1:])
        for number in where.unique().tolist():
            chosen = where == number
            part = self.parts[number]
            found[chosen] = part[indices[chosen] - (int(self.ends[number]) - len(part))]
        return found


def in_one(parts: Sequence[Tensor]) -> Tensor | Rows:
    """One array of several: the array itself where there is one."""
    return parts[0] if len(parts) == 1 else Rows(parts)


StoredCodes = tuple[Tensor | Rows, ...]
"""Narrow whole numbers (N, H, W, D) of each grid of codes, perhaps in several files."""
