"""ViT-VQGAN: Yu et al., "Vector-quantized Image Modeling with Improved VQGAN", arXiv:2110.04627, section 3.

Two vision transformers around a codebook.  Patches of P x P pixels become tokens; the encoder's tokens are projected
to a lookup space of few dimensions (factorised codes) and to its unit sphere, where the nearest of the K codes,
also of length 1, is taken: the one of the largest cosine (`VectorQuantizer`).  The decoder is
the mirror image:

    z = W_in encoder(x)        c = argmax_k cos(z, e_k)        x^ = decoder(W_out e_c / |e_c|)

    loss = MSE + 0.1 logit-Laplace + codebook loss (beta 0.25)    [+ 0.1 perceptual + 0.1 adversarial, in training]

Two variants share the blocks (pre-norm attention and MLP, fixed 2D sine-cosine positions, final LayerNorm):

    "paper"      GELU in the MLPs; after the blocks of both transformers a feed-forward of two layers with tanh between
    "enhancing"  the public weights (enhancing-transformers): tanh in every MLP, linear output

What the paper leaves open, and is chosen here: the width of the feed-forward after the blocks (that of the MLPs; the
encoder's keeps `width`, the decoder's gives pixels), heads of 64 channels whatever `width` is (as the public code has),
the scale of the logit-Laplace distribution (1), fixed positions (`learned_positions` trains them).  With `output`
"sigmoid" the decoder gives the location of that distribution and the picture is its median; Parti (arXiv:2206.10789)
finetunes a decoder with "pixels", without sigmoid and logit-Laplace.  Codes that die are restarted, which the
paper does not do (`restart_below` 0 turns it off).  Images of other sizes are refused: neither paper nor
public code says how positions would be continued.

Shape letters: B batch, C channels, H W image, P patch, h w grid, N = h w tokens, E width, L embedding_dim, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Codes, Preset, Reconstruction, register
from ..core.building import constant
from ..core.checks import check_images, check_sizes
from ..core.values import as_codes
from ..kernels.rows import by_images
from ..layers.logit_laplace import logit_laplace_image, logit_laplace_log_prob, map_pixels
from ..layers.transformer import attend
from ._grid import GridTokenizer, VectorQuantizerConfig, square
from ._vector_quantizer import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class TransformerSize:
    """Width E, number of blocks, heads, and width of the MLPs."""

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a multiple of 4 (sine and cosine of row and column), got {self.width}")
        check_sizes(self, "width", "num_layers", "num_heads", "mlp_width")


SMALL = TransformerSize(width=512, num_layers=8, num_heads=8, mlp_width=2048)
BASE = TransformerSize(width=768, num_layers=12, num_heads=12, mlp_width=3072)
LARGE = TransformerSize(width=1280, num_layers=32, num_heads=16, mlp_width=5120)


@dataclass(frozen=True, kw_only=True)
class ViTVQGANConfig(VectorQuantizerConfig):
    """Codebook as in VectorQuantizerConfig, the networks, and the losses.

    patch_size:           P, pixels along each side
    encoder, decoder:     sizes of the transformers
    head_width:           channels of an attention head
    variant, output:      see above
    learned_positions:    whether positions are trained
    mse_weight, logit_laplace_weight: of the terms of the loss
    metric:               "cosine" looks codes up on the unit sphere; "euclidean" is the paper's ablation
    legacy_beta:          of the VectorQuantizer; the public code has it
    """

    patch_size: int = 8
    encoder: TransformerSize = SMALL
    decoder: TransformerSize = SMALL
    codebook_size: int = 8192
    embedding_dim: int = 32
    head_width: int = 64
    variant: Literal["paper", "enhancing"] = "paper"
    output: Literal["sigmoid", "pixels"] = "sigmoid"
    learned_positions: bool = False
    mse_weight: float = 1.0
    logit_laplace_weight: float = 0.1
    metric: Literal["cosine", "euclidean"] = "cosine"
    learning: Literal["loss", "ema"] = "loss"
    legacy_beta: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "patch_size", "head_width")
        if self.image_height % self.patch_size or self.image_width % self.patch_size:
            raise ValueError(
                f"image_height and image_width must be multiples of the patch size {self.patch_size}, "
                f"got {self.image_height}x{self.image_width}"
            )
        if self.variant not in ("paper", "enhancing"):
            raise ValueError(f"variant must be paper or enhancing, got {self.variant!r}")
        if self.output not in ("sigmoid", "pixels"):
            raise ValueError(f"output must be sigmoid or pixels, got {self.output!r}")
        if min(self.mse_weight, self.logit_laplace_weight) < 0:
            raise ValueError("mse_weight and logit_laplace_weight must be at least 0")
        if self.output == "pixels" and self.logit_laplace_weight:
            raise ValueError("logit_laplace_weight would be ignored with output pixels; set it to 0")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.image_height // self.patch_size, self.image_width // self.patch_size


def sine_cosine_positions(height: int, width: int, features: int) -> Tensor:
    """Positions of a grid, (N, features) in raster order: sine and cosine of the column, then of the row.

    Frequencies are 10000^(-4 i / features), i = 0 .. features / 4 - 1.
    """
    frequencies = 10000.0 ** -(torch.arange(features // 4, dtype=torch.float64) / (features / 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [place.reshape(-1, 1) * frequencies for place in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


class Attention(nn.Module):
    """Full self-attention of `num_heads` x `head_width` channels, (B, N, E) -> (B, N, E)."""

    def __init__(self, size: TransformerSize, head_width: int) -> None:
        super().__init__()
        inner = size.num_heads * head_width
        self.heads = size.num_heads
        self.query_key_value = nn.Linear(size.width, 3 * inner, bias=False)
        plain = size.num_heads == 1 and head_width == size.width
        self.output = nn.Identity() if plain else nn.Linear(inner, size.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.output(attend(q, k, v).transpose(1, 2).flatten(2))


def feed_forward(in_width: int, mlp_width: int, out_width: int, activation: type[nn.Module]) -> nn.Sequential:
    """Two layers with an activation between."""
    return nn.Sequential(nn.Linear(in_width, mlp_width), activation(), nn.Linear(mlp_width, out_width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    is_layer = True  # training.checkpointing recomputes it

    def __init__(self, size: TransformerSize, head_width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size.width)
        self.attention = Attention(size, head_width)
        self.mlp_norm = nn.LayerNorm(size.width)
        self.mlp = feed_forward(size.width, size.mlp_width, size.width, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Tokens of a grid, with positions: (B, N, E) -> (B, N, E)."""

    def __init__(self, size: TransformerSize, config: ViTVQGANConfig) -> None:
        super().__init__()
        activation = nn.GELU if config.variant == "paper" else nn.Tanh
        height, width = config.grid
        shape = height * width, size.width
        positions = constant(shape, lambda: sine_cosine_positions(height, width, size.width))
        self.positions = nn.Parameter(positions, requires_grad=config.learned_positions)
        self.blocks = nn.ModuleList(Block(size, config.head_width, activation) for _ in range(size.num_layers))
        self.norm = nn.LayerNorm(size.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Encoder(nn.Module):
    """Pixels (B, C, H, W) -> tokens (B, N, E)."""

    def __init__(self, config: ViTVQGANConfig) -> None:
        super().__init__()
        size, self.patch_size = config.encoder, config.patch_size
        self.patches = nn.Linear(config.image_channels * config.patch_size**2, size.width)
        self.transformer = Transformer(size, config)
        paper = config.variant == "paper"
        self.head = feed_forward(size.width, size.mlp_width, size.width, nn.Tanh) if paper else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, self.patch_size).flatten(2).transpose(1, 2)  # (B, N, C P P)
        return self.head(self.transformer(self.patches(patches)))


