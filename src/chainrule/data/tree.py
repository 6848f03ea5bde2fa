"""The files of a folder and of the archives in it, zip and tar, as one list."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .account import Finding
from .images import HEIC_SUFFIXES

NO_IMAGES = ("BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF")
"""Formats of Pillow that it cannot read by itself, or that hold other things."""
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip


class ZipMember(NamedTuple):
    """A file in an open zip file, which several threads may read."""

    archive: zipfile.ZipFile
    name: str


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a folder, or a member of an archive in it.

    name:    path below the folder, with "/"; that of a member begins with the name of its archive
    folders: names of the folders it lies in, which may be classes or splits; an archive is none
    path:    the file itself, or its archive
    member:  of a zip file, or of a tar file where it begins and how long it is; None for a file itself
    """

    name: str
    folders: tuple[str, ...]
    path: Path
    member: ZipMember | tuple[int, int] | None = None

    @property
    def suffix(self) -> str:
        """In lower case, with its dot."""
        return posixpath.splitext(self.name)[1].lower()

    @property
    def base(self) -> str:
        """The name without its folders."""
        return posixpath.basename(self.name)

    def source(self) -> bytes | Path:
        """What `images.decode` takes."""
        return self.path if self.member is None else self.read()

    def start(self) -> bytes:
        """The first 16 bytes; none of a broken link."""
        if self.member is not None:
            return self.read()[:16]
        if not self.path.is_file():
            return b""
        with open(self.path, "rb") as file:
            return file.read(16)

    def read(self) -> bytes:
        """The content."""
        if isinstance(self.member, ZipMember):
            return self.member.archive.read(self.member.name)
        with open(self.path, "rb") as file:
            if self.member is None:
                return file.read()
            file.seek(self.member[0])
            return file.read(self.member[1])


class Listing:
    """The files below a folder, or an archive by itself.

    Attributes:
        base: the folder.
        files: (relative name, size, time of change) of every visible file, sorted.
        hidden: names of the hidden files.
    """

    def __init__(self, local: Path) -> None:
        self.base, found, self.hidden = local, [], []
        if local.is_file():
            self.base, names = local.parent, [(local.name, False)]
        else:
            names = sorted(walk(local))
        for name, hidden in names:
            if hidden:
                self.hidden.append(name)
                continue
            path = self.base / name
            stat = os.stat(path) if os.path.exists(path) else os.lstat(path)
            found.append((name, stat.st_size, stat.st_mtime_ns))
        self.files = found
        self.names = [name for name, _, _ in found]

    @property
    def images(self) -> list[str]:
        """Names of visible image files."""
        return _images(self.names)

    @property
    def hidden_images(self) -> list[str]:
        """Names of hidden image files."""
        return _images(self.hidden)


def image_suffixes() -> set[str]:
    """Endings of the names of image files, in lower case, whether they can be read here or not."""
    known = {ending for ending, kind in Image.registered_extensions().items() if kind not in NO_IMAGES}
    return known | {*HEIC_SUFFIXES, ".avif"}


def _images(names: Sequence[str]) -> list[str]:
    endings = image_suffixes()
    return [Path(name).as_posix() for name in names if posixpath.splitext(name)[1].lower() in endings]


def is_archive(name: str) -> bool:
    """Whether a file is read as a folder."""
    return name.lower().endswith(ARCHIVES)


def files_of(listing: Listing, scratch: Path) -> tuple[list[File], list[Finding]]:
    """All files, sorted by name, and archives that cannot be read.

    Args:
        listing: of the source.
        scratch: compressed tar files are unpacked there.
    """
    found, broken = [], []
    for name in listing.names:
        path, plain = listing.base / name, Path(name).as_posix()
        parts = tuple(plain.split("/")[:-1])
        if not is_archive(plain):
            found.append(File(name=plain, folders=parts, path=path))
            continue
        try:
            members = list(_members(path, scratch / str(len(found))))
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError):
            broken.append(plain)
            continue
        word = re.match(r"[a-z]*", posixpath.basename(plain).lower()).group()
        above = (*parts, word) if word in SPLIT_NAMES else parts
        for where, member, inner in members:
            folders = (*above, *inner.split("/")[:-1])
            found.append(File(name=f"{plain}/{inner}", folders=folders, path=where, member=member))
    findings = Finding.of(broken, "archive", "left out", "damaged or of an unknown kind")
    return sorted(found, key=lambda file: file.name), findings


def _members(path: Path, unpacked: Path) -> Iterator[tuple[Path, ZipMember | tuple[int, int], str]]:
    """(archive, member, its name) of the visible files of an archive."""
    if path.suffix.lower() == ".zip":
        archive = zipfile.ZipFile(path)  # open as long as a file in it is in use
        for entry in archive.infolist():
            if not entry.is_dir() and _visible(entry.filename):
                yield path, ZipMember(archive, entry.filename), entry.filename.replace("\\", "/").lstrip("/")
        return
    if path.suffix.lower() != ".tar":
        import gzip

        with gzip.open(path) as packed, open(unpacked, "wb") as file:
            shutil.copyfileobj(packed, file)
        path = unpacked
    with tarfile.open(path, "r:") as archive:
        for entry in archive:
            name = posixpath.normpath(entry.name)
            if entry.isfile() and _visible(name):
                yield path, (entry.offset_data, entry.size), name


def _visible(name: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in name.split("/"))


def without_common_folders(files: Sequence[File]) -> list[File]:
    """The files without leading folders that all of them lie in, except folders of splits."""
    files = list(files)
    while files and (first := files[0].folders[:1]) and first[0].lower() not in SPLIT_NAMES:
        if any(file.folders[:1] != first for file in files):
            break
        files = [replace(file, folders=file.folders[1:]) for file in files]
    return files


def _refuse(error: OSError) -> None:
    """What `os.walk` calls for a folder that cannot be opened, which it would otherwise skip in silence."""
    raise error


def walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """(name below `folder`, whether it or a folder above it is hidden) of every file; links to folders are followed."""
    above = {os.fspath(folder): frozenset([os.path.realpath(folder)])}
    for directory, children, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = above.pop(directory)
        for child in list(children):
            path = os.path.join(directory, child)
            target = os.path.realpath(path)
            if target in real:  # a link to a folder that it lies in
                children.remove(child)
            above[path] = real | {target}
        below = os.path.relpath(directory, folder)
        for file in files:
            name = os.path.normpath(os.path.join(below, file))
            yield name, any(part.startswith(".") for part in name.split(os.sep))
