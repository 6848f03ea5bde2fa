"""Codes of images in a file: safetensors, each code in as many bits as its vocabulary needs.

grid_0, grid_1, …   uint8: the codes of one grid, image by image in raster order, depth innermost, each code in
                    ceil(log2 K) bits, most significant first; the last byte is filled with zeros
metadata            format "chainrule-codes-1"; tokenizer_hash; shapes, JSON of [B, h, w, D] per grid; values, JSON
                    of K per grid; names, JSON of B names of images
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core import Codes, Tokenizer
from ..core.values import as_codes, as_tensor
from ..files import parse_json
from ..progress import progress
from .model import tokenizer_hash

CODES_FORMAT = "chainrule-codes-1"
BATCH = 16
MAX_PIXELS = 1 << 21
"""Pixels encoded or decoded at once; the networks take 0.2 to 2 kB for each, and those with attention more."""
CHUNK = 1 << 16
"""Codes packed at once; a multiple of 8, so that each chunk ends with a byte."""


@torch.no_grad()
def encode(tokenizer: Tokenizer, images: Tensor, precision: str = "float32") -> Codes:
    """Codes of many images, a few at a time.

    Args:
        tokenizer: on any device.
        images: uint8 (B, C, H, W), of a size that it takes.
        precision: see `Tokenizer.packed`.

    Returns:
        int64 (B, h, w, D) per grid, on the CPU.

    Raises:
        ValueError: images that the tokenizer cannot take, or of more than `MAX_PIXELS`, or a precision that it does not
            compute in.
    """
    images = as_tensor(images, "images")
    tokenizer.check_images(images)
    size = images_at_once(*images.shape[2:])
    packed, parts = tokenizer.packed(precision), []
    with progress("Encoding", len(images), "images") as done:
        for batch in images.split(size):
            parts.append([grid.cpu() for grid in packed.encode(batch.to(tokenizer.device))])
            done(len(parts) * size)
    return tuple(torch.cat(grids) for grids in zip(*parts, strict=True))


@torch.no_grad()
def decode(tokenizer: Tokenizer, codes: Codes, precision: str = "float32") -> Tensor:
    """Images of many codes, a few at a time: uint8 (B, C, H, W) on the CPU; arguments and errors as `encode`."""
    codes = as_codes(codes)
    (height, width), finest = tokenizer.image_shape[1:], tokenizer.spec.grids[-1]
    size = images_at_once(codes[-1].shape[1] * height // finest.height, codes[-1].shape[2] * width // finest.width)
    packed, parts = tokenizer.packed(precision), []
    with progress("Decoding", len(codes[0]), "images") as done:
        for batch in zip(*(grid.split(size) for grid in codes), strict=True):
            parts.append(packed.decode(tuple(grid.to(tokenizer.device) for grid in batch)).cpu())
            done(len(parts) * size)
    return torch.cat(parts)


def images_at_once(height: int, width: int) -> int:
    """How many images of a size are encoded or decoded at once; raises ValueError where one is too many."""
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"an image of {height}x{width} has more than {MAX_PIXELS:,} pixels, which would take gigabytes of memory; "
            "make it smaller, or cut it into tiles"
        )
    return max(1, min(BATCH, MAX_PIXELS // (height * width)))


def pack_codes(codes: Codes, names: Sequence[str], tokenizer: Tokenizer) -> bytes:
    """The bytes of a file of codes.

    Args:
        codes: of B images, as `tokenizer.encode` gives them.
        names: B names of the images.
        tokenizer: whose codes they are.
    """
    assert len(names) == len(codes[0])
    values = [grid.codebook_size for grid in tokenizer.spec.grids]
    metadata = {
        "format": CODES_FORMAT,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "shapes": json.dumps([list(grid.shape) for grid in codes]),
        "values": json.dumps(values),
        "names": json.dumps(list(names)),
    }
    grids = zip(codes, values, strict=True)
    return save({f"grid_{index}": _pack(grid, size) for index, (grid, size) in enumerate(grids)}, metadata)


def read_codes(path: Path, tokenizer: Tokenizer) -> tuple[Codes, list[str]]:
    """The codes of a file and the names of their images.

    Raises:
        ValueError: no file of codes, a damaged one, or codes of another tokenizer.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            packed = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and not path.is_file():
            raise ValueError(f"there is no file of codes at {path}") from error
        raise ValueError(f"{path} is damaged, or no file of codes") from error
    if metadata.get("format") != CODES_FORMAT:
        raise ValueError(f"{path} is no file of codes; chainrule encode writes one")
    if metadata.get("tokenizer_hash") != tokenizer_hash(tokenizer):
        raise ValueError(
            f"{path} holds codes of another tokenizer (hash {metadata.get('tokenizer_hash', '')[:12]}…, this one has "
            f"{tokenizer_hash(tokenizer)[:12]}…); decode it with the model that encoded it"
        )
    where = f"{path} is damaged"
    shapes, values, names = (parse_json(metadata.get(key, ""), where) for key in ("shapes", "values", "names"))
    if values != [grid.codebook_size for grid in tokenizer.spec.grids]:
        raise ValueError(f"{where}: the tokenizer has other codebook sizes")
    try:
        codes = tuple(
            _unpack(packed[f"grid_{index}"], tuple(shape), size)
            for index, (shape, size) in enumerate(zip(shapes, values, strict=True))
        )
        if not names or any(len(grid) != len(names) for grid in codes):
            raise ValueError(f"{len(names)} names are not one per image")
        if any("\0" in name or not name.encode() for name in names):
            raise ValueError("a name that no file can have")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: its tensors do not fit its metadata") from error
    return codes, names


def _bits(size: int) -> int:
    return (size - 1).bit_length()


def _pack(codes: Tensor, size: int) -> Tensor:
    """Codes in 0..size-1, of any shape -> uint8, `_bits(size)` bits each."""
    shifts, flat = np.arange(_bits(size))[::-1], codes.cpu().numpy().reshape(-1, 1)
    parts = [flat[start : start + CHUNK] >> shifts & 1 for start in range(0, len(flat), CHUNK)]
    return torch.from_numpy(np.concatenate([np.packbits(bits.astype(np.uint8)) for bits in parts]))


def _unpack(packed: Tensor, shape: tuple[int, ...], size: int) -> Tensor:
    """The inverse of `_pack`; raises ValueError where the number of bytes is another."""
    if len(shape) != 4 or any(type(side) is not int or side < 1 for side in shape):
        raise ValueError(f"{shape} is no shape of codes")
    bits, values = _bits(size), np.empty(math.prod(shape) if packed.numel() else 0, dtype=np.int64)
    if packed.dtype != torch.uint8 or packed.ndim != 1 or len(packed) != -(-len(values) * bits // 8):
        raise ValueError(f"{packed.numel()} bytes are not {len(values)} codes of {bits} bits")
    weights = 1 << np.arange(bits)[::-1]
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        stretch = packed.numpy()[start * bits // 8 :][: -(-len(part) * bits // 8)]
        part[:] = np.unpackbits(stretch, count=len(part) * bits).reshape(-1, bits) @ weights
    return torch.from_numpy(values.reshape(shape))
