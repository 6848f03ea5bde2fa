"""Data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..source import Source
from ..tables import TableSource, reason

PRIORITY = 2


def find(config: DataConfig) -> Source | None:
    """The source, if the config's name could be one of the hub."""
    named = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", config.source)
    return HubSource(config, config.source) if named else None


class HubSource(TableSource):
    """A data set of the hub, kept under its name."""

    def origin(self) -> list[Any]:
        return ["hub", self.config.source]

    def tables(self, scratch: Path) -> dict[str, Any]:
        import datasets

        try:
            return datasets.load_dataset(self.config.source)
        except Exception as error:
            raise ValueError(
                f"the data set {self.config.source} is no folder here or in CHAINRULE_DATA and could not be fetched "
                f"from the hub ({reason(error)})"
            ) from error
