"""Networks packed for inference: convolutions channels last, in bfloat16 where the processor has instructions for it.

This is what PyTorch does fastest on CPUs; without such instructions float32 is faster.  The networks of VQGAN have
a faster form, see `tokenizers._packed_autoencoder`: their normalisation is computed with their convolutions.  Measured
with AMX, the tiles of `convolution` alone, without that, are no faster than PyTorch's convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from .native import has_bfloat16

PRECISIONS = ("float32", "bfloat16")
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def twin(module: ModuleT, precision: str, parts: Callable[[], dict[str, nn.Module]]) -> ModuleT:
    """A module with packed parts: itself in float32, and in bfloat16 a copy with some other children.

    Args:
        parts: gives the packed children by name.

    Raises:
        ValueError: another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "float32":
        return module
    other = copy.copy(module)
    other._modules = module._modules | parts()
    return other.eval()


class PackedNetwork(nn.Module):
    """A network that maps one tensor as another does, but faster, to the type of its input; without gradients.

    Like all that is packed, it has no parameters and stays on its device.

    Args:
        network: its parameters are copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        device = next(network.parameters()).device
        self.dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
        self.networks = [copy.deepcopy(network).eval().to(self.dtype, memory_format=torch.channels_last)]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, ...) -> what the network gives, in the type of x."""
        result = self.networks[0](x.to(self.dtype))
        return result.to(x.dtype) if isinstance(result, Tensor) else tuple(part.to(x.dtype) for part in result)


def packed(network: nn.Module) -> nn.Module:
    """A `PackedNetwork`; of a list, each of its networks is packed."""
    return nn.ModuleList(map(PackedNetwork, network)) if isinstance(network, nn.ModuleList) else PackedNetwork(network)
