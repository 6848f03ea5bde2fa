"""VQGAN: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", arXiv:2012.09841.

    z = P E(x)        q = nearest code of z        x' = G(P' q)

with E and G the networks of `_autoencoder` and P, P' 1x1 convolutions.  Here the loss is what does not
need other networks, in the range [-1, 1]:

    mean |x - x'| + codebook and commitment terms (see `_codebook`)

and the perceptual and the adversarial loss, by which a VQGAN is more than a VQ-VAE, are added in training.  The paper
weights the commitment with beta = 1; the published code has beta = 0.25 on the codebook's term instead and 1 on the
commitment, which is `legacy_beta`.

The Gumbel variant (the release `vqgan_gumbel_f8`) makes logits of z by another 1x1 convolution.  In training q is a
Gumbel-softmax sample of the codebook, one-hot forwards, at a temperature that falls as a cosine of the progress; codes
are the most probable, without noise.  Its loss adds kl_weight KL(softmax(logits) || uniform).  (The published code
draws noise when it encodes, too.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..core import Preset, register
from ._autoencoder import ConvAutoencoderConfig
from ._codebook import check_codebook
from ._grid import VectorQuantizerConfig, square
from ._gumbel_quantizer import GumbelQuantizer
from ._packed_autoencoder import AutoencoderTokenizer
from ._vector_quantizer import Quantized, VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class VQGANConfig(ConvAutoencoderConfig, VectorQuantizerConfig):
    """Networks as in ConvAutoencoderConfig, codebook as in VectorQuantizerConfig.

    legacy_beta: of the VectorQuantizer
    has_encoder: False is half a VQGAN, which decodes only: some releases hold no more
    """

    codebook_size: int = 1024
    embedding_dim: int = 256
    beta: float = 1.0
    learning: Literal["ema", "loss"] = "loss"
    legacy_beta: bool = False
    has_encoder: bool = True


@dataclass(frozen=True, kw_only=True)
class VQGANGumbelConfig(ConvAutoencoderConfig):
    """Networks as in ConvAutoencoderConfig.

    codebook_size, embedding_dim: size of the codebook
    kl_weight:      of the divergence from uniform codes, in nats per position
    temperatures:   of the Gumbel-softmax at the first and at the last step
    hard:           one-hot samples in training, with the gradient of the relaxed ones
    """

    codebook_size: int = 8192
    embedding_dim: int = 256
    kl_weight: float = 1e-8
    temperatures: tuple[float, float] = (1.0, 0.0625)
    hard: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_codebook(**vars(self))
        if min(self.temperatures) <= 0:
            raise ValueError(f"temperatures must be above 0, got {list(self.temperatures)}")


FOR_A_CPU = {
    "width": 16, "multipliers": [1, 2, 4], "num_blocks": 1, "attention_levels": [2], "latent_channels": 64,
    "norm_groups": 1, "codebook_size": 512, "embedding_dim": 64,
}  # fmt: skip


@register("tokenizers", "vqgan", VQGANConfig, {
    "f16-1024": Preset(VQGANConfig(**square(256))),
    "f16-4096": Preset(VQGANConfig(**square(256), codebook_size=4096)),
    "f16-8192": Preset(VQGANConfig(**square(256), codebook_size=8192)),
    "f16-16384": Preset(VQGANConfig(**square(256), codebook_size=16384)),
    "dalle-mini": Preset(VQGANConfig(**square(256), codebook_size=16384, norm_eps=1e-5, has_encoder=False)),
    "emoji64": Preset(VQGANConfig(
        **square(64), width=32, multipliers=(1, 2, 4), num_blocks=1, attention_levels=(2,), latent_channels=64,
        codebook_size=512, embedding_dim=32, beta=0.25, learning="ema",
    )),
}, small=FOR_A_CPU | {"learning": "ema", "spread": 0.1})  # fmt: skip
class VQGAN(AutoencoderTokenizer):
    """One grid of codes at 1/2^(L-1) of the image's sides."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__(config, has_encoder=config.has_encoder)
        self.quantizer = VectorQuantizer(config.codebook_size, config.embedding_dim, **config.quantizer_options())


GUMBEL_F8 = VQGANGumbelConfig(**square(256), multipliers=(1, 1, 2, 4), attention_levels=(3,))


@register(
    "tokenizers",
    "vqgan_gumbel",
    VQGANGumbelConfig,
    {"f8-8192": Preset(GUMBEL_F8)},
    small=FOR_A_CPU,
)
class VQGANGumbel(AutoencoderTokenizer):
    """As VQGAN, with codes by the logits of `to_logits`."""

    def __init__(self, config: VQGANGumbelConfig) -> None:
        super().__init__(config)
        self.to_logits = nn.Conv2d(config.embedding_dim, config.codebook_size, 1)
        self.quantizer = GumbelQuantizer(
            config.codebook_size, config.embedding_dim, kl_weight=config.kl_weight, hard=config.hard
        )

    def logits(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> log-odds of the codes (B, K, h, w)."""
        return self.to_logits(features)

    def encode_features(self, features: Tensor) -> Tensor:
        return self.quantizer.encode(self.logits(features))

    def quantize(self, features: Tensor, progress: float) -> Quantized:
        return self.quantizer(self.logits(features), self.temperature(progress))

    def temperature(self, progress: float) -> float:
        """The temperature after a share of the steps, 0..1."""
        first, last = self.config.temperatures
        return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
