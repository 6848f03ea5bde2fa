"""Sources of images, one kind per file, found by its function `find`.

    def find(config: DataConfig) -> Source | None

`find` returns the source that a config names, or None if it means another.  Files are asked in the order of their
PRIORITY, 0 if there is none: named data sets first, then local folders (1), then the hub (2).  May import the rest of
`data`.
"""

from __future__ import annotations

import importlib
import pkgutil

from ..config import DataConfig
from ..source import Source


def find_source(config: DataConfig) -> Source:
    """The source that a config names.

    Raises:
        ValueError: there is none.
    """
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    for module in sorted(modules, key=lambda module: getattr(module, "PRIORITY", 0)):
        if (source := module.find(config)) is not None:
            return source
    raise ValueError(f"there is no folder {config.source}")
