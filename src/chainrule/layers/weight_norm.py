"""Convolutions with weight normalisation: Salimans and Kingma 2016, arXiv:1602.07868.

A kernel is w = g v / |v|, its direction v and magnitude g learned apart; the norm is over all dimensions but the first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.building import constant


class WeightNormKernel(nn.Module):
    """A kernel (N, C, height, width) of N directions and magnitudes.

    Args:
        shape: of the kernel.
        hidden: trailing taps of the last row that are zero, and no part of the norm.
    """

    def __init__(self, shape: tuple[int, int, int, int], hidden: int = 0) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(shape))
        nn.init.kaiming_uniform_(self.direction, a=5**0.5)
        visible = torch.ones(1, 1, *shape[2:])
        visible[:, :, -1, shape[3] - hidden :] = 0
        self.hidden = hidden
        self.register_buffer("visible", visible, persistent=False)
        norms = constant(shape[:1], lambda: self.visible_direction().detach().flatten(1).norm(dim=1))
        self.magnitude = nn.Parameter(norms)

    def visible_direction(self) -> Tensor:
        return self.direction * self.visible if self.hidden else self.direction

    def kernel(self) -> Tensor:
        """The kernel w, of the given shape."""
        direction = self.visible_direction()
        scale = self.magnitude / direction.flatten(1).norm(dim=1)
        return direction * scale[:, None, None, None]


class WeightNormConv2d(WeightNormKernel):
    """A convolution (B, in, H, W) -> (B, out, H', W').

    Args:
        kernel_size: (height, width).
        padding: columns left and right, rows above and below that are added as zeros.
        hidden: trailing taps of the kernel's last row that are zero.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0), stride: int = 1, hidden: int = 0, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__((out_channels, in_channels, *kernel_size), hidden)
        self.padding, self.stride = padding, stride
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, self.padding) if any(self.padding) else x
        return F.conv2d(padded, self.kernel(), self.bias, self.stride)

    def matrix(self) -> Tensor:
        """The kernel of a 1x1 convolution as (in, out)."""
        return self.kernel()[:, :, 0, 0].t().contiguous()
