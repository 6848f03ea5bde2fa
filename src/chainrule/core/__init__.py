"""The contract: codes, context, tokenizer, prior, and the registry of models."""

from .codes import Codes, CodeSpec, GridSpec, Position
from .conditions import ClassLabels, Conditions, ImagePrefix, class_number, class_numbers
from .context import Context
from .prior import Prior
from .registry import Entry, Preset, entries, entry, find_entry, register
from .runner import Grouped, Runner, check_float32, map_state, select, signature, tensors, with_tensors
from .tokenizer import LearnedTokenizer, Reconstruction, StochasticTokenizer, Tokenizer

__all__ = [
    "ClassLabels",
    "CodeSpec",
    "Codes",
    "Conditions",
    "Context",
    "Entry",
    "GridSpec",
    "Grouped",
    "ImagePrefix",
    "LearnedTokenizer",
    "Position",
    "Preset",
    "Prior",
    "Reconstruction",
    "Runner",
    "StochasticTokenizer",
    "Tokenizer",
    "check_float32",
    "class_number",
    "class_numbers",
    "entries",
    "entry",
    "find_entry",
    "map_state",
    "register",
    "select",
    "signature",
    "tensors",
    "with_tensors",
]  # fmt: skip
