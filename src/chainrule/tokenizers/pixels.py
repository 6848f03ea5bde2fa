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
from ..core.checks import check_range
from ..core.values import as_codes, as_mask, as_tensor
from ._grid import ImageConfig


@dataclass(frozen=True, kw_only=True)
class PixelsConfig(ImageConfig):
    """As ImageConfig; `levels` per channel, 2 (binary: 128 and more is on) to 256."""

    image_channels: int = 1
    levels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 2, 256, "levels")


class _Levels(Tokenizer):
    """One grid per factor, coarse to fine: the levels of every factor-th pixel; the last grid has all pixels."""

    def __init__(self, config: PixelsConfig, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.factors, self.image_shape = config, factors, config.image_shape
        channels, height, width = config.image_shape
        self.spec = CodeSpec(tuple(GridSpec(height // f, width // f, channels, config.levels) for f in factors))

    def encode(self, images: Tensor) -> Codes:
        images = as_tensor(images, "images")
        self.check_images(images)
        levels = (images.permute(0, 2, 3, 1).long() * (self.config.levels - 1) * 2 + 255) // 510
        return tuple(levels[:, ::f, ::f].contiguous() for f in self.factors)

    def decode(self, codes: Codes) -> Tensor:
        codes = as_codes(codes)
        self.spec.check(codes)
        highest = self.config.levels - 1
        return ((codes[-1] * 510 + highest) // (2 * highest)).to(torch.uint8).permute(0, 3, 1, 2).contiguous()

    def known_codes(self, mask: Tensor) -> Tensor:
        mask = as_mask(mask)
        known = torch.cat([mask[::f, ::f].flatten() for f in self.factors])
        return known.repeat_interleave(self.config.image_channels)


@register("tokenizers", "pixels", PixelsConfig)
class Pixels(_Levels):
    """Levels of pixels: uint8 v -> the nearest of `levels` values spread evenly over 0..255."""

    def __init__(self, config: PixelsConfig) -> None:
        super().__init__(config, (1,))


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
class MultiScalePixels(_Levels):
    """Two grids of levels: every factor-th pixel, then all of them."""

    def __init__(self, config: MultiScalePixelsConfig) -> None:
        super().__init__(config, (config.factor, 1))
