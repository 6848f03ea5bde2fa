"""Decoded data sets, and arrays computed from them, as memory-mapped files: the next load takes a fraction of a second.

One folder per data set, split and transform: ``images.npy`` uint8 (N, C, H, W), ``labels.npy`` int64 (N,) and
``meta.json``; or, of other arrays, ``0.npy``, ``1.npy``, …  A folder appears complete or not at all, and is never
changed; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import DTypeLike

from ..files import cache_root, naming, recover_all, reserve, temporary_folder, write_file, write_folder
from .account import Account
from .dataset import ImageDataset

VERSION = 2  # raise it when a change here or in decoding makes old entries wrong
DAMAGED = (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError)
"""What reading a damaged file of an entry raises."""
T = TypeVar("T")


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder on the disk of the cache, removed at the end.

    Raises:
        ValueError: where the cache cannot be written.
    """
    with needs_cache(folder := cache_root() / "data" / "scratch"), temporary_folder(folder) as temporary:
        yield temporary


@contextmanager
def needs_cache(folder: Path) -> Iterator[None]:
    """Turns an error in writing `folder` into a ValueError that names the remedy."""
    try:
        yield
    except OSError as error:
        if error.filename != str(folder):
            raise
        said = f"the cache folder {error.filename} {error.strerror}"
        raise ValueError(f"{said}; set CHAINRULE_CACHE to another folder") from error


def create_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """A new .npy file, mapped into memory, whose room on the disk is reserved; raises OSError where there is none.

    To write to a map without reserved room ends the process, without a word, where the disk is full.
    """
    with naming(path):
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        reserve(path, array.offset)
    return array


def write_array(path: Path, values: np.ndarray) -> None:
    """Writes a .npy file; raises OSError as `create_array`."""
    array = create_array(path, values.shape, values.dtype)
    array[...] = values
    array.flush()


def cached(key: Any, build: Callable[[Path], dict[str, Any]], name: str) -> tuple[ImageDataset, Path]:
    """The data set of `key`, and the folder that holds it; built on the first call.

    Args:
        key: a JSON value of everything the pixels, labels and texts depend on.
        build: writes images.npy and perhaps labels.npy into the folder it is given, and returns the rest:
            what `Source.build` returns.
        name: the name of the data set.
    """

    def build_with_meta(target: Path) -> None:
        meta = build(target)
        (target / "meta.json").write_text(json.dumps(meta | {"labelled": (target / "labels.npy").exists()}))

    def read(folder: Path) -> ImageDataset:
        meta = json.loads((folder / "meta.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="c")[: meta["count"]]
        return ImageDataset(
            torch.from_numpy(images),
            torch.from_numpy(np.load(folder / "labels.npy")) if meta["labelled"] else None,
            meta["texts"],
            None if meta["class_names"] is None else tuple(meta["class_names"]),
            meta["num_classes"],
            name,
            meta["skipped"],
            Account.from_plain(meta["account"]) if "account" in meta else Account(used=meta["count"]),
        )

    return built_once(_folder(key), build_with_meta, read)


def cached_arrays(key: Any, build: Callable[[Path], object]) -> tuple[torch.Tensor, ...]:
    """The arrays of `key`, as private maps of their files; built on the first call.

    Args:
        key: a JSON value of everything they depend on.
        build: writes 0.npy, 1.npy, … into the folder it is given.
    """

    def build_with_count(target: Path) -> None:
        build(target)
        (target / "meta.json").write_text(json.dumps({"count": len(list(target.glob("*.npy")))}))

    return built_once(_folder(["arrays", key]), build_with_count, _read_arrays)[0]


def kept_arrays(key: Any) -> tuple[torch.Tensor, ...] | None:
    """The arrays that `cached_arrays` has built for `key`; None where it has not, or where they are damaged."""
    try:
        return _read_arrays(_folder(["arrays", key]))
    except DAMAGED:
        return None


def _read_arrays(folder: Path) -> tuple[torch.Tensor, ...]:
    count = json.loads((folder / "meta.json").read_text())["count"]
    return tuple(torch.from_numpy(np.load(folder / f"{index}.npy", mmap_mode="c")) for index in range(count))


def _folder(key: Any) -> Path:
    """The folder of what is kept under `key`."""
    return cache_root() / "data" / hashlib.sha256(json.dumps([VERSION, key]).encode()).hexdigest()[:24]


def built_once(folder: Path, build: Callable[[Path], object], read: Callable[[Path], T]) -> tuple[T, Path]:
    """What `read` makes of `folder`, which lies in the cache, and the folder itself.

    Args:
        folder: appears when it is whole.
        build: fills it on the first call, and again if it is damaged.
        read: fails on a damaged folder.
    """
    for place in (folder.parent, folder):
        recover_all(place)
    with needs_cache(folder):
        if not folder.exists():
            write_folder(folder, build, replace=False)  # another process may be faster, with the same result
        try:
            return read(folder), folder
        except DAMAGED:
            write_folder(folder, build)
            return read(folder), folder


def remember_fingerprint(dataset: ImageDataset, file: Path) -> None:
    """Sets `dataset.fingerprint` from `file`; where that is missing, computes it and writes it."""
    try:
        found = file.read_text()
    except (OSError, UnicodeDecodeError):
        found = ""
    if re.fullmatch("[0-9a-f]{16}", found):
        dataset.__dict__["fingerprint"] = found
    else:
        with suppress(OSError):  # a cache that is read-only: it was computed, which is enough
            write_file(file, dataset.fingerprint)
