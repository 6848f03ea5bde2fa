"""Ranges of the fields of configs."""

from __future__ import annotations

import re

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
