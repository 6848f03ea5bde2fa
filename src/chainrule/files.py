"""Where files are kept.  Imports nothing of the package."""

from __future__ import annotations

import os
from pathlib import Path


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
