"""What the rounding of a model depends on besides its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch

from .. import __version__
from ..kernels.native import processor_kind
from ..kernels.packing import KERNEL


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that must agree so that a model gives the same numbers again, by name."""
    return {
        "chainrule": __version__,
        "torch": str(torch.__version__),
        "constriction": version("constriction"),
        "processor": processor_kind(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "kernels": "plain" if KERNEL.load() is None else "native",
    }


def short(found: dict[str, str]) -> bytes:
    """A byte for each entry of an environment, in its order, which differs for another entry but for 1 time in 256."""
    return bytes(hashlib.sha256(value.encode()).digest()[0] for value in found.values())


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes in one thread: sums that several threads share round differently for another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
