"""VQ-VAE: van den Oord et al., "Neural Discrete Representation Learning", arXiv:1711.00937.

    z = E(x)        q = nearest code of z        x' = G(q)

E is log2(downsampling) convolutions 4x4 of stride 2 (the paper has two), residual blocks x + (ReLU, 3x3, ReLU, 1x1) and
a 1x1 convolution to the codebook's dimension; G is a 3x3 convolution, the same blocks and 4x4 transposed convolutions.
The loss, in the range [-1, 1] and with means over all elements, is

    mean (x - x')^2 + codebook and commitment terms (see `_codebook`)

Deviations: the codebook is learned by moving averages unless told "loss", as in the authors' later code; the ReLU
between strided convolutions and at the end of the residual blocks is theirs, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Preset, register
from ..core.checks import MAX_SIZE, check_range, check_sizes
from ._grid import GridTokenizer, VectorQuantizerConfig, square
from ._vector_quantizer import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(VectorQuantizerConfig):
    """Codebook as in VectorQuantizerConfig; defaults are the paper's, but for embedding_dim, which it does not say.

    width, residual_width: of the network, and inside its residual blocks
    num_blocks:     residual blocks on each side
    downsampling:   pixels per code along each side, a power of 2
    """

    width: int = 256
    residual_width: int = 256
    num_blocks: int = 2
    downsampling: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 2, MAX_SIZE, "downsampling")
        if self.downsampling & (self.downsampling - 1):
            raise ValueError(f"downsampling must be a power of 2 of at least 2, got {self.downsampling}")
        check_sizes(self, "width", "residual_width")
        check_range(self, 0, MAX_SIZE, "num_blocks")

    @property
    def num_halvings(self) -> int:
        """How often the encoder halves the height and the width."""
        return self.downsampling.bit_length() - 1


class ResidualBlock(nn.Module):
    """x + (ReLU, 3x3, ReLU, 1x1)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.width, config.residual_width, 3, padding=1)
        self.out = nn.Conv2d(config.residual_width, config.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.relu(self.conv(F.relu(x))))


class Encoder(nn.Module):
    """Images (B, channels, H, W) -> (B, embedding_dim, h, w)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        widths = [config.image_channels] + [config.width] * config.num_halvings
        self.halvings = nn.ModuleList(nn.Conv2d(*pair, 4, stride=2, padding=1) for pair in pairwise(widths))
        self.blocks = nn.Sequential(*(ResidualBlock(config) for _ in range(config.num_blocks)))
        self.out = nn.Conv2d(config.width, config.embedding_dim, 1)

    def forward(self, h: Tensor) -> Tensor:
        for index, halve in enumerate(self.halvings):
            h = halve(F.relu(h) if index else h)
        return self.out(F.relu(self.blocks(h)))


class Decoder(nn.Module):
    """(B, embedding_dim, h, w) -> images (B, channels, H, W)."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        widths = [config.width] * config.num_halvings + [config.image_channels]
        self.conv_in = nn.Conv2d(config.embedding_dim, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config) for _ in range(config.num_blocks)))
        self.doublings = nn.ModuleList(nn.ConvTranspose2d(*pair, 4, stride=2, padding=1) for pair in pairwise(widths))

    def forward(self, quantized: Tensor) -> Tensor:
        h = self.blocks(self.conv_in(quantized))
        for double in self.doublings:
            h = double(F.relu(h))
        return h


@register("tokenizers", "vqvae", VQVAEConfig, {
    "imagenet128": Preset(VQVAEConfig(**square(128), learning="loss")),
    "dmlab84": Preset(VQVAEConfig(**square(84), learning="loss")),
    "cifar10": Preset(VQVAEConfig(**square(32), width=128, residual_width=32)),
    "emoji64": Preset(VQVAEConfig(**square(64), width=128, residual_width=64)),
}, small={"width": 128, "residual_width": 64, "codebook_size": 512, "spread": 0.1})  # fmt: skip
class VQVAE(GridTokenizer):
    """One grid of codes at 1/downsampling of the image's sides."""

    decoder_parts = ("decoder",)
    decoder_options = ("width", "residual_width", "num_blocks")

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config, config.downsampling)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = VectorQuantizer(config.codebook_size, config.embedding_dim, **config.quantizer_options())

    def features(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def decode_features(self, features: Tensor) -> Tensor:
        return self.decoder(features)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.doublings[-1].weight
