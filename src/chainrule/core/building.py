"""Building modules whose weights are read from a file, or that need none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FILLED = {torch.Tensor.normal_, torch.Tensor.uniform_}
DRAWN = {torch.randn, torch.rand}


class Uninitialized(TorchFunctionMode):
    """Inside, new weights get no values: `torch.nn.init` does nothing, and tensors of random numbers are empty."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in FILLED or getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if function in DRAWN else function)(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, new modules are on the device "meta": their weights have shapes, and take neither memory nor time."""
    with torch.device("meta"), Uninitialized():
        yield


def constant(shape: Sequence[int], compute: Callable[[], Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a new module: what `compute` gives, or an empty one on the device "meta".

    Arithmetic on "meta" has no result, and makes PyTorch import its compiler first, for seconds.
    """
    return torch.empty(shape, dtype=dtype) if torch.empty(0).device.type == "meta" else compute()
