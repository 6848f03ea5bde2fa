"""Decoded data sets, and arrays computed from them, as memory-mapped files: the next load takes a fraction of a second.

One folder per data set, split and transform: ``images.npy`` uint8 (N, C, H, W), ``labels.npy`` int64 (N,) and
``meta.json``; or, of other arrays, ``0.npy``, ``1.npy``, …  A folder appears complete or not at all, and is never
changed; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import cache_root, recover, temporary_folder, write_file, write_folder
from .account import Account
from .dataset import ImageDataset

VERSION = 1  # raise it when a change here or in decoding makes old entries wrong


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder on the disk of the cache, removed at the end.

    Raises:
        ValueError: where the cache cannot be written.
    """
    with _needs_cache(folder := cache_root() / "data" / "scratch"), temporary_folder(folder) as temporary:
        yield temporary


@contextmanager
def _needs_cache(folder: Path) -> Iterator[None]:
    """Turns an error in writing `folder` into a ValueError that names the remedy."""
    try:
        yield
    except OSError as error:
        if error.filename != str(folder):
            raise
        raise ValueError(f"the cache folder cannot be written ({error}); set CHAINRULE_CACHE to another") from error


def cached(key: Any, build: Callable[[Path], dict[str, Any]], name: str) -> tuple[ImageDataset, Path]:
    """The data set of `key`, and the folder that holds it; built on the first call.

    Args:
        key: a JSON value of everything the pixels, labels and texts depend on.
        build: writes images.npy and perhaps labels.npy into the folder it is given, and returns the rest:
            what `Source.build` returns.
        name: the name of the data set.
    """

    def build_with_meta(target: Path) -> None:
        (target / "meta.json").write_text(json.dumps(build(target)), encoding="utf-8")

    folder = _entry(key, build_with_meta)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    images = np.load(folder / "images.npy", mmap_mode="c")[: meta["count"]]
    labels = folder / "labels.npy"
    dataset = ImageDataset(
        torch.from_numpy(images),
        torch.from_numpy(np.load(labels)) if labels.exists() else None,
        meta["texts"],
        None if meta["class_names"] is None else tuple(meta["class_names"]),
        meta["num_classes"],
        name,
        meta["skipped"],
        Account.from_plain(meta["account"]) if "account" in meta else Account(used=meta["count"]),
    )
    return dataset, folder


def cached_arrays(key: Any, build: Callable[[Path], object]) -> tuple[torch.Tensor, ...]:
    """The arrays of `key`, as private maps of their files; built on the first call.

    Args:
        key: a JSON value of everything they depend on.
        build: writes 0.npy, 1.npy, … into the folder it is given.
    """
    folder = _entry(["arrays", key], build)
    paths = sorted(folder.glob("*.npy"), key=lambda path: int(path.stem))
    return tuple(torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths)


def _entry(key: Any, build: Callable[[Path], object]) -> Path:
    """The folder of `key`; `build` fills it on the first call."""
    digest = hashlib.sha256(json.dumps([VERSION, key]).encode()).hexdigest()[:24]
    return built_once(cache_root() / "data" / digest, build)


def built_once(folder: Path, build: Callable[[Path], object]) -> Path:
    """`folder`, which lies in the cache; `build` fills it on the first call, and it appears when it is whole."""
    recover(folder)
    if not folder.exists():
        with _needs_cache(folder):
            write_folder(folder, build, replace=False)  # another process may be faster, with the same result
    return folder


def remember_fingerprint(dataset: ImageDataset, file: Path) -> None:
    """Sets `dataset.fingerprint` from `file`; where that is missing, computes it and writes it."""
    try:
        dataset.__dict__["fingerprint"] = file.read_text()
    except OSError:
        with suppress(OSError):  # a cache that is read-only: it was computed, which is enough
            write_file(file, dataset.fingerprint)
