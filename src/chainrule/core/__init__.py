"""The contract: codes, context, tokenizer, prior, and the registry of models."""

from .codes import Codes, CodeSpec, GridSpec, Position
from .conditions import ClassLabels, Conditions
from .context import Context
from .prior import Prior, select
from .registry import Entry, Preset, entries, entry, register
from .tokenizer import LearnedTokenizer, Reconstruction, StochasticTokenizer, Tokenizer

__all__ = [
    "ClassLabels",
    "CodeSpec",
    "Codes",
    "Conditions",
    "Context",
    "Entry",
    "GridSpec",
    "LearnedTokenizer",
    "Position",
    "Preset",
    "Prior",
    "Reconstruction",
    "StochasticTokenizer",
    "Tokenizer",
    "entries",
    "entry",
    "register",
    "select",
]  # fmt: skip
