"""Data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ...network import hub_answers, why_no_hub
from ..config import DataConfig
from ..source import Source
from ..tables import Streamed, TableSource

PRIORITY = 2
T = TypeVar("T")


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

        return self._found(datasets.load_dataset)

    def streams(self) -> dict[str, Streamed]:
        import datasets

        return self._found(lambda source: Streamed.of(datasets.load_dataset_builder(source)))

    def _found(self, load: Callable[[str], dict[str, T]]) -> dict[str, T]:
        """What `load` gives for the name; raises ValueError where the hub does not have it."""
        import datasets

        source, reached = self.config.source, hub_answers()
        try:
            with _asking(reached):
                return load(source)
        except datasets.exceptions.DatasetNotFoundError as error:
            why, cause = "the hub has none of that name that may be read", error
        except Exception as error:
            why, cause = f"it could not be fetched from the hub ({type(error).__name__})", error
        why = why if reached else why_no_hub()
        raise ValueError(f"the data set {source} is no folder here or in CHAINRULE_DATA, and {why}") from cause


@contextmanager
def _asking(allowed: bool) -> Iterator[None]:
    """Where it is not allowed, `datasets` does not ask the hub inside, but reads what it fetched before."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or not allowed
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
