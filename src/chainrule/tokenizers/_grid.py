"""What tokenizers of one grid of learned codes share: ranges, sizes, masks.

Such a tokenizer is four maps, of which `features` and `decode_features` are the network's and the other two the
quantizer's, with f the factor between image and grid, C channels of a vector, D codes per position:

    image (B, c, H, W) --features--> (B, C, H/f, W/f) --encode--> codes (B, H/f, W/f, D) --embed--> --decode_features-->
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Codes, CodeSpec, LearnedTokenizer
from ..core.checks import check_sizes
from ..layers.cells import check_cells, known_cells


@dataclass(frozen=True)
class ImageConfig:
    """The images a tokenizer is made for.

    image_height, image_width: in pixels
    image_channels:            1 (grey) or 3 (colour)
    """

    image_height: int
    image_width: int
    image_channels: int = 3

    def __post_init__(self) -> None:
        check_sizes(self, "image_height", "image_width")
        if self.image_channels not in (1, 3):
            raise ValueError(f"image_channels must be 1 (grey) or 3 (colour), got {self.image_channels}")


class GridTokenizer(LearnedTokenizer):
    """A tokenizer of one grid.

    It encodes and decodes other sizes than `image_shape`, too: images whose sides are multiples of `factor`, and codes
    of any height and width.

    Args:
        config: as `config` of the tokenizer.
        factor: f.
        depth: D.
        codebook_size: K.
    """

    def __init__(self, config: ImageConfig, factor: int, depth: int, codebook_size: int) -> None:
        super().__init__()
        self.config, self.factor = config, factor
        self.image_shape = (config.image_channels, config.image_height, config.image_width)
        if config.image_height % factor or config.image_width % factor:
            sizes = " and ".join(str(round_up(side, factor)) for side in (config.image_height, config.image_width))
            raise ValueError(
                f"image_height and image_width must be multiples of {factor}, got {config.image_height} and "
                f"{config.image_width}; the next that are: {sizes}"
            )
        self.spec = CodeSpec.single(config.image_height // factor, config.image_width // factor, depth, codebook_size)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Images float (B, c, H, W) in [-1, 1] -> (B, C, h, w), before quantization."""

    @abstractmethod
    def encode_features(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> codes int64 (B, h, w, D)."""

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """Codes int64 (B, h, w, D) -> the quantized features (B, C, h, w)."""

    @abstractmethod
    def decode_features(self, features: Tensor) -> Tensor:
        """Quantized features (B, C, h, w) -> images float (B, c, H, W), in about [-1, 1], not clamped."""

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, ...]:
        """What each code adds to the quantized features: one (D, K, C)."""
        grid = self.spec.only
        assert grid.depth == 1, "a tokenizer of several codes per position gives the vectors of each depth itself"
        codes = torch.arange(grid.codebook_size, device=next(self.parameters()).device)
        return (self.embed(codes.view(1, 1, -1, 1))[:, :, 0].transpose(1, 2),)

    def scale(self, images: Tensor) -> Tensor:
        """uint8 -> float in [-1, 1], of the weights' type and device."""
        parameter = next(self.parameters())
        return to_signed(images.to(parameter.device, parameter.dtype))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Codes:
        """uint8 (B, c, H, W), H and W multiples of f -> one grid (B, H/f, W/f, D)."""
        self.check_images(images)
        return (self.encode_features(self.features(self.scale(images))),)

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """One grid (B, h, w, D), of any h and w -> uint8 (B, c, f h, f w)."""
        self.check_codes(codes)
        return to_uint8(self.decode_features(self.embed(codes[0])))

    def known_codes(self, mask: Tensor) -> Tensor:
        """bool (H, W) -> bool (h w D,): codes all of whose f x f pixels are known."""
        return known_cells(mask, self.factor).repeat_interleave(self.spec.only.depth)

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless `images` is uint8 (B, c, H, W) of a size that can be encoded."""
        check_cells(images, self.image_shape[0], self.factor)

    def check_codes(self, codes: Sequence[Tensor]) -> None:
        """Raises ValueError unless `codes` is one int64 grid (B, h, w, D) in range, of any size."""
        grid = self.spec.only
        if len(codes) == 1 and codes[0].ndim == 4 and min(codes[0].shape[1:3]) > 0:
            CodeSpec.single(*codes[0].shape[1:3], grid.depth, grid.codebook_size).check(codes)
        else:
            self.spec.check(codes)


def round_up(side: int, factor: int) -> int:
    """The smallest multiple of `factor`, 1 or more times, that is not below `side`."""
    return max(1, -(-side // factor)) * factor


def to_signed(images: Tensor) -> Tensor:
    """Numbers in 0..255, uint8 or float -> float in [-1, 1]."""
    return images / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1], clamped -> uint8, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous()


def to_unit(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> float in [0, 1], at least float32, not clamped."""
    return ((images if images.dtype == torch.float64 else images.float()) + 1) / 2
