"""Local folders: of images, of parquet or arrow files, or written by `save_to_disk` of `datasets`; or an archive.

A folder is looked for below the folder in the environment variable CHAINRULE_DATA first, then where it is named.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..account import Finding
from ..config import DataConfig
from ..picture_folder import PictureFolder
from ..source import Source
from ..tables import SHARD, Streamed, TableSource, quiet
from ..tree import Listing, is_archive

PRIORITY = 1


def find(config: DataConfig) -> Source | None:
    """The source, if the config names a folder that is here."""
    local = find_folder(config.source)
    if local is None:
        return None
    named = local == Path(config.source).expanduser()
    return open_folder(config, local, local.resolve().name if named else config.source)


def find_folder(source: str) -> Path | None:
    """The folder, or the archive, that a source means, if there is one.

    Raises:
        ValueError: it is another file.
    """
    shelf = os.environ.get("CHAINRULE_DATA")
    candidates = [Path(source).expanduser()]
    if shelf and not source.startswith((".", "~", "/")):
        candidates.insert(0, Path(shelf) / source)
    for folder in candidates:
        if folder.is_dir() or (folder.is_file() and is_archive(folder.name)):
            return folder
        if folder.is_file():
            raise ValueError(
                f"source must be a folder, a zip or tar file, or a data set of the hub, but {source} is a file"
            )
    return None


def open_folder(config: DataConfig, local: Path, name: str) -> Source:
    """The source that a folder is, by the format of its files."""
    listing = Listing(local)
    kind = next(kind for kind in FORMATS if kind.recognises(listing))
    return kind(config, name, local, listing)


class FolderSource(TableSource):
    """A folder, read again whenever a file in it has changed."""

    def __init__(self, config: DataConfig, name: str, local: Path, listing: Listing) -> None:
        super().__init__(config, name)
        self.local, self.listing = local, listing

    def origin(self) -> list[Any]:
        return [str(self.local.resolve()), self.listing.files]

    def tables(self, scratch: Path) -> dict[str, Any]:
        with self._reading():
            return self.open(scratch)

    def streams(self) -> dict[str, Streamed]:
        with self._reading():
            return self.open_streams()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with quiet():
                yield
        except Exception as error:
            raise ValueError(
                f"the folder {self.local} cannot be read as a data set ({type(error).__name__})"
            ) from error

    def findings(self) -> list[Finding]:
        """Images beside the tables."""
        return Finding.of(self.listing.images, "image", "left out", "it lies beside tables")

    @abstractmethod
    def open(self, scratch: Path) -> dict[str, Any]:
        """See `tables`."""

    @abstractmethod
    def open_streams(self) -> dict[str, Streamed]:
        """See `streams`."""

    @staticmethod
    @abstractmethod
    def recognises(listing: Listing) -> bool:
        """Whether a folder with these files is of this format."""


class SavedFolder(FolderSource):
    """What `save_to_disk` wrote."""

    @staticmethod
    def recognises(listing: Listing) -> bool:
        return bool({"dataset_dict.json", "state.json"}.intersection(listing.names))

    def open(self, scratch: Path) -> dict[str, Any]:
        import datasets

        tables = datasets.load_from_disk(str(self.local))
        return tables if isinstance(tables, dict) else {"train": tables}

    def open_streams(self) -> dict[str, Streamed]:
        found = {}
        for split, table in self.open(self.local).items():
            parts = range(-(-len(table) // SHARD))
            identities = [[split, self.listing.files, number] for number in parts]
            found[split] = Streamed(table=table.to_iterable_dataset(num_shards=len(parts)), identities=identities)
        return found


class TableFolder(FolderSource):
    """Parquet or arrow files."""

    @staticmethod
    def recognises(listing: Listing) -> bool:
        return any(holds_images(listing.base / name) for name in listing.names)

    def open(self, scratch: Path) -> dict[str, Any]:
        import datasets

        return datasets.load_dataset(str(self.local), cache_dir=str(scratch))

    def open_streams(self) -> dict[str, Streamed]:
        import datasets

        return Streamed.of(datasets.load_dataset_builder(str(self.local)))


def holds_images(path: Path) -> bool:
    """Whether a file is a table of images; a table of captions or addresses is none."""
    if path.suffix != ".parquet":
        return path.suffix == ".arrow"
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException):  # damaged, which reading names
        return True
    kinds = [column.type for column in schema]
    binary = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_struct)
    return any(test(kind) for kind in kinds for test in binary)


FORMATS = (SavedFolder, TableFolder, PictureFolder)
"""The first that recognises the files of a folder reads it."""
