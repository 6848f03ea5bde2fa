"""Reads files of weights that others wrote, and executes nothing that they say.

`read_checkpoint` understands torch's zip container, the older one before torch 1.6 and safetensors.  Torch's
containers hold a pickle, which is a program; `pickles` reads it without running what it names.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .pickles import STORAGES, Machine, Refusal, Storage, Stub

__all__ = ["Stub", "module_tensors", "read_checkpoint", "sha256"]

MAGIC = 0x1950A86A20F9469CFC6C  # what torch's older container begins with
MAX_MODULES = 100_000
STARTS = {  # of files that are no weights: what they are, and what to do
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch the file with: git lfs pull",
    b"<!doctype": "a page of HTML, not a file of weights: the download failed; download the file again",
    b"<html": "a page of HTML, not a file of weights: the download failed; download the file again",
    b"<?xml": "a page of XML, not a file of weights: the download failed; download the file again",
    b"\x1f\x8b": "a gzip archive; unpack it and give the files in it",
    b"bzh": "a bzip2 archive; unpack it and give the files in it",
    b"\xfd7zxz": "an xz archive; unpack it and give the files in it",
    b"\x89hdf": "an HDF5 file, which no release that can be imported comes in",
}


def read_checkpoint(path: str | os.PathLike) -> Any:
    """What a file of weights holds: plain containers, numbers, strings, tensors on the CPU, and `Stub`s.

    Ordered and default dicts come as dicts, parameters as tensors that need no gradient; tensors that share memory
    in the file share it here.

    Args:
        path: a `.safetensors` file, or what `torch.save` wrote, in either of its containers.

    Raises:
        ValueError: in one sentence: no such file, none of these formats, damaged, or hostile (the name in it that
            is refused is given).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    if what := foreign(path):
        raise ValueError(f"{path} is {what}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
            file.seek(0)
            if start[:4] == b"PK\x03\x04":
                return _read_zip(file, path)
            if path.suffix == ".safetensors" or _is_safetensors(start, path):
                return load_file(path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _read_legacy(mapped)
    except Refusal as refusal:
        raise ValueError(f"{path} is refused: {refusal}") from None
    except (SafetensorError, zipfile.BadZipFile, ValueError, TypeError, LookupError, ArithmeticError, EOFError,
            AttributeError, RuntimeError, MemoryError, OSError, struct.error) as error:  # fmt: skip
        raise ValueError(f"{path} is cut short or damaged, or no file of weights (torch or safetensors)") from error


def foreign(path: Path) -> str | None:
    """What a file is, by its beginning, if something else was put in the place of a release's file; else None."""
    if not path.stat().st_size:  # as files of the system have, some of which never end
        return "an empty file, cut short or damaged"
    with path.open("rb") as file:
        begin, tar = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower(), file.seek(257) and file.read(5)
    if tar == b"ustar":
        return "a tar archive; unpack it and give the files in it"
    return next((what for start, what in STARTS.items() if begin.startswith(start)), None)


def module_tensors(module: Stub, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a pickled `torch.nn.Module` by their state-dict names."""
    found, modules = {}, [(module, prefix)]
    for part, name in modules:  # grows while it is read
        if name.count(".") > 100 or len(modules) > MAX_MODULES:
            raise ValueError(f"the modules of this {module.type_name} are too many, or hold one another in a circle")
        for kind in ("_parameters", "_buffers"):
            found |= {name + key: one for key, one in _entries(part, kind) if isinstance(one, Tensor)}
        modules += [(child, f"{name}{key}.") for key, child in _entries(part, "_modules") if isinstance(child, Stub)]
    return found


def _entries(module: Stub, kind: str) -> list[tuple[Any, Any]]:
    entries = module.attributes.get(kind)
    return list(entries.items()) if isinstance(entries, dict) else []


def sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_safetensors(start: bytes, path: Path) -> bool:
    """Whether a file begins with the length of a JSON header and that header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


# ---------------------------------------------------------------- containers


def _read_zip(file: BinaryIO, path: Path) -> Any:
    archive = zipfile.ZipFile(file)
    records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "data.pkl" not in records:
        raise Refusal("it is a zip archive, but not one that torch.save wrote (there is no data.pkl in it)")
    left = path.stat().st_size

    def read(name: str) -> bytes:
        nonlocal left
        info = records[name]
        left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or left < 0:
            raise Refusal(f"its part {info.filename} is compressed or shares its bytes, which torch.save never does")
        data = archive.read(info)
        if len(data) != info.file_size:
            raise EOFError(name)
        return data

    if "byteorder" in records and read("byteorder") != b"little":
        raise Refusal("it was written by a big-endian machine")
    loaded: dict[str, Tensor] = {}

    def persistent(identity: tuple) -> Storage:
        kind, storage, key, _, length = identity
        _check_key(key)
        if kind != "storage" or not isinstance(storage, Stub) or storage.type_name not in STORAGES:
            raise ValueError(f"unknown persistent id {kind!r}")
        if key not in loaded:
            data = bytearray(read(f"data/{key}"))
            loaded[key] = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        return _storage(STORAGES[storage.type_name], loaded[key], length)

    return Machine(io.BytesIO(read("data.pkl")), persistent).run()


def _check_key(key: Any) -> None:
    """Raises TypeError unless a key of a storage is a string; the hash of tuples in tuples would end the process."""
    if not isinstance(key, str):
        raise TypeError("a key of a storage that is no string")


def _storage(dtype: torch.dtype, data: Tensor, length: int) -> Storage:
    if type(length) is not int or length < 0 or length * dtype.itemsize != len(data):
        raise ValueError(f"a storage of {length} {dtype} has {len(data)} bytes")
    return Storage(dtype, data, 0, length)


def _read_legacy(file: mmap.mmap) -> Any:
    """Magic, version, machine, object and keys, a pickle each; then a count and the raw numbers of every key.

    The tensors are named before their numbers come, so memory of the stated size is laid out first and filled later;
    the sizes stated may not exceed the file.
    """
    if Machine(file, _no_storage).run() != MAGIC:
        raise Refusal("it is a pickle, but not one that torch.save wrote")
    version, machine = (Machine(file, _no_storage).run() for _ in range(2))
    if version != 1001 or machine.get("little_endian") is not True:
        raise Refusal(f"it was written in version {version!r} of the container or by a big-endian machine")
    left = len(file) - file.tell()
    storages: dict[str, Storage] = {}

    def persistent(identity: tuple) -> Any:
        nonlocal left
        if identity[0] == "module":  # the source of a class beside its name: the name is enough
            return identity[1]
        kind, storage, key, _, length, view = identity
        _check_key(key)
        if kind != "storage" or not isinstance(storage, Stub) or storage.type_name not in STORAGES:
            raise ValueError(f"unknown persistent id {kind!r}")
        dtype = STORAGES[storage.type_name]
        if key not in storages:
            if type(length) is not int or not 0 <= length * dtype.itemsize <= left:
                raise EOFError(f"a storage of {length} {dtype} with {left} bytes left")
            left -= length * dtype.itemsize
            storages[key] = Storage(dtype, torch.zeros(length * dtype.itemsize, dtype=torch.uint8), 0, length)
        whole = storages[key]
        if view is None:
            return whole
        _, offset, count = view
        if type(offset) is not int or type(count) is not int or min(offset, count) < 0 or offset + count > whole.length:
            raise ValueError("a view outside its storage")
        return Storage(dtype, whole.bytes, offset, count)

    result = Machine(file, persistent).run()
    for key in Machine(file, _no_storage).run():
        _check_key(key)
        storage = storages[key]
        (length,) = struct.unpack("<q", file.read(8))
        data = file.read(len(storage.bytes))
        if length != storage.length or len(data) != len(storage.bytes):
            raise EOFError(f"storage {key}")
        memoryview(storage.bytes.numpy())[:] = data
        del storages[key]
    if storages:
        raise EOFError("numbers of some tensors are missing")
    return result


def _no_storage(identity: Any) -> Any:
    raise ValueError("a tensor where none belongs")
