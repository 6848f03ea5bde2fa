"""Weights spread over the processes (fully sharded data parallel, Zhao et al. 2023, arXiv:2304.11277).

Each process keeps a part of every weight, of its average and of its optimizer's state, as PyTorch's `DTensor`.  A layer
is put together for as long as it computes.  Everything here leaves an ordinary tensor as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Spreads a module's weights over the processes of a Fabric mesh: layers marked by `is_layer` one by one, then the
    rest.

    Raises:
        ValueError: a module that changes its weights while it computes.
    """
    from torch.distributed.fsdp import fully_shard

    if not all(getattr(part, "is_shardable", True) for part in module.modules()):
        raise ValueError("a codebook that is restarted while it learns by loss cannot be sharded; use --strategy ddp")
    for layer in module.modules():
        if getattr(layer, "is_layer", False):
            fully_shard(layer, mesh=mesh["data_parallel"])
    return fully_shard(module, mesh=mesh["data_parallel"])


def _is_spread(tensor: Any) -> bool:
    """Whether it is a `DTensor`, whose module only PyTorch 2.5 and later have where users may import it."""
    return hasattr(tensor, "device_mesh")


def is_sharded(module: nn.Module) -> bool:
    """Whether the processes keep parts of the module's weights."""
    return any(_is_spread(parameter) for parameter in module.parameters())


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; it shares the memory."""
    return tensor.to_local() if _is_spread(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; all processes must ask for it."""
    return tensor.full_tensor() if _is_spread(tensor) else tensor


def spread_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A tensor, which all processes have, spread as another one of its shape is."""
    if not _is_spread(like) or like.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def empty_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """An empty tensor of the shape and type of the first, spread as the second is if it has the same shape."""
    if _is_spread(like) and like.shape == tensor.shape:
        return torch.empty_like(like, dtype=tensor.dtype)
    return torch.empty(tensor.shape, dtype=tensor.dtype)
