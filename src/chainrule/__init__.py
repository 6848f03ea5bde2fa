"""Autoregressive image generation, from PixelRNN to Parti: p(x) = prod_t p(x_t | x_<t)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .catalogue import info
    from .compression import compress, decompress
    from .evaluation.comparison import compare
    from .evaluation.measure import evaluate, repeat
    from .evaluation.reconstruction import reconstruct
    from .evaluation.scoring import score
    from .fitting.run import fit
    from .images import grid, to_pil
    from .official import convert
    from .pipeline import Pipeline
    from .saving.code_file import decode, encode
    from .saving.hub import models
    from .serving.blocks import demo
    from .sizes import create, presets
    from .training.run import train
    from .variation import vary
    from .zoo import load, push, save

__all__ = [
    "Pipeline", "compare", "compress", "convert", "create", "decode", "decompress", "demo", "encode", "evaluate",
    "fit", "grid", "info", "load", "models", "presets", "push", "reconstruct", "repeat", "save", "score", "to_pil",
    "train", "vary",
]  # fmt: skip

_HOMES = {
    "Pipeline": "pipeline", "compare": "evaluation.comparison", "compress": "compression", "convert": "official",
    "create": "sizes", "decode": "saving.code_file", "decompress": "compression", "demo": "serving.blocks",
    "encode": "saving.code_file", "evaluate": "evaluation.measure",
    "fit": "fitting.run", "grid": "images", "info": "catalogue", "load": "zoo", "models": "saving.hub",
    "presets": "sizes", "push": "zoo",
    "reconstruct": "evaluation.reconstruction", "repeat": "evaluation.measure", "save": "zoo",
    "score": "evaluation.scoring", "to_pil": "images", "train": "training.run", "vary": "variation",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names, imported at their first use: the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
