"""RQ-VAE: Lee et al., "Autoregressive Image Generation using Residual Quantization", arXiv:2203.01941.

    z = P E(x)      q^d = q^(d-1) + nearest code of z - q^(d-1), d = 1..D      x' = G(P' q^D)

with one codebook for all depths, learned by moving averages, E and G the networks of VQGAN
(`_autoencoder`), P and P' 1x1 convolutions.  Here the loss is what does not need other networks, in the
range [-1, 1]:

    mean (x - x')^2 + beta mean_d mean (z - sg[q^d])^2

and the perceptual and the adversarial loss are added in training.  An image is also decoded from its first codes only,
`decode_partial`, and `encode_soft` gives the stochastic codes and soft targets that train the prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core import Codes, Preset, register
from ..core.checks import check_sizes
from ._autoencoder import ConvAutoencoderConfig
from ._grid import CodebookConfig, square, to_uint8
from ._packed_autoencoder import AutoencoderTokenizer
from ._residual_quantizer import ResidualQuantizer


@dataclass(frozen=True, kw_only=True)
class RQVAEConfig(ConvAutoencoderConfig, CodebookConfig):
    """Networks as in ConvAutoencoderConfig, codebooks as in CodebookConfig.

    depth:          codes per position, D
    shared:         one codebook for all depths, or one each
    error:          of the reconstruction: mean squared ("mse") or absolute ("l1")
    """

    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    attention_levels: tuple[int, ...] = (5,)
    codebook_size: int = 16384
    embedding_dim: int = 256
    depth: int = 4
    shared: bool = True
    error: Literal["mse", "l1"] = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "depth")
        if self.error not in ("mse", "l1"):
            raise ValueError(f"error must be mse or l1, got {self.error!r}")


FOR_A_CPU = {
    "width": 16, "multipliers": [1, 2, 4, 8], "num_blocks": 1, "attention_levels": [3], "latent_channels": 64,
    "norm_groups": 1, "codebook_size": 512, "embedding_dim": 64,
}  # fmt: skip


@register("tokenizers", "rqvae", RQVAEConfig, {
    "imagenet256": Preset(RQVAEConfig(**square(256))),
    "ffhq256": Preset(RQVAEConfig(**square(256), codebook_size=2048, attention_levels=(4,))),
    "emoji64": Preset(RQVAEConfig(
        **square(64), width=32, multipliers=(1, 2, 4, 4), num_blocks=1, attention_levels=(3,), latent_channels=64,
        codebook_size=512, embedding_dim=64,
    )),
}, small=FOR_A_CPU)  # fmt: skip
class RQVAE(AutoencoderTokenizer):
    """One grid of D codes per position at 1/2^(L-1) of the image's sides."""

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__(config, config.depth)
        self.error = config.error
        self.quantizer = ResidualQuantizer(
            config.codebook_size, config.embedding_dim, config.depth, shared=config.shared, **config.quantizer_options()
        )

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, ...]:
        return (torch.stack([self.quantizer.codebook(depth).vectors() for depth in range(self.config.depth)]),)

    @torch.no_grad()
    def decode_partial(self, codes: Codes, depth: int) -> Tensor:
        """The image of the first `depth` codes of every position, 1..D: Codes -> uint8 (B, c, H, W)."""
        self.check_codes(codes)
        if not 1 <= depth <= self.config.depth:
            raise ValueError(f"depth must lie in 1..{self.config.depth}, got {depth}")
        return to_uint8(self.decode_features(self.embed(codes[0][..., :depth])))

    @torch.no_grad()
    def encode_soft(
        self, images: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> tuple[Codes, Tensor]:
        """Stochastic codes and soft targets (B, h, w, D, K) of uint8 images; see `ResidualQuantizer.encode_soft`."""
        self.check_images(images)
        codes, targets = self.quantizer.encode_soft(self.features(self.scale(images)), temperature, generator)
        return (codes,), targets
