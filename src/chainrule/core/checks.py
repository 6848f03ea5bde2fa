"""Ranges of the fields of configs."""

from __future__ import annotations

MAX_SIZE = 1 << 20
"""No width, count or size of a layer is larger."""


def check_range(config: object, low: float, high: float, *names: str) -> None:
    """Raises ValueError unless the fields of these names lie in low..high; of tuples, each element."""
    for name in names:
        value = getattr(config, name)
        for one in value if isinstance(value, tuple) else (value,):
            if not one >= low:
                raise ValueError(f"{name} must be at least {low}, got {one}")
            if not one <= high:
                raise ValueError(f"{name} must be at most {high}, got {one}")


def check_sizes(config: object, *names: str) -> None:
    """Raises ValueError unless the fields of these names lie in 1..MAX_SIZE."""
    check_range(config, 1, MAX_SIZE, *names)
