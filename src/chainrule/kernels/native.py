"""C++ files of this folder, compiled at first use and kept in the user's cache.

`Kernel.load` gives the compiled code, or None where plain PyTorch has to do the work.  The environment variable
CHAINRULE_NATIVE changes what happens without an explicit backend:

    off       plain PyTorch everywhere
    require   an error where the code cannot be compiled; otherwise there is one warning per process
    vectors   compiled code without AMX, the matrix registers of some processors, for comparison
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from ..files import cache_root, recover_all, temporary_folder, write_file

Backend = Literal["native", "plain"]
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-pthread", "-shared", "-fPIC")
FOLDER = Path(__file__).parent
DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Kernel:
    """A C++17 file, whose interface is structures that are passed by pointer.

    name:        of the file, without ".cpp"
    version:     of the interface, as in the file's INTERFACE
    structures:  in the order of INTERFACE, which compares their sizes
    """

    name: str
    version: int
    structures: tuple[type[ctypes.Structure], ...]

    def load(self, backend: Backend | None = None) -> ctypes.CDLL | None:
        """The compiled code, or None for plain PyTorch.

        Args:
            backend: "native", "plain", or None: compiled code where it can be had.

        Raises:
            ValueError: an unknown backend, or CHAINRULE_NATIVE is none of off, require and vectors.
            RuntimeError: compiled code is required and cannot be had.
        """
        if backend is not None and backend not in get_args(Backend):
            raise ValueError(f"backend must be native, plain or None, got {backend!r}")
        mode = os.environ.get("CHAINRULE_NATIVE", "")
        if mode not in ("", "off", "require", "vectors"):
            raise ValueError(f"CHAINRULE_NATIVE must be off, require or vectors, got {mode!r}")
        if backend == "plain" or (backend is None and mode == "off"):
            return None
        found = _build(self)
        if isinstance(found, ctypes.CDLL):
            return found
        if backend == "native" or mode == "require":
            raise RuntimeError(f"the compiled code was required, but {found}")
        _warn(
            f"{found}, so transformers, PixelRNN, PixelCNN and decoders run in plain PyTorch, which is several "
            "times slower on a CPU; install g++, or set CHAINRULE_NATIVE=off to hide this warning"
        )
        return None


_warned = False


def _warn(sentence: str) -> None:
    """Warns once in a process."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(sentence, UserWarning, stacklevel=5)


@functools.cache
def _build(kernel: Kernel) -> ctypes.CDLL | str:
    """The library, or the reason why there is none."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("clang++")]
    if compiler[0] is None:
        return "no C++ compiler was found"
    try:
        library = _find(kernel.name, [str(part) for part in compiler])
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines() or [f"status {error.returncode}"]
        return f"{compiler[0]} could not compile {kernel.name}.cpp ({lines[0]})"
    except OSError as error:
        return f"{kernel.name}.cpp could not be compiled ({error})"
    library.interface.restype = ctypes.c_int64
    expected = [kernel.version, *map(ctypes.sizeof, kernel.structures), -1]
    found = [library.interface(ctypes.c_int64(index)) for index in range(len(expected))]
    assert found == expected, f"{kernel.name}.cpp has interface {found}, not {expected}"
    if hasattr(library, "use_openmp"):
        _give_openmp(library)
    return library


def _give_openmp(library: ctypes.CDLL) -> None:
    """Lets a library that includes `threads.h` work in torch's own threads."""
    runtimes = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    if runtimes:
        openmp = ctypes.CDLL(str(runtimes[0]))
        functions = (openmp.GOMP_parallel, openmp.omp_get_thread_num, openmp.omp_get_num_threads)
        library.use_openmp(*(ctypes.cast(function, ctypes.c_void_p) for function in functions))


def _find(name: str, compiler: list[str]) -> ctypes.CDLL:
    """Loads the library from the cache, or compiles it and keeps it there where the cache can be written."""
    source = FOLDER / f"{name}.cpp"
    flags = [*FLAGS, *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else [])]
    parts = [" ".join([*compiler, *flags]).encode(), processor()]
    parts += [path.read_bytes() for path in [source, *sorted(FOLDER.glob("*.h"))]]
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]

    def compile_to(path: Path) -> bytes:
        subprocess.run([*compiler, *flags, str(source), "-o", str(path)], check=True, capture_output=True)
        return path.read_bytes()

    try:
        kept = cache_root() / "kernels" / f"{name}-{key}.so"
        recover_all(kept.parent)
        if _is_intact(kept):
            return ctypes.CDLL(str(kept))
        with temporary_folder(kept) as folder:
            library = compile_to(folder / "built.so")
        write_file(kept, library + hashlib.sha256(library).digest())  # the system's loader ignores the digest
        return ctypes.CDLL(str(kept))
    except subprocess.CalledProcessError:
        reason = f"the compiler cannot write to {kept.parent}"  # if nothing else is wrong
    except OSError as error:
        reason = f"{error.filename} {error.strerror}" if error.filename else str(error)
    with tempfile.TemporaryDirectory() as folder:
        compile_to(built := Path(folder, "built.so"))
        _warn(
            f"the compiled code cannot be kept ({reason}), so every start compiles it again, which takes some seconds; "
            "set CHAINRULE_CACHE to a folder that can be written"
        )
        return ctypes.CDLL(str(built))  # stays loaded after the file is gone


def _is_intact(path: Path) -> bool:
    """Whether the file exists and is complete: to load a damaged library may end the process."""
    if not path.exists():
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]


def processor() -> bytes:
    """Instructions of the processor, on which the compiled code depends: a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith("flags")), "").encode()
    except OSError:
        return b""


def processor_kind() -> str:
    """Architecture, instruction set, and a hash of all instructions: the rounding of sums depends on it."""
    instructions = hashlib.sha256(processor() or platform.processor().encode()).hexdigest()[:8]
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {instructions}"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private: absent in other releases of torch
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def share(work: Callable[[int], None], num_parts: int, num_threads: int) -> None:
    """Calls work(part) for all parts, in threads where there are several parts."""
    if num_parts == 1:
        work(0)
    else:
        list(_pool(num_threads).map(work, range(num_parts)))


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads)


def integers(*names: str) -> list[tuple[str, type]]:
    """Fields of a structure, int64 each."""
    return [(name, ctypes.c_int64) for name in names]


def pointers(*names: str) -> list[tuple[str, type]]:
    """Fields of a structure, addresses each; None or 0 where there is nothing."""
    return [(name, ctypes.c_void_p) for name in names]
