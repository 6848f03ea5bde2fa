"""Pixels as codes: the tokenizer of PixelRNN and PixelCNN, which model the levels themselves.

`Pixels` is one grid of D = C codes per pixel, R before G before B.  `MultiScalePixels` puts a
subsampled copy before it (van den Oord et al. 2016, arXiv:1601.06759, section 2.3): the small grid holds
the pixels (i * factor, j * factor) of the large one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Codes, CodeSpec, GridSpec, Tokenizer, register
from ._grid import ImageConfig


@dataclass(frozen=True, kw_only=True)
class PixelsConfig(ImageConfig):
    """As ImageConfig; `levels` per channel, 2 (binary: 128 and more is on) to 256."""

    image_channels: int = 1
    levels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must lie in 2..256, got {self.levels}")


@register("tokenizers", "pixels", PixelsConfig)
class Pixels(Tokenizer):
    """Levels of pixels: uint8 v -> the nearest of `levels` values spread evenly over 0..255."""

    def __init__(self, config: PixelsConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        self.spec = CodeSpec.single(config.image_height, config.image_width, config.image_channels, config.levels)

    def encode(self, images: Tensor) -> Codes:
        self.check_images(images)
        return (_to_levels(images, self.config.levels),)

    def decode(self, codes: Codes) -> Tensor:
        self.spec.check(codes)
        return _from_levels(codes[0], self.config.levels)

    def known_codes(self, mask: Tensor) -> Tensor:
        return mask.flatten().repeat_interleave(self.config.image_channels)


@dataclass(frozen=True, kw_only=True)
class MultiScalePixelsConfig(PixelsConfig):
    """As PixelsConfig; `factor` is the ratio of the sides of the two grids."""

    factor: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 2 or self.image_height % self.factor or self.image_width % self.factor:
            raise ValueError(
                "factor must be at least 2 and divide the image's sides "
                f"{self.image_height}x{self.image_width}, got {self.factor}"
            )


@register("tokenizers", "multiscale_pixels", MultiScalePixelsConfig)
class MultiScalePixels(Tokenizer):
    """Two grids of levels: every factor-th pixel, then all of them."""

    def __init__(self, config: MultiScalePixelsConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = config.image_shape
        channels, height, width = config.image_shape
        small = GridSpec(height // config.factor, width // config.factor, channels, config.levels)
        self.spec = CodeSpec((small, GridSpec(height, width, channels, config.levels)))

    def encode(self, images: Tensor) -> Codes:
        self.check_images(images)
        large = _to_levels(images, self.config.levels)
        return large[:, :: self.config.factor, :: self.config.factor].contiguous(), large

    def decode(self, codes: Codes) -> Tensor:
        self.spec.check(codes)
        return _from_levels(codes[1], self.config.levels)

    def known_codes(self, mask: Tensor) -> Tensor:
        small = mask[:: self.config.factor, :: self.config.factor]
        return torch.cat([small.flatten(), mask.flatten()]).repeat_interleave(self.config.image_channels)


def _to_levels(images: Tensor, levels: int) -> Tensor:
    """uint8 (B, C, H, W) -> int64 (B, H, W, C)."""
    return (images.permute(0, 2, 3, 1).long() * (levels - 1) * 2 + 255) // 510


def _from_levels(codes: Tensor, levels: int) -> Tensor:
    """int64 (B, H, W, C) -> uint8 (B, C, H, W)."""
    return ((codes * 510 + levels - 1) // (2 * (levels - 1))).to(torch.uint8).permute(0, 3, 1, 2).contiguous()
