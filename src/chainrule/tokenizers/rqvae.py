"""RQ-VAE: Lee et al., "Autoregressive Image Generation using Residual Quantization", arXiv:2203.01941.

    z = P E(x)      q^d = q^(d-1) + nearest code of z - q^(d-1), d = 1..D      x' = G(P' q^D)

with one codebook for all depths, learned by moving averages, E and G the networks of VQGAN
(`layers.conv_autoencoder`), P and P' 1x1 convolutions.  Here the loss is what does not need other networks, in the
range [-1, 1]:

    mean (x - x')^2 + beta mean_d mean (z - sg[q^d])^2

and the perceptual and the adversarial loss are added in training.  An image is also decoded from its first codes only,
`decode_partial`, and `encode_soft` gives the stochastic codes and soft targets that train the prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Codes, Preset, Reconstruction, register
from ..core.checks import check_sizes
from ._autoencoder import ConvAutoencoderConfig, Decoder, Encoder
from ._codebook import check_codebook
from ._grid import to_uint8, to_unit
from ._packed_autoencoder import PackableTokenizer
from ._residual_quantizer import ResidualQuantizer


@dataclass(frozen=True)
class RQVAEConfig(ConvAutoencoderConfig):
    """Networks as in ConvAutoencoderConfig.

    codebook_size, embedding_dim: size of a codebook
    depth:          codes per position, D
    shared:         one codebook for all depths, or one each
    error:          of the reconstruction: mean squared ("mse") or absolute ("l1")
    beta, decay, restart_below, spread: of the ResidualQuantizer
    """

    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    attention_levels: tuple[int, ...] = (5,)
    codebook_size: int = 16384
    embedding_dim: int = 256
    depth: int = 4
    shared: bool = True
    error: Literal["mse", "l1"] = "mse"
    beta: float = 0.25
    decay: float = 0.99
    restart_below: float = 0.1
    spread: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "depth")
        if self.error not in ("mse", "l1"):
            raise ValueError(f"error must be mse or l1, got {self.error!r}")
        check_codebook(**vars(self))


@register(
    "tokenizers",
    "rqvae",
    RQVAEConfig,
    {
        "imagenet256": Preset(RQVAEConfig(256, 256)),
        "ffhq256": Preset(RQVAEConfig(256, 256, codebook_size=2048, attention_levels=(4,))),
        "emoji64": Preset(
            RQVAEConfig(64, 64, width=32, multipliers=(1, 2, 4, 4), num_blocks=1, attention_levels=(3,),
                        latent_channels=64, codebook_size=512, embedding_dim=64)
        ),
    },
)  # fmt: skip
class RQVAE(PackableTokenizer):
    """One grid of D codes per position at 1/2^(L-1) of the image's sides."""

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__(config, config.factor, config.depth, config.codebook_size)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.to_codebook = nn.Conv2d(config.latent_channels, config.embedding_dim, 1)
        self.from_codebook = nn.Conv2d(config.embedding_dim, config.latent_channels, 1)
        self.quantizer = ResidualQuantizer(
            config.codebook_size, config.embedding_dim, config.depth, shared=config.shared, beta=config.beta,
            decay=config.decay, restart_below=config.restart_below, spread=config.spread,
        )  # fmt: skip

    def features(self, images: Tensor) -> Tensor:
        return self.to_codebook(self.encoder(images))

    def encode_features(self, features: Tensor) -> Tensor:
        return self.quantizer.encode(features)

    def embed(self, codes: Tensor) -> Tensor:
        return self.quantizer.embed(codes)

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, ...]:
        return (torch.stack([self.quantizer.codebook(depth).vectors() for depth in range(self.config.depth)]),)

    def decode_features(self, features: Tensor) -> Tensor:
        return self.decoder(self.from_codebook(features))

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

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def reconstruction(self, images: Tensor, progress: float) -> Reconstruction:
        self.check_images(images)
        x = self.scale(images)
        quantized = self.quantizer(self.features(x))
        decoded = self.decode_features(quantized.quantized)
        difference = x - decoded
        error = (difference.square() if self.config.error == "mse" else difference.abs()).mean()
        metrics = {self.config.error: error.detach(), **quantized.metrics}
        return Reconstruction(to_unit(decoded), (quantized.codes,), error + quantized.loss, metrics)
