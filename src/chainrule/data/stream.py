"""Images of any number, read once and in order: nothing of the whole set is held in memory.

    a folder of pictures      sorted by name; in a folder per split and per class, with captions beside them
    tar files in a folder     as webdataset writes them: a.jpg, a.txt, a.cls of one image one after the other
    tables                    parquet or arrow files of a folder or of the hub, as `datasets` streams them

A folder is listed by `os.scandir`, sorted in runs on the disk, and cut into shards of `SHARD` files; a tar file and the
file of a table are a shard.  Each shard has an identity, which says whether it has changed.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ..files import decode_text, parse_json, split_lines
from .account import Finding
from .captions import LABEL_COLUMNS, TEXT_COLUMNS, as_texts, guess
from .config import SPLIT, DataConfig
from .picture_folder import TEST_HASHES, name_hash
from .rows import class_order
from .sources import find_source
from .sources.folder import find_folder, holds_images
from .tables import SHARD, TableSource, find_image_column, of_split
from .tree import SPLIT_NAMES, image_suffixes

RUN = 100_000
"""Names sorted in memory at once; files of a folder that make a shard."""
TARS = (".tar", ".tar.gz", ".tgz")
END = b"\0"
"""Of a name in a listing."""
KNOWN = image_suffixes() | {".txt", ".json"}
"""Endings of the files that are read."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image, still encoded, and what is said of it.

    name:  for messages
    image: the bytes or the path of a file
    label: a class, or -1
    text:  a caption, or nothing
    """

    name: str
    image: bytes | Path
    label: int = -1
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The shards of a split.

    name:        of the data set
    path:        the whole path of its folder, if it has one
    shards:      in order
    class_names: None: labels are numbers, or there are none
    findings:    of what is left out
    """

    name: str
    path: str | None
    shards: Sequence[FolderShard | TarShard | TableShard]
    class_names: tuple[str, ...] | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FolderShard:
    """Files of a folder, whose names stand in a listing.

    base:     the folder
    listing:  a file of names
    start:    where the names of this shard begin
    size:     their bytes
    split:    "train" or "test": only images that the hash of their name puts into it; "": all images
    identity: of names, sizes and times of change
    classes:  number of a class by the name of its folder
    """

    base: Path
    listing: Path
    start: int
    size: int
    split: str
    identity: str
    classes: dict[str, int]

    def samples(self) -> Iterator[Sample]:
        """In the order of names."""
        with open(self.listing, "rb") as file:
            file.seek(self.start)
            names = [os.fsdecode(name) for name in file.read(self.size).split(END)[:-1]]
        for _, group in groupby(names, lambda name: posixpath.splitext(name)[0]):
            files = {posixpath.splitext(name)[1].lower(): self.base / name for name in group}
            for suffix in [suffix for suffix in files if suffix in image_suffixes()]:
                name = files[suffix].relative_to(self.base).as_posix()
                if self.split and _held_out(name) != (self.split == "test"):
                    continue
                text = _caption({ending: path.read_bytes for ending, path in files.items()})
                label = self.classes.get(name.split("/")[0], -1)
                yield Sample(name=name, image=files[suffix], label=label, text=text)


