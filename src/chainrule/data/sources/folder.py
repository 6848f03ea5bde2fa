"""Local folders: of images, of parquet or arrow files, or written by `save_to_disk` of `datasets`.

A folder is looked for below the folder in the environment variable CHAINRULE_DATA first, then where it is named.
"""

from __future__ import annotations

import glob
import hashlib
import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

from PIL import Image

from .. import cache
from ..config import DataConfig
from ..source import Source
from ..tables import TableSource, quiet, reason

PRIORITY = 1
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip


MULTIPLE = 8
"""Of this a chosen size is a multiple, so that tokenizers can halve it three times."""
LOOKED_AT = 1000
"""Files whose size in pixels is read."""


def find(config: DataConfig) -> Source | None:
    """The source, if the config names a folder that is here."""
    local = find_folder(config.source)
    if local is None:
        return None
    named = local == Path(config.source).expanduser()
    return open_folder(config, local, local.resolve().name if named else config.source)


def find_folder(source: str) -> Path | None:
    """The folder that a source means, if there is one.

    Raises:
        ValueError: it is a file.
    """
    shelf = os.environ.get("CHAINRULE_DATA")
    candidates = [Path(source).expanduser()]
    if shelf and not source.startswith((".", "~", "/")):
        candidates.insert(0, Path(shelf) / source)
    for folder in candidates:
        if folder.is_dir():
            return folder
        if folder.is_file():
            raise ValueError(f"source must be a folder or a data set of the hub, but {source} is a file")
    return None


def open_folder(config: DataConfig, local: Path, name: str) -> Source:
    """The source that a folder is, by the format of its files."""
    listing = cache.listing(local)
    files = [file for file, _, _ in listing]
    kind = next(kind for kind in FORMATS if kind.recognises(files))
    return kind(config, name, local, listing)


class FolderSource(TableSource):
    """A folder, read again whenever a file in it has changed."""

    def __init__(self, config: DataConfig, name: str, local: Path, listing: list[tuple[str, int, int]]) -> None:
        super().__init__(config, name)
        self.local, self.listing = local, listing

    def origin(self) -> list[Any]:
        return [str(self.local.resolve()), self.listing]

    def tables(self, scratch: Path) -> dict[str, Any]:
        try:
            with quiet():
                tables = self.open(scratch)
        except Exception as error:
            raise ValueError(f"the folder {self.local} cannot be read as a data set ({reason(error)})") from error
        return tables if isinstance(tables, dict) else {"train": tables}

    @abstractmethod
    def open(self, scratch: Path) -> Any:
        """One table, or a table per split; files are written below `scratch` only."""

    @staticmethod
    @abstractmethod
    def recognises(files: list[str]) -> bool:
        """Whether a folder with these files, by their relative names, is of this format."""


class SavedFolder(FolderSource):
    """What `save_to_disk` wrote."""

    @staticmethod
    def recognises(files: list[str]) -> bool:
        return bool({"dataset_dict.json", "state.json"}.intersection(files))

    def open(self, scratch: Path) -> Any:
        import datasets

        return datasets.load_from_disk(str(self.local))


class TableFolder(FolderSource):
    """Parquet or arrow files."""

    @staticmethod
    def recognises(files: list[str]) -> bool:
        return any(name.endswith((".parquet", ".arrow")) for name in files)

    def open(self, scratch: Path) -> Any:
        import datasets

        return datasets.load_dataset(str(self.local), cache_dir=str(scratch))


