"""C++ files of the package, compiled at first use where there is a compiler, and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def compiled(source: Path) -> ctypes.CDLL | None:
    """The library that a C++17 file without dependencies becomes, or None where it cannot be compiled."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    flags = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-pthread"]
    flags += ["-shared", "-fPIC"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append("-mprefer-vector-width=512")
    key = hashlib.sha256(source.read_bytes() + " ".join(flags).encode() + _processor()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "chainrule"
    library = folder / f"{source.stem}-{key}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                built = Path(temporary) / library.name
                subprocess.run([compiler, *flags, str(source), "-o", str(built)], check=True, capture_output=True)
                built.replace(library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> bytes:
    """What the compiled code depends on: a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith("flags")), "").encode()
    except OSError:
        return b""
