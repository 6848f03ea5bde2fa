"""What tokenizers of learned codes share: ranges, sizes, masks, the pass of training.

A tokenizer of one grid is four maps.  `features` and `decode_features` are the network, `encode` and `embed` the
quantizer; f is the factor between image and grid, C the channels of a vector, D the codes per position:

    image (B, c, H, W) --features--> (B, C, H/f, W/f) --encode--> codes (B, H/f, W/f, D) --embed--> --decode_features-->
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core import Codes, CodeSpec, LearnedTokenizer, Reconstruction
from ..core.checks import check_images, check_sizes
from ..core.values import as_codes, as_mask, as_tensor
from ..kernels.packed_network import packed, twin
from ..kernels.rows import by_images
from ._codebook import check_codebook
from ._vector_quantizer import Quantized


@dataclass(frozen=True, kw_only=True)
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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.image_channels, self.image_height, self.image_width


@dataclass(frozen=True, kw_only=True)
class CodebookConfig(ImageConfig):
    """The images, and codebooks.

    codebook_size, embedding_dim:       K and C
    beta, decay, restart_below, spread: of the quantizer, see VectorQuantizer
    """

    codebook_size: int = 512
    embedding_dim: int = 64
    beta: float = 0.25
    decay: float = 0.99
    restart_below: float = 0.1
    spread: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_codebook(**vars(self))

    def quantizer_options(self) -> dict[str, Any]:
        """The fields that a quantizer takes by the same names, but for its size."""
        names = ("metric", "learning", "beta", "legacy_beta", "decay", "restart_below", "spread")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


@dataclass(frozen=True, kw_only=True)
class VectorQuantizerConfig(CodebookConfig):
    """As CodebookConfig; `metric` and `learning` are options of the VectorQuantizer, too."""

    metric: Literal["euclidean", "cosine"] = "euclidean"
    learning: Literal["ema", "loss"] = "ema"


def square(side: int) -> dict[str, int]:
    """The size of square images, as options of an ImageConfig."""
    return {"image_height": side, "image_width": side}


class CellTokenizer(LearnedTokenizer):
    """A tokenizer whose codes stand for cells of pixels; it works on images of all sizes that are multiples of a cell.

    Args:
        config: as `config` of the tokenizer.
        factor: pixels along each side of a cell, of the coarsest grid if there are several.

    Attributes:
        networks: names of the parts that `packed` computes in bfloat16.
    """

    networks: tuple[str, ...] = ("encoder", "decoder")

    def __init__(self, config: ImageConfig, factor: int) -> None:
        super().__init__()
        self.config, self.factor, self.image_shape = config, factor, config.image_shape
        sides = self.image_shape[1:]
        if any(side % factor for side in sides):
            raise ValueError(
                f"image_height and image_width must be multiples of {factor}, got {sides[0]} and {sides[1]}; "
                f"the next that are: {' and '.join(str(-(-side // factor) * factor) for side in sides)}"
            )

    def packed(self, precision: str) -> CellTokenizer:
        """See `Tokenizer`."""
        return twin(self, precision, lambda: {name: packed(getattr(self, name)) for name in self.networks})

    def scale(self, images: Tensor) -> Tensor:
        """uint8 -> float in [-1, 1], of the weights' type and device."""
        weight = next(tensor for tensor in chain(self.parameters(), self.buffers()) if tensor.is_floating_point())
        return to_signed(images.to(weight.device, weight.dtype))

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless `images` is uint8 (B, c, H, W) of a size that can be encoded."""
        check_images(images, self.image_shape[:1])
        check_multiples(images.shape[2:], self.factor)


class GridTokenizer(CellTokenizer):
    """A tokenizer of one grid: of images whose sides are multiples of `factor`, and of codes of any height and width.

    Args:
        config: as `config` of the tokenizer.
        factor: f.
        depth: D.

    Attributes:
        quantizer: set by the subclass.
        error: of the reconstruction: mean squared ("mse") or absolute ("l1").
    """

    quantizer: nn.Module
    error: Literal["mse", "l1"] = "mse"

    def __init__(self, config: Any, factor: int, depth: int = 1) -> None:
        super().__init__(config, factor)
        sides = (side // factor for side in self.image_shape[1:])
        self.spec = CodeSpec.single(*sides, depth, config.codebook_size)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Images float (B, c, H, W) in [-1, 1] -> (B, C, h, w), before quantization."""

    def encode_features(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> codes int64 (B, h, w, D)."""
        return self.quantizer.encode(features)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes int64 (B, h, w, D) -> the quantized features (B, C, h, w)."""
        return self.quantizer.embed(codes)

    def quantize(self, features: Tensor, progress: float) -> Quantized:
        """What the quantizer makes of features (B, C, h, w) in training."""
        return self.quantizer(features)

    @abstractmethod
    def decode_features(self, features: Tensor) -> Tensor:
        """Quantized features (B, C, h, w) -> images float (B, c, H, W), in about [-1, 1], not clamped."""

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, ...]:
        """What each code adds to the quantized features: one (D, K, C)."""
        grid = self.spec.only
        assert grid.depth == 1, "a tokenizer of several codes per position gives the vectors of each depth itself"
        codes = torch.arange(grid.codebook_size, device=self.device)
        return (self.embed(codes.view(1, 1, -1, 1))[:, :, 0].transpose(1, 2),)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Codes:
        """uint8 (B, c, H, W), H and W multiples of f -> one grid (B, H/f, W/f, D)."""
        images = as_tensor(images, "images")
        self.check_images(images)
        return (by_images(lambda one: self.encode_features(self.features(self.scale(one))), images),)

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """One grid (B, h, w, D), of any h and w -> uint8 (B, c, f h, f w)."""
        codes = as_codes(codes)
        self.check_codes(codes)
        return by_images(lambda one: to_uint8(self.decode_features(self.embed(one))), codes[0], growth=self.factor**2)

    def reconstruction(self, images: Tensor, progress: float) -> Reconstruction:
        self.check_images(images)
        x = self.scale(images)
        quantized = self.quantize(self.features(x), progress)
        decoded = self.decode_features(quantized.quantized)
        error = ((x - decoded).square() if self.error == "mse" else (x - decoded).abs()).mean()
        metrics = {self.error: error.detach(), **quantized.metrics}
        return Reconstruction(to_unit(decoded), (quantized.codes,), error + quantized.loss, metrics)

    def known_codes(self, mask: Tensor) -> Tensor:
        """bool (H, W) -> bool (h w D,): codes all of whose f x f pixels are known."""
        return known_cells(mask, self.factor).repeat_interleave(self.spec.only.depth)

    def check_codes(self, codes: Sequence[Tensor]) -> None:
        """Raises ValueError unless `codes` is one int64 grid (B, h, w, D) in range, of any size."""
        grid = self.spec.only
        if len(codes) == 1 and codes[0].ndim == 4 and min(codes[0].shape[1:3]) > 0:
            CodeSpec.single(*codes[0].shape[1:3], grid.depth, grid.codebook_size).check(codes)
        else:
            self.spec.check(codes)


def check_multiples(sides: Sequence[int], factor: int) -> None:
    """Raises ValueError unless the sides of an image, (H, W), are multiples of `factor`."""
    if all(side >= factor and side % factor == 0 for side in sides):
        return
    below = "x".join(str(max(side // factor, 1) * factor) for side in sides)
    above = "x".join(str(max(-(-side // factor), 1) * factor) for side in sides)
    raise ValueError(
        f"height and width of an image must be multiples of {factor}, got {sides[0]}x{sides[1]}; "
        f"nearest: {below if below == above else f'{below} and {above}'}"
    )


def known_cells(mask: Tensor, factor: int) -> Tensor:
    """Cells all of whose pixels are known: bool (H, W) -> bool (H / factor * W / factor,) in raster order."""
    return as_mask(mask).unfold(0, factor, factor).unfold(1, factor, factor).flatten(2).all(-1).flatten()


def to_signed(images: Tensor) -> Tensor:
    """Numbers in 0..255, uint8 or float -> float in [-1, 1]."""
    return images / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1], clamped -> uint8, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous()


def to_unit(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> float in [0, 1], at least float32, not clamped."""
    return ((images if images.dtype == torch.float64 else images.float()) + 1) / 2