class PictureFolder(FolderSource):
    """Image files, in a folder per class or with captions beside them."""

    @staticmethod
    def recognises(files: list[str]) -> bool:
        return True

    def open(self, scratch: Path) -> Any:
        import datasets

        files = [name for name, _, _ in self.listing]
        return datasets.load_dataset("imagefolder", **_image_options(self.local, files), cache_dir=str(scratch))

    def chosen_size(self, largest: int) -> int | None:
        """The largest multiple of 8 up to `largest` that the shorter sides of the first 1,000 pictures have.

        Pictures of one size whose shorter side is at most `largest` stay as they are.
        """
        found = set()
        for name, _, _ in self.listing[:LOOKED_AT]:
            try:
                with Image.open(self.local / name) as image:
                    found.add(image.size)
            except OSError:  # not an image, or a damaged one, which reading names
                continue
        side = min((min(size) for size in found), default=0)
        if not found or (len(found) == 1 and side <= largest):
            return None
        return min(largest, max(MULTIPLE, side // MULTIPLE * MULTIPLE))

    def splits(self, tables: dict[str, Any]) -> dict[str, Any]:
        """Without folders of splits, "train" and "test" are both made of all images."""
        return tables if _split_folders(self.local) else {"train": tables["train"], "test": tables["train"]}

    def rows(self, split: str, table: Any, image_column: str) -> tuple[list[str], list[int]]:
        names = [os.path.relpath(cell["path"], self.local.resolve()) for cell in table[image_column]]
        rows = sorted(range(len(names)), key=names.__getitem__)
        if not _split_folders(self.local):
            kept = _hash_split([names[row] for row in rows], split)
            rows = [rows[index] for index in kept]
        return names, rows

    def captions(self, names: list[str]) -> list[str] | None:
        return _sidecar_captions(self.local, names)


FORMATS = (SavedFolder, TableFolder, PictureFolder)
"""The first that recognises the files of a folder reads it."""


def _split_folders(local: Path) -> dict[str, str]:
    """Split -> name of its subfolder."""
    children = sorted(child.name for child in local.iterdir() if child.is_dir())
    return {SPLIT_FOLDERS[name.lower()]: name for name in children if name.lower() in SPLIT_FOLDERS}


def _image_options(local: Path, files: list[str]) -> dict[str, Any]:
    """Options for "imagefolder": a glob for each split, and no classes named after splits."""
    paths = [Path(name) for name in files if Path(name).suffix.lower() in Image.registered_extensions()]
    if not paths:
        raise ValueError("it holds neither images nor parquet or arrow files")
    base, splits = glob.escape(str(local.resolve())), _split_folders(local)
    flat = any(len(path.parts) == (2 if path.parts[0] in splits.values() else 1) for path in paths)
    patterns = {split: f"{base}/{glob.escape(name)}/**" for split, name in splits.items()}
    return {"data_files": patterns or {"train": f"{base}/**"}, "drop_labels": True if flat else None}


def _hash_split(paths: list[str], split: str) -> list[int]:
    """Rows of "train" or "test": the twentieth of the names with the smallest hashes, one at least, is "test"."""
    order = sorted(range(len(paths)), key=lambda row: hashlib.sha256(paths[row].encode()).digest())
    held = set(order[: max(1, round(len(paths) / 20))])
    return [row for row in range(len(paths)) if (row in held) == (split == "test")]


def _sidecar_captions(local: Path, names: list[str]) -> list[str] | None:
    """Captions from captions.txt files or from a.txt beside a.png; None where there is neither."""
    captions: dict[str, str] = {}
    for file in sorted(local.rglob("captions.txt")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            name, tab, caption = line.partition("\t")
            if tab:
                captions[os.path.relpath(file.parent / name, local)] = caption.strip()
            elif line.strip():
                raise ValueError(f'line {number} of {file} must be "file<TAB>caption", got {line!r}')
    if not captions:
        for name in names:
            sidecar = (local / name).with_suffix(".txt")
            if sidecar.is_file():
                captions[name] = sidecar.read_text(encoding="utf-8").strip()
    missing = [name for name in names if name not in captions]
    if captions and missing:
        raise ValueError(
            f"{len(missing)} images of {local} have no caption, the first is {missing[0]}; caption them or remove them"
        )
    return [captions[name] for name in names] if captions else None