@dataclass(frozen=True, kw_only=True)
class TarShard:
    """A tar file; `identity` is of its name, size and time of change."""

    path: Path
    identity: str

    def samples(self) -> Iterator[Sample]:
        """In the order of the file; files with one name but for their endings are of one image."""
        for _, group in groupby(self._members(), lambda member: member[0].partition(".")[0]):
            files = {posixpath.splitext(name)[1].lower(): (name, content) for name, content in group}
            for suffix in [suffix for suffix in files if suffix in image_suffixes()]:
                name, image = files[suffix]
                label = _number(files[".cls"][1], self.path) if ".cls" in files else -1
                text = _caption({ending: lambda content=content: content for ending, (_, content) in files.items()})
                yield Sample(name=f"{self.path.name}/{name}", image=image, label=label, text=text)

    def _members(self) -> Iterator[tuple[str, bytes]]:
        """Names and contents.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with tarfile.open(self.path, "r|*") as archive:
                while (entry := archive.next()) is not None:
                    archive.members.clear()  # which would hold all of them
                    if entry.isfile():
                        yield entry.name, archive.extractfile(entry).read()
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"{self.path} is a damaged tar file ({error}); repair or remove it") from error


@dataclass(frozen=True, kw_only=True)
class TableShard:
    """Rows of a table.

    name:     of its data set
    rows:     a `datasets.IterableDataset`
    columns:  of images, labels and captions; None where there are none
    identity: of the file, and of the columns
    """

    name: str
    rows: Any
    columns: tuple[str, str | None, str | None]
    identity: str

    def samples(self) -> Iterator[Sample]:
        """In the order of rows.

        Raises:
            ValueError: the rows cannot be read on.
        """
        image_column, label_column, text_column = self.columns
        try:
            for number, row in enumerate(self.rows):
                cell, label = row[image_column] or {}, row[label_column] if label_column else None
                image = cell.get("bytes") or _at(cell.get("path") or "")
                text = next(iter(as_texts(row[text_column])), "") if text_column else ""
                yield Sample(name=f"row {number}", image=image, label=-1 if label is None else label, text=text)
        except Exception as error:
            raise ValueError(f"{self.name} cannot be read as a data set ({type(error).__name__}: {error})") from error


def open_stream(config: DataConfig, scratch: Path) -> Stream:
    """The shards of a split; listings are written below `scratch` and are needed as long as shards are read.

    Raises:
        ValueError: the source cannot be streamed, has no such split, or the split is a slice.
    """
    split, start, stop = SPLIT.fullmatch(config.split).groups()
    if start or stop:
        raise ValueError(f"a stream has no slices; give split {split} in the place of {config.split}")
    folder = find_folder(config.source)
    if folder is None or not folder.is_dir():
        return _tables(config, split)
    named = folder == Path(config.source).expanduser()
    name, path = (folder.resolve().name, str(folder.resolve())) if named else (config.source, None)
    base = next((folder / found for found in _folders(folder) if SPLIT_NAMES.get(found.lower()) == split), folder)
    hashed = split if base == folder else ""
    with os.scandir(base) as entries:
        tars = sorted(entry.name for entry in entries if entry.name.endswith(TARS))
    if tars:
        return Stream(name=name, path=path, shards=[_tar(base / tar) for tar in _tars_of(tars, hashed)])
    tables = _walk(os.fsencode(folder), b"", (".parquet", ".arrow"))
    if any(holds_images(folder / os.fsdecode(name)) for name in tables):
        return _tables(config, split)
    classes = class_order(_folders(base))
    shards = list(_folder_shards(base, scratch, hashed, {name: number for number, name in enumerate(classes)}))
    if not shards or hashed not in ("", "train", "test"):
        raise ValueError(f"{config.source} has no pictures of the split {split}")
    return Stream(name=name, path=path, shards=shards, class_names=tuple(classes) or None)


def _tables(config: DataConfig, split: str) -> Stream:
    """The shards of a split of tables."""
    import datasets

    source = find_source(config)
    if not isinstance(source, TableSource):
        raise ValueError(f"stream reads a folder of pictures, tar files or tables, or the hub, not {source.name}")
    found, findings = of_split(source.streams(), split, config), source.findings()
    image = find_image_column(config, found.table)
    features = found.table.features
    label = guess(config.label_column, "label_column", LABEL_COLUMNS, list(features))
    text = guess(config.text_column, "text_column", TEXT_COLUMNS, list(features))
    if label and "int" not in features[label].dtype:
        why = f"the labels of a stream must be whole numbers, and those of {config.source} are {features[label].dtype}"
        if config.label_column:
            raise ValueError(f"{why}; set label_column to another column")
        findings, label = [*findings, *Finding.of([label], "column", "ignored", f"{why}; set label_column")], None
    names = getattr(features[label], "names", None) if label else None
    columns = [column for column in (image, label, text) if column]
    table = found.table.select_columns(columns).cast_column(image, datasets.Image(decode=False))
    return Stream(
        name=source.name, path=source.path(), class_names=names and tuple(names), findings=tuple(findings),
        shards=[
            TableShard(
                name=source.name, rows=table.shard(len(found.identities), number), columns=(image, label, text),
                identity=json.dumps([columns, identity]),
            )
            for number, identity in enumerate(found.identities)
        ],
    )  # fmt: skip


def _at(path: str) -> bytes | Path:
    """The image of a cell that has only its address."""
    if "://" not in path:
        return Path(path)
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()


def _folders(base: Path) -> list[str]:
    with os.scandir(base) as entries:
        return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _held_out(name: str) -> bool:
    """Whether an image, or a tar file, is of the split test by its name."""
    return name_hash(name) < TEST_HASHES


def _tars_of(names: list[str], split: str) -> list[str]:
    """The tar files of a split: of their names' first words, such as test-0001.tar, or else by hashes; "" takes all."""
    words = {name: SPLIT_NAMES.get(re.match(r"[a-z]*", name.lower()).group()) for name in names}
    if not split or any(words.values()):
        return [name for name in names if split in ("", words[name])]
    return [name for name in names if _held_out(name) == (split == "test")]