class Decoder(nn.Module):
    """Tokens (B, N, E) -> pixels, or locations of pixels, (B, C, H, W)."""

    def __init__(self, config: ViTVQGANConfig) -> None:
        super().__init__()
        size, self.patch_size, self.grid = config.decoder, config.patch_size, config.grid
        self.transformer = Transformer(size, config)
        paper, values = config.variant == "paper", config.image_channels * config.patch_size**2
        self.head = nn.Sequential(nn.Linear(size.width, size.mlp_width), nn.Tanh()) if paper else nn.Identity()
        self.patches = nn.Linear(size.mlp_width if paper else size.width, values, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.image_channels))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(self.head(self.transformer(x)))
        values = patches.transpose(1, 2).unflatten(2, self.grid)  # (B, C P P, h, w)
        return F.pixel_shuffle(values, self.patch_size) + self.bias[:, None, None]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


ENHANCING = {"variant": "enhancing", "output": "pixels", "logit_laplace_weight": 0.0, "legacy_beta": True}
"""What sets the public code's models apart from the paper's."""


def _presets() -> dict[str, Preset]:
    pairs = {"small": (SMALL, SMALL), "base": (BASE, BASE), "small-large": (SMALL, LARGE), "large": (LARGE, LARGE)}
    configs = {name: ViTVQGANConfig(**square(256), encoder=one, decoder=two) for name, (one, two) in pairs.items()}
    configs |= {f"enhancing-{name}": replace(config, **ENHANCING) for name, config in configs.items()}
    return {name: Preset(config) for name, config in configs.items()}


