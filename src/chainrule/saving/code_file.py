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
from ..progress import progress
from .model import tokenizer_hash

CODES_FORMAT = "chainrule-codes-1"
BATCH = 16


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
        ValueError: images that the tokenizer cannot take, or a precision that it does not compute in.
    """
    packed, parts = tokenizer.packed(precision), []
    with progress("Encoding", len(images), "images") as done:
        for batch in images.split(BATCH):
            parts.append([grid.cpu() for grid in packed.encode(batch.to(tokenizer.device))])
            done(len(parts) * BATCH)
    return tuple(torch.cat(grids) for grids in zip(*parts, strict=True))


@torch.no_grad()
def decode(tokenizer: Tokenizer, codes: Codes, precision: str = "float32") -> Tensor:
    """Images of many codes, a few at a time: uint8 (B, C, H, W) on the CPU; arguments and errors as `encode`."""
    packed, parts = tokenizer.packed(precision), []
    with progress("Decoding", len(codes[0]), "images") as done:
        for batch in zip(*(grid.split(BATCH) for grid in codes), strict=True):
            parts.append(packed.decode(tuple(grid.to(tokenizer.device) for grid in batch)).cpu())
            done(len(parts) * BATCH)
    return torch.cat(parts)


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
        raise ValueError(f"{path} is damaged, or no file of codes ({error})") from error
    if metadata.get("format") != CODES_FORMAT:
        raise ValueError(f"{path} is no file of codes; chainrule encode writes one")
    if metadata.get("tokenizer_hash") != tokenizer_hash(tokenizer):
        raise ValueError(
            f"{path} holds codes of another tokenizer (hash {metadata.get('tokenizer_hash', '')[:12]}…, this one has "
            f"{tokenizer_hash(tokenizer)[:12]}…); decode it with the model that encoded it"
        )
    try:
        shapes, values, names = (json.loads(metadata[key]) for key in ("shapes", "values", "names"))
        codes = tuple(
            _unpack(packed[f"grid_{index}"], tuple(shape), size)
            for index, (shape, size) in enumerate(zip(shapes, values, strict=True))
        )
        if any(len(grid) != len(names) for grid in codes):
            raise ValueError(f"{len(names)} names are not one per image")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its tensors do not fit its metadata") from error
    return codes, [str(name) for name in names]


def _bits(size: int) -> int:
    return (size - 1).bit_length()


def _pack(codes: Tensor, size: int) -> Tensor:
    """Codes in 0..size-1, of any shape -> uint8, `_bits(size)` bits each."""
    shifts = np.arange(_bits(size))[::-1]
    bits = (codes.cpu().numpy().reshape(-1, 1) >> shifts) & 1
    return torch.from_numpy(np.packbits(bits.astype(np.uint8)))


def _unpack(packed: Tensor, shape: tuple[int, ...], size: int) -> Tensor:
    """The inverse of `_pack`; raises ValueError where the number of bytes is another."""
    count = math.prod(shape) * _bits(size)
    if packed.numel() != -(-count // 8):
        raise ValueError(f"{packed.numel()} bytes cannot be {count} bits")
    bits = np.unpackbits(packed.numpy(), count=count).reshape(-1, _bits(size)).astype(np.int64)
    return torch.from_numpy(bits @ (1 << np.arange(_bits(size))[::-1])).reshape(shape)
