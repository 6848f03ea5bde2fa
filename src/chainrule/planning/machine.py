"""Where a training is to run: a machine that is described, or this one."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

import torch

UTILISATION = 0.4
"""Share of a device's peak rate that training reaches; well-tuned transformers reach 0.3 to 0.5."""
PREFIXES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What limits a training.

    devices: how many work together
    memory:  bytes of each; 0 where the system does not say
    rate:    floating-point operations per second at the peak of each; 0 where steps are measured instead
    """

    devices: int = 1
    memory: int = 0
    rate: float = 0.0

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")

    @classmethod
    def described(cls, devices: int, memory: str, rate: str) -> Machine:
        """The machine that words such as "80GB" and "300TFLOPS" describe."""
        return cls(devices=devices, memory=int(quantity(memory, "B", "memory")), rate=quantity(rate, "FLOPS", "rate"))

    @classmethod
    def this(cls) -> Machine:
        """One device of this machine, whose steps are measured."""
        if torch.cuda.is_available():
            return cls(memory=torch.cuda.mem_get_info()[1])
        names = getattr(os, "sysconf_names", {})
        known = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names)
        return cls(memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 0)


def quantity(text: str, unit: str, name: str) -> float:
    """The number that a text such as "80GB" means; raises ValueError where it is none, or not above 0."""
    found = re.fullmatch(rf"([\d.]+)\s*([kmgtp]?){unit}(/s)?", text.strip(), re.IGNORECASE)
    try:
        value = float(found[1]) * PREFIXES[found[2].lower()]
    except (TypeError, ValueError):
        value = 0.0
    if not value > 0:
        raise ValueError(f"{name} must be a number with its unit, such as 80G{unit}, got {text!r}")
    return value


def peak_memory() -> int:
    """The most bytes that this process has had; 0 where the system does not say, as Windows."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
