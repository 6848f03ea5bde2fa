"""Weights in safetensors: as they are, in bfloat16, or in int8 with a scale per row."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import check_space
from ..kernels.transformer import quantize_rows

SCALE = "::scale"
"""Ends the name of the scales of a tensor that is stored in int8."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of floating point numbers, as safetensors calls them."""


def write_weights(weights: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes the weights of a part by name, if it has any; floats as `dtype` has it, see `chainrule.save`.

    Raises:
        ValueError: weights that are nan or infinite.
        OSError: the file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    _check_finite(tensors, "the model is not saved")
    if dtype is torch.int8:
        tensors = _to_int8(tensors)
    elif dtype is not None:
        tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    if tensors:
        check_space(path.parent, sum(value.nbytes for value in tensors.values()))
        try:
            save_file(tensors, path)
        except SafetensorError as error:  # it says no more of an error of the disk
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path)) from error


def read_weights(part: nn.Module, path: Path) -> None:
    """Gives a part the weights of a file; raises ValueError where it is missing, damaged or of another architecture.

    A part that has no weights needs no file.
    """
    if part.state_dict():
        part.load_state_dict(read_tensors(part.state_dict(), path))


def read_tensors(wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a file, which have the names and shapes of `wanted`; errors as for `read_weights`."""
    check_weights(wanted, path)
    tensors = _from_int8(load_file(path))
    _check_finite(tensors, f"{path} is damaged, or of a training that diverged")
    return tensors


def read_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor in a file, by its header; a tensor in int8 has the type of its scales.

    Raises:
        ValueError: a file that is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            found = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in parts.items()}
    except (OSError, SafetensorError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else "no safetensors file"
        raise ValueError(f"{path} is missing or damaged ({why}); copy it again") from error
    for key, (shape, dtype) in found.items():
        scale = found.get(key + SCALE)
        if scale is not None and (scale[0] != (*shape[:1], 1) or dtype != "I8" or len(shape) < 2):
            raise ValueError(f"{path} is damaged: the scales of {key} do not fit it; copy it again")
        if scale is not None:
            found[key] = shape, scale[1]
    return {key: value for key, value in found.items() if not key.endswith(SCALE)}


def check_weights(wanted: Mapping[str, Tensor], path: Path) -> None:
    """Raises ValueError unless a file holds tensors like `wanted`, which may be on the device "meta"."""
    found = read_shapes(path) if wanted else {}
    for key, value in wanted.items():
        shape, dtype = found.get(key, ("nothing", ""))
        if shape != tuple(value.shape):
            raise ValueError(
                f"{path} holds weights of another architecture: {key} should be {tuple(value.shape)}, is {shape}"
            )
        if (dtype in FLOATS) != value.is_floating_point():
            raise ValueError(f"{path} is damaged: {key} is of the type {dtype}; copy it again")
    if extra := sorted(set(found) - set(wanted)):
        raise ValueError(f"{path} holds weights of another architecture: {extra[0]} has no place")


def _check_finite(tensors: Mapping[str, Tensor], consequence: str) -> None:
    """Raises ValueError, which begins with the consequence, where a tensor holds nan or an infinite number."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.sum(dtype=torch.float64).isfinite():
            raise ValueError(f"{consequence}: its weights {name} are not all finite numbers")


def weights_sha256(folder: Path) -> str:
    """sha256 over the names and bytes of the safetensors files of a model."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _to_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of matrices and filters as whole numbers in -127..127 beside their scales; vectors as they are."""
    narrow = {}
    for name, value in tensors.items():
        if value.ndim > 1 and value.is_floating_point():
            rows, scale = quantize_rows(value.flatten(1))
            narrow[name + SCALE], value = scale[:, None], rows.reshape(value.shape)
        narrow[name] = value
    return narrow


def _from_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_to_int8` was given, but for rounding; other tensors as they are."""
    wide = {name: value for name, value in tensors.items() if not name.endswith(SCALE)}
    for name in wide:
        if name + SCALE in tensors:
            rows = wide[name].flatten(1).float() * tensors[name + SCALE]
            wide[name] = rows.reshape(wide[name].shape)
    return wide
