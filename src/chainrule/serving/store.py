"""Pictures that were asked for as a URL: files of a folder that all workers of a machine share, kept for an hour."""

from __future__ import annotations

import re
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ..files import write_file

SECONDS = 3600
NAME = re.compile(r"[\w-]{43}\.png")


class Store:
    """PNG files by names that nobody can guess.

    Args:
        folder: "" makes one that is deleted at the end.
    """

    def __init__(self, folder: str = "") -> None:
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="chainrule-")
        self.folder = Path(folder or self._own.name)

    def add(self, content: bytes) -> str:
        """Keeps a file; returns its name."""
        name = f"{secrets.token_urlsafe(32)}.png"
        self.write(name, content)
        return name

    def write(self, name: str, content: bytes) -> str:
        """Keeps a file of a given name; returns its path.  Files that are too old are deleted."""
        write_file(self.folder / name, content)
        for path in self.folder.glob("*.png"):
            with suppress(OSError):  # another worker was faster
                if path.stat().st_mtime < time.time() - SECONDS:
                    path.unlink()
        return str(self.folder / name)

    def find(self, name: str) -> Path | None:
        """The path of a file; None where there is none of that name, or no longer."""
        path = self.folder / name
        return path if NAME.fullmatch(name) and path.is_file() else None
