"""The convolutional encoder and decoder of VQGAN (Esser et al. 2021, arXiv:2012.09841), which RQ-VAE has, too.

L levels, level l with m_l * width channels at 1/2^l of the image's sides.  A level of the encoder is
`num_blocks` residual blocks (GroupNorm, swish, 3x3 convolution, twice), each followed by self-attention over all
positions on the `attention_levels`, and a halving: one column and row of zeros on the right and below, then a 3x3
convolution of stride 2.  The decoder has one block more per level, and doubles by repeating pixels before a 3x3
convolution.  Both have block, attention, block at the lowest resolution.

All operations keep the memory format of their input and can run in bfloat16; on CPUs, the fast setting for training is

    tokenizer.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16): ...

and for inference `tokenizer.packed("bfloat16")`, see `_packed_autoencoder`.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_shares, check_sizes
from ._grid import ImageConfig


@dataclass(frozen=True, kw_only=True)
class ConvAutoencoderConfig(ImageConfig):
    """Sizes of encoder and decoder; the defaults are those of VQGAN's f16 models at 256x256.

    width:    channels at level 0 and multiplier 1
    multipliers:      m_l; the image's sides are divided by 2^(L-1)
    num_blocks:       residual blocks per level of the encoder
    attention_levels: levels with attention, 0..L-1
    latent_channels:  of the encoder's last and the decoder's first convolution
    dropout:          in the residual blocks
    norm_groups:      of the group normalisation; divides width
    resample_convolution: whether halving and doubling have convolutions (else: means of 2x2 pixels, and none)
    norm_eps:         what the group normalisation adds to variances
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
    attention_levels: tuple[int, ...] = (4,)
    latent_channels: int = 256
    dropout: float = 0.0
    norm_groups: int = 32
    resample_convolution: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "width", "multipliers", "num_blocks", "latent_channels", "norm_groups")
        if not 1 <= len(self.multipliers) <= 16:
            raise ValueError(f"multipliers must be 1 to 16 numbers, one per level, got {len(self.multipliers)}")
        if self.width % self.norm_groups:
            raise ValueError(f"norm_groups must divide width, got {self.norm_groups} groups of {self.width} channels")
        if any(not 0 <= level < len(self.multipliers) for level in self.attention_levels):
            raise ValueError(
                f"attention_levels must lie in 0..{len(self.multipliers) - 1}, got {list(self.attention_levels)}"
            )
        check_shares(self, "dropout")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps must be above 0, got {self.norm_eps}")

    @property
    def factor(self) -> int:
        """Pixels per position of the grid, along each side."""
        return 2 ** (len(self.multipliers) - 1)


def group_norm(channels: int, config: ConvAutoencoderConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups, channels, eps=config.norm_eps)


class ResidualBlock(nn.Module):
    """x + two of (GroupNorm, swish, 3x3 convolution), with a 1x1 convolution of x where the channels change."""

    def __init__(self, channels: int, out_channels: int, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, config)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class Attention(nn.Module):
    """x + self-attention over all positions, one head, no positions encoded."""

    def __init__(self, channels: int, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.norm = group_norm(channels, config)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x))
        b, _, height, width = qkv.shape
        q, k, v = qkv.permute(0, 2, 3, 1).reshape(b, 1, height * width, 3, -1).unbind(3)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.reshape(b, height, width, -1).permute(0, 3, 1, 2))


class Halve(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if config.resample_convolution else None

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if config.resample_convolution else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks, attention after each where the level has it, and a change of resolution at its end."""

    is_layer = True  # training.checkpointing recomputes it

    def __init__(
        self, channels: int, out: int, num_blocks: int, attention: bool, resample: nn.Module,
        config: ConvAutoencoderConfig,
    ) -> None:  # fmt: skip
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(out if i else channels, out, config) for i in range(num_blocks))
        self.attention = nn.ModuleList(
            Attention(out, config) if attention else nn.Identity() for _ in range(num_blocks)
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attention, strict=True):
            x = attention(block(x))
        return self.resample(x)


def middle(channels: int, config: ConvAutoencoderConfig) -> nn.Sequential:
    """Block, attention, block at the lowest resolution."""
    return nn.Sequential(
        ResidualBlock(channels, channels, config),
        Attention(channels, config),
        ResidualBlock(channels, channels, config),
    )


class Encoder(nn.Module):
    """Images (B, channels, H, W) -> (B, latent_channels, H / factor, W / factor)."""

    def __init__(self, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        channels, last = config.width, len(config.multipliers) - 1
        self.conv_in = nn.Conv2d(config.image_channels, channels, 3, padding=1)
        self.levels = nn.ModuleList()
        for index, multiplier in enumerate(config.multipliers):
            out = config.width * multiplier
            resample = nn.Identity() if index == last else Halve(out, config)
            attention = index in config.attention_levels
            self.levels.append(Level(channels, out, config.num_blocks, attention, resample, config))
            channels = out
        self.middle = middle(channels, config)
        self.norm_out = group_norm(channels, config)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in self.levels:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    """(B, latent_channels, h, w) -> images (B, channels, h * factor, w * factor); levels run from the last to 0."""

    def __init__(self, config: ConvAutoencoderConfig) -> None:
        super().__init__()
        channels = config.width * config.multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.middle = middle(channels, config)
        levels = []
        for index in reversed(range(len(config.multipliers))):
            out = config.width * config.multipliers[index]
            resample = nn.Identity() if index == 0 else Double(out, config)
            attention = index in config.attention_levels
            levels.append(Level(channels, out, config.num_blocks + 1, attention, resample, config))
            channels = out
        self.levels = nn.ModuleList(reversed(levels))
        self.norm_out = group_norm(channels, config)
        self.conv_out = nn.Conv2d(channels, config.image_channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        h = self.middle(self.conv_in(latent))
        for level in reversed(self.levels):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
