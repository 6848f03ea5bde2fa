"""Autoregressive image generation, from PixelRNN to Parti: p(x) = prod_t p(x_t | x_<t)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .images import grid, to_pil
    from .pipeline import Pipeline
    from .saving.hub import models
    from .zoo import load, load_super_resolution, load_tokenizer

__all__ = ["Pipeline", "grid", "load", "load_super_resolution", "load_tokenizer", "models", "to_pil"]

_HOMES = {
    "Pipeline": "pipeline", "grid": "images", "load": "zoo", "load_super_resolution": "zoo", "load_tokenizer": "zoo",
    "models": "saving.hub", "to_pil": "images",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names, imported at their first use: the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
