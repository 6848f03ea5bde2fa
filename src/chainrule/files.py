"""Text files of any Unicode encoding, and files and folders that appear whole or not at all.

Nothing is left half-written, even if the process is killed while it writes.

What is written to `X` is first written to `.X.tmp/NUMBER/` beside it, forced to the disk, and then renamed.
One rename replaces a file.  A folder needs two: the old folder goes to the temporary folder, the new one takes its
place.  A process that is killed between the two leaves both in the temporary folder, and the next `recover`, which
every writer and every reader of saved folders calls, puts the new one into its place.

The process that writes to a temporary folder holds a lock on it, which the system releases when the process ends.
Hence a temporary folder without a lock is left over, and `recover` removes it.

Imports nothing of the package.
"""

from __future__ import annotations

import codecs
import errno
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

T = TypeVar("T")
_NAME = re.compile(r"[0-9a-f]{16}")
"""The name of a temporary folder."""
_DAYS = 7
"""Where the system has no locks, a temporary folder is taken for abandoned when it is older."""
_ATTEMPTS = 100
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


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
    """The text of a file; errors as of `decode_text`, and OSError, which names it, where it cannot be read."""
    try:
        return decode_text(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file, without their ends; errors as of `read_text`."""
    return split_lines(read_text(path))


def split_lines(text: str) -> list[str]:
    """The lines of a text, which end as on Unix or on Windows; no other character ends a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, or one that Python cannot hold; the sentence begins with `where`.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        why = f"the error is in line {error.lineno}, column {error.colno}"
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError:
        why = "it holds a number of thousands of digits"
    raise ValueError(f"{where}: not valid JSON ({why})")


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
            data = content.encode() if isinstance(content, str) else content
            check_space(folder, len(data))
            new.write_bytes(data)
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
    """An empty folder beside `path`, on the same disk, which is removed at the end, also if SIGTERM ends the process.

    If the process is killed, the next `temporary_folder` or `recover` of the same path removes it.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    path = Path(path)
    beside, handle = _beside(path), None
    folder = beside / secrets.token_hex(8)
    with _terminable():
        try:
            recover(path)
            for attempt in range(_ATTEMPTS):
                try:
                    beside.mkdir(parents=True, exist_ok=True)
                    folder.mkdir()
                    handle = _lock(folder)
                    break
                except FileNotFoundError:  # another process has just removed it, or it can hold no folder, as /proc
                    if attempt == _ATTEMPTS - 1:
                        raise
            with naming(path):
                yield folder
        except OSError as error:
            ours = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(beside)
            if not ours and not _is_above(error, path):
                raise
            said = error.strerror
            said = said if said.startswith("cannot be written") else f"cannot be written ({said})"
            raise OSError(error.errno, said, os.fspath(path)) from error
        finally:
            with suppress(OSError):
                _close(folder, path)
                beside.rmdir()
            if handle is not None:
                os.close(handle)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Gives an error of the disk that names no file, as of a full disk, the name of the file that is being written."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        raise OSError(error.errno, f"cannot be written ({error.strerror})", os.fspath(path)) from error


def check_space(folder: Path, size: int) -> None:
    """Raises OSError, with both sizes, unless the disk of a folder has room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        needed, left = (f"{n / 1e6:,.1f} MB" if n >= 1e6 else f"{n / 1e3:,.1f} kB" for n in (size, free))
        said = f"{os.strerror(errno.ENOSPC)}: {needed} are needed and {left} are free"
        raise OSError(errno.ENOSPC, said, os.fspath(folder))


def reserve(path: Path, start: int) -> None:
    """Gives a file, which holds nothing after its first `start` bytes, all its room on the disk.

    Raises:
        OSError: the disk is full, with both sizes.
    """
    size = path.stat().st_size
    check_space(path.parent, size)
    with open(path, "r+b", buffering=0) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        file.seek(start)
        for position in range(start, size, 1 << 20):
            file.write(bytes(min(1 << 20, size - position)))


@contextmanager
def owned(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other processes that ask for the same folder out of it; made if need be.

    The file `.lock` in it is locked, and names this process.  The system releases the lock when the process ends, so
    that the file of a killed process is no hindrance.  Where the file system has no locks, nobody is kept out.

    Raises:
        ValueError: another process has the folder.
        OSError: the folder cannot be written.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if _flock(handle) is False:
            holder = os.read(handle, 300).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise ValueError(f"{folder} is in use by {holder}; wait until it ends, or choose another folder")
        if path.exists() and os.path.samestat(path.stat(), os.fstat(handle)):
            break
        os.close(handle)  # its last owner has just removed it
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def read_whole(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a folder that `write_folder` may replace meanwhile: all its files are of one writer."""
    while True:
        recover(folder)
        before = _identity(folder)
        try:
            found = read(folder)
        except Exception:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return found


def _identity(folder: Path) -> tuple[int, ...] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def recover(path: str | os.PathLike) -> None:
    """Finishes what a killed `write_folder` of this path left, and removes temporary folders of ended processes."""
    path = Path(path)
    with suppress(OSError):  # there is none, or another process has just removed it
        for folder in _beside(path).iterdir():
            if _NAME.fullmatch(folder.name):
                with suppress(OSError):
                    _recover(folder, path)
        _beside(path).rmdir()


def recover_all(folder: str | os.PathLike) -> None:
    """`recover` for everything that was being written into a folder."""
    for beside in Path(folder).glob(".*.tmp"):
        recover(beside.with_name(beside.name[1 : -len(".tmp")]))


def _beside(path: Path) -> Path:
    path = path if path.name else path.absolute()  # "." has no name of its own
    return path.parent / f".{path.name}.tmp"


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


def _lock(folder: Path) -> int | None:
    """Locks a temporary folder until the handle is closed or the process ends; None if it has been removed."""
    handle = os.open(os.devnull if fcntl is None else folder, os.O_RDONLY)
    _flock(handle, wait=True)
    if folder.exists():
        return handle
    os.close(handle)
    return None


def _recover(folder: Path, path: Path) -> None:
    """`_close`, which removes a temporary folder only if the process that wrote to it has ended."""
    handle = os.open(os.devnull if fcntl is None else folder, os.O_RDONLY)
    try:
        locked = _flock(handle)
        if locked is None:
            locked = time.time() - folder.stat().st_mtime > _DAYS * 86400
        _close(folder, path, locked)
    finally:
        os.close(handle)


def _flock(handle: int, wait: bool = False) -> bool | None:
    """Locks an open file or folder; False if another process has the lock, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


class _Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Meanwhile SIGTERM, which ends a process at once, runs what is to be done at the end first."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait
        raise _Terminated

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # somebody else sees to it
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Terminated:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
