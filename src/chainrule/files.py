"""Text files of any Unicode encoding, and files and folders that appear whole or not at all.

Nothing is left half-written, even if the process is killed while it writes.

What is written to `X` is first written to `.X.tmp/HOST-PID-NUMBER/` beside it, forced to the disk, and then renamed.
One rename replaces a file.  A folder needs two: the old folder goes to the temporary folder, the new one takes its
place.  A process that is killed between the two leaves both in the temporary folder, and the next `recover`, which
every writer and every reader of saved folders calls, puts the new one into its place.

Imports nothing of the package.
"""

from __future__ import annotations

import codecs
import errno
import itertools
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_HOST = socket.gethostname()
_NAME = re.compile(r"(.+)-(\d+)-[0-9a-f]{8}")
"""The name of a temporary folder: computer, process, random number."""
_DAYS = 7
"""A temporary folder of another computer is taken for abandoned when it is older."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_active: set[str] = set()
"""Names of the temporary folders that this process is writing to."""


def cache_root() -> Path:
    """The user's cache: the folder in the environment variable CHAINRULE_CACHE, or ~/.cache/chainrule.

    Raises:
        OSError: the variable is not set, and there is no home folder.
    """
    given = os.environ.get("CHAINRULE_CACHE")
    if given:
        return Path(given)
    try:
        return Path.home() / ".cache" / "chainrule"
    except RuntimeError as error:
        raise OSError("there is no home folder for the cache; set CHAINRULE_CACHE to a folder") from error


def read_text(path: str | os.PathLike) -> str:
    """The text of a file; errors as of `decode_text`, and OSError where there is none."""
    return decode_text(Path(path).read_bytes(), str(path))


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file, without their ends; errors as of `read_text`."""
    return split_lines(read_text(path))


def split_lines(text: str) -> list[str]:
    """The lines of a text, which end as on Unix or on Windows; no other character ends a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def decode_text(content: bytes, where: str) -> str:
    """Text in UTF-8, with a byte order mark or without, or in UTF-16 with one; the mark is left out.

    Args:
        content: the bytes of a file.
        where: the name of the file, for errors.

    Raises:
        ValueError: another encoding, with the line of the first byte that does not fit.
    """
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", content, (start := content.find(0)), start + 1, "NUL")
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start]
        raise ValueError(
            f"{where} is no text in UTF-8 (line {line} has the byte 0x{byte:02x}); save it in UTF-8"
        ) from error
    return text


def write_file(path: str | os.PathLike, content: bytes | str | Callable[[Path], object]) -> None:
    """Replaces a file; its folder is made if need be.

    Args:
        path: the file.
        content: bytes, or text to be written in UTF-8, or a function that writes the file at the path it is given.

    Raises:
        OSError: the file cannot be written; `filename` is `path`.
    """
    path = Path(path)
    with temporary_folder(path) as folder:
        new = folder / path.name
        if callable(content):
            content(new)
        else:
            new.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(new)
        os.replace(new, path)
        _sync(path.parent)


def write_folder(path: str | os.PathLike, write: Callable[[Path], object], replace: bool = True) -> None:
    """Replaces a folder as a whole; the folder above it is made if need be.

    Args:
        path: the folder.
        write: fills the empty folder whose path it is given.
        replace: False keeps a folder that appears at `path` while `write` runs.

    Raises:
        OSError: the folder cannot be written; `filename` is `path`.
    """
    path = Path(path)
    with temporary_folder(path) as folder:
        new = folder / "new"
        new.mkdir()
        write(new)
        for directory, _, names in os.walk(new, topdown=False):
            for name in (*names, "."):
                _sync(Path(directory, name))
        _sync(folder)
        if replace or not path.exists():
            _swap(new, path)
        _sync(path.parent)


@contextmanager
def temporary_folder(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder beside `path`, on the same disk, which is removed at the end.

    If the process is killed, the next `temporary_folder` or `recover` of the same path removes it.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    path = Path(path)
    beside = _beside(path)
    folder = beside / f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    _active.add(folder.name)
    try:
        recover(path)
        while not folder.is_dir():
            with suppress(FileNotFoundError):  # another process has just removed the folder `beside`
                beside.mkdir(parents=True, exist_ok=True)
                folder.mkdir()
        yield folder
    except OSError as error:
        ours = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(beside)
        if ours or (error.filename in (None, os.fspath(path)) and error.errno in _FULL) or _is_above(error, path):
            raise OSError(error.errno, f"cannot be written ({os.strerror(error.errno)})", os.fspath(path)) from error
        raise
    finally:
        with suppress(OSError):
            _close(folder, path)
            beside.rmdir()
        _active.discard(folder.name)


def recover(path: str | os.PathLike) -> None:
    """Finishes what a killed `write_folder` of this path left, and removes temporary folders of ended processes."""
    path = Path(path)
    with suppress(OSError):  # there is none, or another process has just removed it
        for folder in _beside(path).iterdir():
            if _NAME.fullmatch(folder.name):
                _close(folder, path, _is_abandoned(folder))
        _beside(path).rmdir()


def recover_all(folder: str | os.PathLike) -> None:
    """`recover` for everything that was being written into a folder."""
    for beside in Path(folder).glob(".*.tmp"):
        recover(beside.with_name(beside.name[1 : -len(".tmp")]))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _swap(new: Path, path: Path) -> None:
    """Renames the folder `new` to `path`; what is there, and what others put there meanwhile, goes beside `new`."""
    for attempt in itertools.count():
        try:
            os.replace(new, path)
        except OSError:
            if not new.exists():  # a reader has seen neither the old nor the new, and has recovered the new
                return
            if not path.exists():
                raise
            with suppress(FileNotFoundError):
                os.replace(path, new.with_name(f"old{attempt}"))
        else:
            return


def _close(folder: Path, path: Path, remove: bool = True) -> None:
    """Gives `path` what was written for it in a temporary folder, if the old has gone there; then removes this."""
    if not path.exists() and any(child.name.startswith("old") for child in folder.iterdir()):
        with suppress(FileNotFoundError):
            os.replace(folder / "new", path)
    if remove:
        with suppress(OSError):  # half of a folder must not be taken for a new one
            os.replace(folder / "new", folder / "removed")
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that writes to a temporary folder has ended."""
    host, process = _NAME.fullmatch(folder.name).groups()
    if host != _HOST:
        return time.time() - folder.stat().st_mtime > _DAYS * 86400
    if int(process) == os.getpid():  # after a restart in a container, process numbers are the same
        return folder.name not in _active
    if os.name == "nt":  # there, os.kill would end the process
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _is_above(error: OSError, path: Path) -> bool:
    """Whether an error is about the folder that holds `path`, or one that holds this folder."""
    return error.filename is not None and Path(os.fsdecode(error.filename)) in (path, *path.parents)


def _sync(path: Path) -> None:
    """Forces a file or, where the system allows it, a folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
