"""The networks of `_autoencoder` packed for inference: the same maps, faster and in bfloat16.

Each convolution is a `kernels.convolution.Convolution`, with the normalisation and swish before it, the doubling before
it and the sum after it; what the next normalisation needs is summed on the way, in float32.  Maps are bfloat16,
channels last, and so are queries, keys and values; a block's result takes the place of its input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.convolution import Algorithm, Convolution, Map, normalization
from ..kernels.packed_network import twin
from ._autoencoder import Attention, ConvAutoencoderConfig, Decoder, Double, Encoder, Halve, Level, ResidualBlock
from ._grid import GridTokenizer

PIXELS = 1 << 16
"""Images are computed together while they have no more, as maps should stay in the caches."""
Scratch = dict[tuple[int, ...], Tensor]
"""Maps that are free, by shape: large ones are slow to allocate."""
Stage = Callable[[Map, Scratch], Map]


class AutoencoderTokenizer(GridTokenizer):
    """A tokenizer with VQGAN's networks, a 1x1 convolution on each side of the quantizer, and a packed form.

    Args:
        depth, config: as in GridTokenizer.
        has_encoder: without one, codes are only decoded.
    """

    error = "l1"
    decoder_parts = ("from_codebook", "decoder")
    decoder_options = (
        "width", "multipliers", "num_blocks", "attention_levels", "latent_channels", "dropout", "norm_groups",
        "resample_convolution", "norm_eps",
    )  # fmt: skip
    encoder: nn.Module | None
    decoder: nn.Module

    def __init__(self, config: ConvAutoencoderConfig, depth: int = 1, has_encoder: bool = True) -> None:
        super().__init__(config, config.factor, depth)
        self.encoder = Encoder(config) if has_encoder else None
        self.decoder = Decoder(config)
        self.to_codebook = nn.Conv2d(config.latent_channels, config.embedding_dim, 1) if has_encoder else None
        self.from_codebook = nn.Conv2d(config.embedding_dim, config.latent_channels, 1)

    def features(self, images: Tensor) -> Tensor:
        if self.encoder is None:
            raise ValueError("this VQGAN has no encoder, its release holds none: it turns codes into images only")
        return self.to_codebook(self.encoder(images))

    def decode_features(self, features: Tensor) -> Tensor:
        return self.decoder(self.from_codebook(features))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def packed(self, precision: str, algorithm: Algorithm | None = None) -> AutoencoderTokenizer:
        """See `Tokenizer`.

        Args:
            algorithm: of the convolutions in bfloat16, see `kernels.convolution`; None: the fastest that this CPU has.
        """
        if precision == "float32" and algorithm is not None:
            raise ValueError("an algorithm is for convolutions in bfloat16; leave it out in float32")
        return twin(self, precision, lambda: self._packed_networks(algorithm))

    def _packed_networks(self, algorithm: Algorithm | None) -> dict[str, nn.Module]:
        parts = [self.decoder.middle, *reversed(self.decoder.levels)]
        found = {"decoder": PackedAutoencoder(self.decoder, parts, self.factor**2, algorithm)}
        if self.encoder is not None:
            parts = [*self.encoder.levels, self.encoder.middle]
            found["encoder"] = PackedAutoencoder(self.encoder, parts, 1, algorithm)
        return found


class PackedAutoencoder(nn.Module):
    """An Encoder or a Decoder packed in bfloat16. Weights are copied.

    Args:
        parts: what runs between its convolutions.
        pixels: of the image, per position of its input.
        algorithm: see `Convolution`.
    """

    def __init__(
        self, network: Encoder | Decoder, parts: list[nn.Module], pixels: int, algorithm: Algorithm | None
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.conv_in = Convolution(network.conv_in, algorithm=algorithm)
        self.stages = [stage for part in parts for stage in _stages(part, algorithm)]
        self.norm_out = copy.deepcopy(network.norm_out)
        self.conv_out = Convolution(network.conv_out, algorithm=algorithm)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        at_once = max(1, PIXELS // (x.shape[2] * x.shape[3] * self.pixels))
        return torch.cat([self._compute(part) for part in x.split(at_once)])

    def _compute(self, x: Tensor) -> Tensor:
        scratch: Scratch = {}
        m = self.conv_in(x.float().permute(0, 2, 3, 1).contiguous(), narrow=True)
        for stage in self.stages:
            m = stage(m, scratch)
        return self.conv_out(m.values, normalization(m, self.norm_out)).values.permute(0, 3, 1, 2).to(x.dtype)


def _stages(module: nn.Module, algorithm: Algorithm | None) -> list[Stage]:
    makers = {ResidualBlock: _residual_block, Attention: _attention, Halve: _halve, Double: _double}
    if type(module) in makers:
        return [makers[type(module)](module, algorithm)]
    if isinstance(module, nn.Sequential):
        return [stage for part in module for stage in _stages(part, algorithm)]
    if isinstance(module, Level):
        pairs = zip(module.blocks, module.attention, strict=True)
        parts = [*(part for pair in pairs for part in pair), module.resample]
        return [stage for part in parts for stage in _stages(part, algorithm)]
    assert isinstance(module, nn.Identity), module
    return []


def _residual_block(block: ResidualBlock, algorithm: Algorithm | None) -> Stage:
    norm1, norm2 = copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)
    conv1, conv2 = (Convolution(conv, algorithm=algorithm) for conv in (block.conv1, block.conv2))
    skip = None if isinstance(block.skip, nn.Identity) else Convolution(block.skip, algorithm=algorithm)

    def stage(x: Map, scratch: Scratch) -> Map:
        shape = (*x.values.shape[:3], conv1.num_outputs)
        h = conv1(x.values, normalization(x, norm1), out=scratch.get(shape), narrow=True)
        scratch[shape] = h.values
        residual = x.values if skip is None else skip(x.values, narrow=True).values
        return conv2(h.values, normalization(h, norm2), residual, out=residual, narrow=True)

    return stage


def _attention(attention: Attention, algorithm: Algorithm | None) -> Stage:
    norm = copy.deepcopy(attention.norm)
    qkv, out = (Convolution(conv, algorithm=algorithm) for conv in (attention.qkv, attention.out))

    def stage(x: Map, _: Scratch) -> Map:
        scale, shift = normalization(x, norm)
        normalized = torch.addcmul(shift[:, None, None], x.values, scale[:, None, None]).bfloat16()
        q, k, v = qkv(normalized, narrow=True).values.flatten(1, 2).unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return out(mixed.view(x.values.shape), residual=x.values, narrow=True)

    return stage


def _halve(halve: Halve, algorithm: Algorithm | None) -> Stage:
    if halve.conv is None:
        return lambda x, _: Map.of(_last(F.avg_pool2d(_first(x.values), 2)))
    conv = Convolution(halve.conv, algorithm=algorithm)
    return lambda x, _: conv(x.values, narrow=True)


def _double(double: Double, algorithm: Algorithm | None) -> Stage:
    if isinstance(double.conv, nn.Identity):
        return lambda x, _: Map.of(_last(F.interpolate(_first(x.values), scale_factor=2.0, mode="nearest")))
    conv = Convolution(double.conv, doubled=True, algorithm=algorithm)
    return lambda x, _: conv(x.values, narrow=True)


def _first(x: Tensor) -> Tensor:
    """A map as torch's convolutions take it."""
    return x.permute(0, 3, 1, 2)


def _last(x: Tensor) -> Tensor:
    """Back from `_first`."""
    return x.permute(0, 2, 3, 1).contiguous()
