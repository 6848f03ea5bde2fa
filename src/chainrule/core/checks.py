"""Ranges of the fields of configs, and the type and shape of images."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_SIZE = 1 << 20
"""No width, count or size of a layer is larger."""
MAX_LAYERS = 256
"""No field such as num_layers, num_blocks or blocks_per_group, which counts modules, is larger."""
COUNTS_MODULES = re.compile(r"(\w+_)?(layers|blocks|residual|stages|depth)|blocks_per_group")


def check_range(config: object, low: float, high: float, *names: str) -> None:
    """Raises ValueError unless the fields of these names lie in low..high, or below where they count modules; of
    tuples, each element."""
    for name in names:
        value = getattr(config, name)
        most = min(high, MAX_LAYERS) if COUNTS_MODULES.fullmatch(name) else high
        for one in value if isinstance(value, tuple) else (value,):
            if not one >= low:
                raise ValueError(f"{name} must be at least {low}, got {one}")
            if not one <= most:
                raise ValueError(f"{name} must be at most {most}, got {one}")


def check_sizes(config: object, *names: str) -> None:
    """Raises ValueError unless the fields of these names lie in 1..MAX_SIZE."""
    check_range(config, 1, MAX_SIZE, *names)


def check_shares(config: object, *names: str) -> None:
    """Raises ValueError unless the fields of these names lie in [0, 1), as a share that is dropped must."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {getattr(config, name)}")


def check_odd(config: object, name: str, low: int = 3) -> None:
    """Raises ValueError unless a field, a kernel's size, is odd and lies in low..MAX_SIZE."""
    check_range(config, low, MAX_SIZE, name)
    if getattr(config, name) % 2 == 0:
        raise ValueError(f"{name} must be odd, got {getattr(config, name)}")


def check_heads(config: object, *names: str) -> None:
    """Raises ValueError unless the field `width` is a multiple of each of the fields of these names, all in range."""
    check_sizes(config, "width", *names)
    for name in names:
        if config.width % getattr(config, name):
            raise ValueError(f"width ({config.width}) must be a multiple of {name} ({getattr(config, name)})")


def check_images(
    images: Tensor, channels: Sequence[int] = (1, 3), size: Sequence[int] | None = None, why: str = ""
) -> None:
    """Raises ValueError unless images are uint8 (B, C, H, W), with C one of `channels`, and (H, W) `size` if given.

    `why` says in the error, after the shape, why it must be that.
    """
    height, width = size or ("H", "W")
    right = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in channels
    if not right or (size is not None and tuple(images.shape[2:]) != tuple(size)):
        wanted = f"(B, {' or '.join(map(str, channels))}, {height}, {width}){why}"
        raise ValueError(f"images must be uint8 {wanted}, got {str(images.dtype)[6:]} {tuple(images.shape)}")
