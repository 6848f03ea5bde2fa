"""What public functions take, made into what the models take: numbers, arrays and masks of NumPy."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .codes import Codes


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor; an array becomes one of the same memory, and a list of tensors, arrays or numbers a new one.

    Raises:
        ValueError: something else; `what` is called so in the sentence.
    """
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return torch.stack([as_tensor(one, what) for one in value])
        array = np.asarray(value)
        return torch.from_numpy(array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy())
    except (TypeError, ValueError, RuntimeError) as error:  # objects, texts, rows of different lengths
        raise ValueError(f"{what} must be a tensor or an array of numbers, got {_kind(value)}") from error


def as_codes(codes: Any) -> Codes:
    """The grids of codes as a tuple of int64 tensors: of any integers, and of a single grid alone."""
    grids = [codes] if isinstance(codes, (Tensor, np.ndarray)) else list(codes)
    found = [as_tensor(grid, "codes") for grid in grids]
    return tuple(grid if grid.is_floating_point() or grid.dtype == torch.bool else grid.long() for grid in found)


def as_mask(mask: Any) -> Tensor:
    """A mask as a bool tensor: of bool, of 0 and 1, or of 0 and 255, as masks in picture files are.

    Raises:
        ValueError: other values.
    """
    mask = as_tensor(mask, "mask")
    if mask.dtype == torch.bool:
        return mask
    on = mask != 0
    if on.any() and not any(bool((mask[on] == value).all()) for value in (1, 255)):
        raise ValueError("mask must hold True and False, or 1 and 0, or 255 and 0, where 0 is unknown")
    return on


def as_int(value: Any, what: str) -> int:
    """A whole number of Python, of NumPy, or of a tensor; raises ValueError, in which it is called `what`."""
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers, or of no whole one
        raise ValueError(f"{what} must be a whole number, got {_kind(value)}") from None


def as_count(value: Any, what: str) -> int:
    """As `as_int`, of a number from 1."""
    number = as_int(value, what)
    if number < 1:
        raise ValueError(f"{what} must be at least 1, got {number}")
    return number


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and PyTorch as numbers and lists of Python, inside lists and mappings too."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {plain(key): plain(one) for key, one in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.40}"
