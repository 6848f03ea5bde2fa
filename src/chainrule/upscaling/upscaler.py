"""Parti's refinement: decoded pictures at twice the size (Yu et al. 2022, arXiv:2206.10789, section 2.1).

Not a tokenizer: it stands behind one.  In the manner of WDSR (Yu et al. 2018, arXiv:1808.08718), n residual blocks that
are wide before the activation, at the resolution of the input, and pixels that are shuffled out of channels at the end:

    h = C x        h <- h + W_2 relu(W_1 h)  (n times)        x' = doubled x + shuffle(D h)

all convolutions 3x3, W_1 to `expansion` times the features.  Twice in a row makes four times the size, the two models
of the paper.

Deviations: x is doubled by bicubic interpolation instead of a convolution and D begins at zero, so that the untrained
model is that interpolation; no weight normalisation.  The paper gives 12 blocks of 128 features and "about 15M"
parameters; the expansion is not given, and 4 comes nearest.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_images, check_sizes
from ..core.values import as_tensor
from ..kernels.packed_network import packed, twin
from ..kernels.rows import by_images
from ..tokenizers._grid import to_signed, to_uint8


@dataclass(frozen=True, kw_only=True)
class UpscalerConfig:
    """Sizes of the network.

    image_channels: 1 (grey) or 3 (colour)
    num_blocks:     residual blocks
    width:          features between the blocks
    expansion:      times as many features inside the blocks
    """

    image_channels: int = 3
    num_blocks: int = 12
    width: int = 128
    expansion: int = 4

    def __post_init__(self) -> None:
        if self.image_channels not in (1, 3):
            raise ValueError(f"image_channels must be 1 (grey) or 3 (colour), got {self.image_channels}")
        check_sizes(self, "num_blocks", "width", "expansion")


PRESETS = {"parti": UpscalerConfig()}


def bicubic(images: Tensor) -> Tensor:
    """Float (B, C, H, W) -> (B, C, 2 H, 2 W)."""
    return F.interpolate(images, scale_factor=2.0, mode="bicubic", align_corners=False)


class ResidualBlock(nn.Module):
    """h + W_2 relu(W_1 h)."""

    def __init__(self, features: int, expansion: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(features, expansion * features, 3, padding=1)
        self.contract = nn.Conv2d(expansion * features, features, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.contract(F.relu(self.expand(h)))


class Upscaler(nn.Module):
    """Images of any size to twice that size."""

    compile_training = False  # an adaptive weight needs the graph in pieces

    def __init__(self, config: UpscalerConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(config.image_channels, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width, config.expansion) for _ in range(config.num_blocks)))
        self.conv_out = nn.Conv2d(config.width, 4 * config.image_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Float (B, C, H, W) in about [-1, 1] -> float (B, C, 2 H, 2 W), not clamped."""
        detail = F.pixel_shuffle(self.conv_out(self.blocks(self.conv_in(images))), 2)
        return bicubic(images) + detail

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the layer that makes the values of the image, where losses are balanced."""
        return self.conv_out.weight

    def packed(self, precision: str) -> Upscaler:
        """This upscaler with its weights packed once.

        Args:
            precision: "float32", the upscaler itself, or "bfloat16", which is faster and gives slightly other images.

        Raises:
            ValueError: another precision.
        """
        return twin(self, precision, lambda: {name: packed(part) for name, part in self.named_children()})

    @torch.no_grad()
    def upscale(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> uint8 (B, C, 2 H, 2 W).

        Raises:
            ValueError: images of another type or number of channels.
        """
        images = as_tensor(images, "images")
        check_images(images, [self.config.image_channels])
        weight = next(self.parameters(), torch.empty(0))  # a packed one has none and is on the CPU
        return by_images(lambda one: to_uint8(self(to_signed(one.to(weight.dtype)))), images.to(weight.device))
