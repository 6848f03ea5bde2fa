"""VQ-VAE-2: Razavi et al., "Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv:1906.00446, section 3.1.

Encoders in a chain give features h_l of ever coarser grids.  Codes are chosen from coarse to fine, l = 1 .. L, and
each level knows those above it:

    z_1 = project(h_1)                            q_l = quantize_l(z_l)
    z_l = project([decoder_l(g_(l-1)), h_l])      g_1 = q_1,    g_l = [upsample_l(g_(l-1)), q_l]

g_l holds all codes so far on the grid of level l, and the last decoder makes the image of g_L.  Minimised is the
squared error of pixels in [-1, 1] plus beta times the sum of the levels' commitment errors; codebooks are
exponential moving averages (section 2.1, eq. 2 of the paper's VQ-VAE).

Networks: n convolutions 4x4 of stride 2 (the first to half the width), 3x3, residual blocks of (relu, 3x3, relu, 1x1);
decoders mirror them with transposed convolutions.  The paper names no sizes; the preset has those of the
widely used implementation for PyTorch (rosinality), 1,388,867 parameters and two codebooks of 512 vectors.

For two levels this is the paper's figure 2a; what g_l holds for three is our reading of "the decoder is conditioned on
all codes".  Shape letters: B batch, C channels, H, W image; h, w the grid of a level; D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Codes, CodeSpec, GridSpec, Preset, Reconstruction, register
from ..core.checks import MAX_SIZE, check_range, check_sizes
from ..core.values import as_codes, as_tensor
from ..kernels.rows import by_images
from ._grid import CellTokenizer, CodebookConfig, known_cells, square, to_uint8, to_unit
from ._vector_quantizer import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class VQVAE2Config(CodebookConfig):
    """Codebooks as in CodebookConfig, and the size of the network; both are alike at every level.

    num_levels:     two or more grids of codes; each has half the side of the next
    downsampling:   pixels per code of the finest grid along each side, a power of 2
    width, residual_width: of every encoder and decoder, and inside their residual blocks
    num_blocks:     residual blocks of each
    codebook_size:  codes of every level's codebook, or one number per level, coarse to fine
    """

    num_levels: int = 2
    downsampling: int = 4
    width: int = 128
    residual_width: int = 32
    num_blocks: int = 2
    codebook_size: int | tuple[int, ...] = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_levels < 2:
            raise ValueError(f"num_levels must be at least 2 (with one it is the VQ-VAE), got {self.num_levels}")
        check_range(self, 2, 16, "num_levels")
        check_range(self, 2, MAX_SIZE, "downsampling")
        if len(self.codebook_sizes) != self.num_levels:
            raise ValueError(f"codebook_size must be one number or {self.num_levels}, got {list(self.codebook_sizes)}")
        if self.downsampling & (self.downsampling - 1):
            raise ValueError(f"downsampling must be a power of 2 of at least 2, got {self.downsampling}")
        check_range(self, 2, MAX_SIZE, "width")
        check_sizes(self, "residual_width")
        check_range(self, 0, MAX_SIZE, "num_blocks")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of every level's codebook, coarse to fine."""
        return (self.codebook_size,) * self.num_levels if isinstance(self.codebook_size, int) else self.codebook_size

    @property
    def factors(self) -> tuple[int, ...]:
        """Pixels per code along each side at every level, coarse to fine."""
        return tuple(self.downsampling * 2**level for level in reversed(range(self.num_levels)))


class ResidualBlock(nn.Module):
    """A residual block, x + W_1x1 relu(W_3x3 relu(x))."""

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, inside, 3, padding=1)
        self.narrow = nn.Conv2d(inside, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.relu(self.wide(F.relu(x))))


def residual_blocks(config: VQVAE2Config) -> nn.Sequential:
    """The residual blocks of an encoder or a decoder."""
    return nn.Sequential(*(ResidualBlock(config.width, config.residual_width) for _ in range(config.num_blocks)))