_CPU_TRANSFORMER = {"width": 192, "num_layers": 4, "num_heads": 3, "mlp_width": 640}
FOR_A_CPU = {
    "encoder": _CPU_TRANSFORMER, "decoder": _CPU_TRANSFORMER, "codebook_size": 512, "embedding_dim": 16,
    "learning": "ema", "spread": 0.02,
}  # fmt: skip


@register("tokenizers", "vit_vqgan", ViTVQGANConfig, _presets(), small=FOR_A_CPU)
class ViTVQGAN(GridTokenizer):
    """Two transformers around a codebook on the unit sphere; images of the config's size only."""

    decoder_parts = ("from_lookup", "decoder")
    decoder_options = ("decoder", "head_width", "output", "mse_weight", "logit_laplace_weight")

    def __init__(self, config: ViTVQGANConfig) -> None:
        super().__init__(config, config.patch_size)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.to_lookup = nn.Linear(config.encoder.width, config.embedding_dim)
        self.from_lookup = nn.Linear(config.embedding_dim, config.decoder.width)
        self.apply(_initialise)
        self.quantizer = VectorQuantizer(config.codebook_size, config.embedding_dim, **config.quantizer_options())

    def features(self, pixels: Tensor) -> Tensor:
        """float (B, C, H, W) in [0, 1] -> vectors (B, L, h, w), not yet of length 1."""
        return self.to_lookup(self.encoder(pixels)).transpose(1, 2).unflatten(2, self.config.grid)

    def decode_outputs(self, quantized: Tensor) -> Tensor:
        """Vectors of codes (B, L, h, w) -> what the decoder gives, (B, C, H, W): see the config's `output`."""
        return self.decoder(self.from_lookup(quantized.flatten(2).transpose(1, 2)))

    def decode_features(self, quantized: Tensor) -> Tensor:
        """Vectors of codes (B, L, h, w) -> pixels (B, C, H, W), about [0, 1], not clamped."""
        return self._pixels(self.decode_outputs(quantized))

    def _pixels(self, outputs: Tensor) -> Tensor:
        return logit_laplace_image(outputs) if self.config.output == "sigmoid" else outputs

    def scale(self, images: Tensor) -> Tensor:
        """uint8 -> float in [0, 1], of the weights' type and device."""
        weight = self.to_lookup.weight
        return images.to(weight.device, weight.dtype) / 255

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        codes = as_codes(codes)
        self.check_codes(codes)
        pixels = by_images(lambda one: self.decode_features(self.embed(one)), codes[0], growth=self.factor**2)
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.patches.weight

    def reconstruction(self, images: Tensor, progress: float) -> Reconstruction:
        self.check_images(images)
        pixels = self.scale(images)
        quantized = self.quantizer(self.features(pixels))
        outputs = self.decode_outputs(quantized.quantized).float()
        result = self._pixels(outputs)
        mse = (result - pixels).square().mean()
        loss = self.config.mse_weight * mse + quantized.loss
        metrics = {**quantized.metrics, "mse": mse.detach()}
        if self.config.logit_laplace_weight:
            nats = -logit_laplace_log_prob(map_pixels(pixels), outputs, torch.zeros_like(outputs)).mean()
            loss = loss + self.config.logit_laplace_weight * nats
            metrics["logit_laplace"] = nats.detach()
        return Reconstruction(result, (quantized.codes,), loss, metrics)

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless `images` is uint8 (B, C, H, W) of the one size that the positions are for."""
        why = ", the only size this tokenizer works at (resize them, or train one for theirs)"
        check_images(images, self.image_shape[:1], self.image_shape[1:], why)

    def check_codes(self, codes: Sequence[Tensor]) -> None:
        """Raises ValueError unless `codes` is one grid of the one size that the positions are for."""
        self.spec.check(codes)
