"""What a source of images is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from .config import DataConfig


class Source(ABC):
    """Where the images of a config come from.

    Attributes:
        config: what is asked for.
        name: what the data set is called; a folder's own name, never its whole path.
        local: the folder or archive that is read, if one is.
    """

    local: Path | None = None

    def __init__(self, config: DataConfig, name: str) -> None:
        self.config, self.name = config, name

    def path(self) -> str | None:
        """The whole path of a folder or archive that the config names by its path; None for other sources."""
        path = Path(self.config.source).expanduser()
        return str(path.resolve()) if self.local == path else None

    def chosen_size(self, largest: int) -> int | None:
        """A size for images that differ or are larger than `largest`; None leaves them as they are."""
        return None

    @abstractmethod
    def key(self, split: str) -> Any:
        """A JSON value of everything that the images, labels and texts of a split depend on."""

    @abstractmethod
    def build(self, split: str, target: Path) -> dict[str, Any]:
        """Writes images.npy, and labels.npy if there are labels, into `target`.

        Returns:
            count, texts, class_names, num_classes, skipped, the names of images that could not be read, and, if there
            is more to say, account, the plain values of an `Account`.

        Raises:
            ValueError: there is no such split, or nothing in it can be read.
        """