class Encoder(nn.Module):
    """(B, in, H, W) -> features (B, hidden, H / factor, W / factor)."""

    def __init__(self, config: VQVAE2Config, in_channels: int, factor: int) -> None:
        super().__init__()
        hidden, count = config.width, factor.bit_length() - 1
        widths = [in_channels, hidden // 2] + [hidden] * (count - 1)
        self.down = nn.ModuleList(nn.Conv2d(*pair, 4, stride=2, padding=1) for pair in pairwise(widths))
        self.mix = nn.Conv2d(widths[-1], hidden, 3, padding=1)
        self.blocks = residual_blocks(config)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.down:
            x = F.relu(layer(x))
        return F.relu(self.blocks(self.mix(x)))


class Decoder(nn.Module):
    """(B, in, h, w) -> (B, out, h * factor, w * factor)."""

    def __init__(self, config: VQVAE2Config, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        hidden, count = config.width, factor.bit_length() - 1
        widths = [hidden] * max(count - 1, 1) + [hidden // 2] * (count > 1) + [out_channels]
        self.mix = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.blocks = residual_blocks(config)
        self.up = nn.ModuleList(nn.ConvTranspose2d(*pair, 4, stride=2, padding=1) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.mix(x))
        for layer in self.up:
            x = layer(F.relu(x))
        return x


@register("tokenizers", "vqvae2", VQVAE2Config, {
    "rosinality": Preset(VQVAE2Config(**square(256))),
    "imagenet256": Preset(VQVAE2Config(**square(256), residual_width=64)),
    "ffhq1024": Preset(VQVAE2Config(**square(1024), residual_width=64, num_levels=3, downsampling=8)),
}, small={"width": 128, "residual_width": 64, "codebook_size": 256, "spread": 0.1})  # fmt: skip
class VQVAE2(CellTokenizer):
    """A hierarchy of quantized grids; any size of image that is a multiple of the coarsest factor goes."""

    networks = ("encoders", "decoders", "project", "upsample")

    def __init__(self, config: VQVAE2Config) -> None:
        super().__init__(config, config.factors[0])
        self.spec = self.spec_of(config.image_height // self.factor, config.image_width // self.factor)
        levels, dim, hidden = config.num_levels, config.embedding_dim, config.width
        # lists run from coarse to fine; the finest encoder reads the image, each other one the next finer features
        self.encoders = nn.ModuleList([Encoder(config, hidden, 2) for _ in range(levels - 1)])
        self.encoders.append(Encoder(config, config.image_channels, config.downsampling))
        self.project = nn.ModuleList(nn.Conv2d(hidden + dim * (level > 0), dim, 1) for level in range(levels))
        self.quantizers = nn.ModuleList(
            VectorQuantizer(codebook_size, dim, **config.quantizer_options()) for codebook_size in config.codebook_sizes
        )
        self.decoders = nn.ModuleList(Decoder(config, dim * level, dim, 2) for level in range(1, levels))
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(dim * level, dim * level, 4, stride=2, padding=1) for level in range(1, levels)
        )
        self.decoders.append(Decoder(config, dim * levels, config.image_channels, config.downsampling))

    @property
    def decoder_parts(self) -> tuple[str, ...]:
        """What only the finest level has; the decoders of coarser levels take part in encoding."""
        return f"upsample.{len(self.upsample) - 1}", f"decoders.{len(self.decoders) - 1}"

    def spec_of(self, height: int, width: int) -> CodeSpec:
        """The specification of codes whose coarsest grid has that size."""
        sizes = self.config.codebook_sizes
        return CodeSpec(
            tuple(GridSpec(height << n, width << n, 1, codebook_size) for n, codebook_size in enumerate(sizes))
        )

    def features(self, pixels: Tensor) -> list[Tensor]:
        """h_l, coarse to fine: pixels (B, C, H, W) in [-1, 1] -> each (B, hidden, h, w)."""
        features = [pixels]
        for encoder in reversed(self.encoders):
            features.insert(0, encoder(features[0]))
        return features[:-1]

    def project_level(self, level: int, gathered: Tensor | None, h: Tensor) -> Tensor:
        """z_l (B, D, h, w), of g_(l-1) (None at the coarsest level, 0) and h_l."""
        return self.project[level](h if gathered is None else torch.cat([self.decoders[level - 1](gathered), h], 1))

    def gather(self, level: int, gathered: Tensor | None, quantized: Tensor) -> Tensor:
        """g_l (B, l D, h, w), of g_(l-1) and q_l."""
        return quantized if gathered is None else torch.cat([self.upsample[level - 1](gathered), quantized], 1)

    def decode_features(self, quantized: Sequence[Tensor]) -> Tensor:
        """q_l, coarse to fine, each (B, D, h, w) -> pixels (B, C, H, W), about [-1, 1], not clamped."""
        gathered = None
        for level, q in enumerate(quantized):
            gathered = self.gather(level, gathered, q)
        return self.decoders[-1](gathered)

    def embed(self, codes: Codes) -> list[Tensor]:
        """q_l of codes, coarse to fine, each (B, D, h, w)."""
        return [quantizer.embed(grid) for quantizer, grid in zip(self.quantizers, codes, strict=True)]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Codes:
        images = as_tensor(images, "images")
        self.check_images(images)
        return by_images(self._encode, images)

    def _encode(self, images: Tensor) -> Codes:
        codes, gathered = [], None
        for level, h in enumerate(self.features(self.scale(images))):
            codes.append(self.quantizers[level].encode(self.project_level(level, gathered, h)))
            gathered = self.gather(level, gathered, self.quantizers[level].embed(codes[-1]))
        return tuple(codes)

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        codes = as_codes(codes)
        self.check_codes(codes)
        return by_images(
            lambda *codes: to_uint8(self.decode_features(self.embed(codes))), *codes,
            growth=min(self.config.factors) ** 2,
        )  # fmt: skip

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoders[-1].up[-1].weight

    def reconstruction(self, images: Tensor, progress: float) -> Reconstruction:
        self.check_images(images)
        pixels = self.scale(images)
        chosen, gathered = [], None
        for level, h in enumerate(self.features(pixels)):
            chosen.append(self.quantizers[level](self.project_level(level, gathered, h)))
            gathered = self.gather(level, gathered, chosen[-1].quantized)
        decoded = self.decoders[-1](gathered)
        error = (pixels - decoded).square().mean()
        metrics = {"mse": error.detach()}
        for level, quantized in enumerate(chosen):
            metrics |= {f"{name}_{level}": value for name, value in quantized.metrics.items()}
        codes = tuple(quantized.codes for quantized in chosen)
        return Reconstruction(to_unit(decoded), codes, error + sum(quantized.loss for quantized in chosen), metrics)

    def known_codes(self, mask: Tensor) -> Tensor:
        return torch.cat([known_cells(mask, factor) for factor in self.config.factors])

    def check_codes(self, codes: Sequence[Tensor]) -> None:
        """Raises ValueError unless `codes` is one int64 grid (B, h, w, 1) in range per level, of any coarsest size."""
        if codes and codes[0].ndim == 4 and min(codes[0].shape[1:3]) > 0:
            self.spec_of(*codes[0].shape[1:3]).check(codes)
        else:
            self.spec.check(codes)