def _tar(path: Path) -> TarShard:
    stat = path.stat()
    return TarShard(path=path, identity=json.dumps([path.name, stat.st_size, stat.st_mtime_ns]))


def _number(content: bytes, path: Path) -> int:
    """The label in a .cls file."""
    if not content.strip().isdigit():
        raise ValueError(f"labels in tar files are whole numbers from 0; a .cls file in {path} holds {content[:20]!r}")
    return int(content)


def _caption(files: Mapping[str, Callable[[], bytes]]) -> str:
    """The caption in the files of an image, given by their endings."""
    if ".txt" in files:
        lines = split_lines(decode_text(files[".txt"](), "a caption"))
        return next((line.strip() for line in lines if line.strip()), "")
    if ".json" in files:
        value = parse_json(decode_text(files[".json"](), "a caption"), "a caption")
        column = next((column for column in TEXT_COLUMNS if column in value), None)
        return next(iter(as_texts(value[column])), "") if column else ""
    return ""


def _folder_shards(base: Path, scratch: Path, split: str, classes: dict[str, int]) -> Iterator[FolderShard]:
    """Cuts the sorted listing of a folder, which is written into `scratch`, between images."""
    listing, digest, start, size, count, before = scratch / "listing", hashlib.sha256(), 0, 0, 0, b""

    def shard() -> FolderShard:
        return FolderShard(
            base=base, listing=listing, start=start, size=size, split=split, identity=digest.hexdigest(),
            classes=classes,
        )  # fmt: skip

    with open(listing, "wb") as file:
        for name in _sorted(_walk(os.fsencode(base), b""), scratch):
            stem = _key(name)[0]
            if count >= SHARD and stem != before:
                file.flush()
                yield shard()
                digest, start, size, count = hashlib.sha256(), start + size, 0, 0
            stat = os.stat(os.path.join(os.fsencode(base), name))
            digest.update(b"%s\0%d\0%d\0" % (name, stat.st_size, stat.st_mtime_ns))
            size, count, before = size + file.write(name + END), count + 1, stem
    if count:
        yield shard()


def _walk(base: bytes, below: bytes, endings: Collection[str] = KNOWN) -> Iterator[bytes]:
    """Names below a folder that have one of the endings; hidden ones are left out."""
    with os.scandir(os.path.join(base, below)) as entries:
        for entry in entries:
            name = os.path.join(below, entry.name)
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir():
                yield from _walk(base, name, endings)
            elif os.fsdecode(_key(name)[1]).lower() in endings:
                yield name


def _key(name: bytes) -> tuple[bytes, bytes]:
    """By this names are sorted: all files of an image come one after the other."""
    return os.path.splitext(name)


def _sorted(names: Iterator[bytes], scratch: Path) -> Iterator[bytes]:
    """Names in order, sorted in runs that are kept on the disk."""
    runs = []
    while run := list(islice(names, RUN)):
        path = scratch / f"run-{len(runs)}"
        path.write_bytes(b"".join(name + END for name in sorted(run, key=_key)))
        runs.append(_read(path))
    return heapq.merge(*runs, key=_key)


def _read(path: Path) -> Iterator[bytes]:
    """The names in a file."""
    rest = b""
    with open(path, "rb") as file:
        while block := file.read(1 << 16):
            *names, rest = (rest + block).split(END)
            yield from names
