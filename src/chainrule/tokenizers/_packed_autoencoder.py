"""The networks of `conv_autoencoder` packed for inference: the same maps, faster and in bfloat16.

    3x3 convolutions   `winograd.Convolution3x3`, with the normalisation and swish before them, the doubling before
                       them and the sum after them; what the next normalisation needs is summed on the way
    1x1 convolutions   matrix products in bfloat16
    halving            one copy, padded and bfloat16, and a convolution in bfloat16
    attention          queries, keys and values in bfloat16

Between them maps are float32, channels last, but for bfloat16 ones inside residual blocks; a block's result takes the
place of its input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.winograd import Convolution3x3, Map, normalization
from ._autoencoder import Attention, ConvAutoencoderConfig, Decoder, Double, Encoder, Halve, Level, ResidualBlock
from ._grid import GridTokenizer

PRECISIONS = ("float32", "bfloat16")
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

    def packed(self, precision: str) -> AutoencoderTokenizer:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if precision == "float32":
            return self
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        if self.encoder is not None:
            twin.encoder = PackedNetwork(self.encoder, [*self.encoder.levels, self.encoder.middle])
        twin.decoder = PackedNetwork(self.decoder, [self.decoder.middle, *reversed(self.decoder.levels)])
        return twin.eval()


class PackedNetwork(nn.Module):
    """An Encoder or a Decoder packed in bfloat16; `parts` run between its convolutions. Weights are copied."""

    def __init__(self, network: Encoder | Decoder, parts: list[nn.Module]) -> None:
        super().__init__()
        self.conv_in = Convolution3x3(network.conv_in, "bfloat16")
        self.stages = [stage for part in parts for stage in _stages(part)]
        self.norm_out = copy.deepcopy(network.norm_out)
        self.conv_out = Convolution3x3(network.conv_out, "bfloat16")

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        scratch: Scratch = {}
        m = self.conv_in(x.float().permute(0, 2, 3, 1).contiguous())
        for stage in self.stages:
            m = stage(m, scratch)
        return self.conv_out(m.values, normalization(m, self.norm_out)).values.permute(0, 3, 1, 2).to(x.dtype)


def _stages(module: nn.Module) -> list[Stage]:
    makers = {ResidualBlock: _residual_block, Attention: _attention, Halve: _halve, Double: _double}
    if type(module) in makers:
        return [makers[type(module)](module)]
    if isinstance(module, nn.Sequential):
        return [stage for part in module for stage in _stages(part)]
    if isinstance(module, Level):
        pairs = zip(module.blocks, module.attention, strict=True)
        return [stage for pair in pairs for part in pair for stage in _stages(part)] + _stages(module.resample)
    assert isinstance(module, nn.Identity), module
    return []


def _residual_block(block: ResidualBlock) -> Stage:
    norm1, norm2 = copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)
    conv1, conv2 = Convolution3x3(block.conv1, "bfloat16"), Convolution3x3(block.conv2, "bfloat16")
    skip = None if isinstance(block.skip, nn.Identity) else _pointwise(block.skip)

    def stage(x: Map, scratch: Scratch) -> Map:
        shape = (*x.values.shape[:3], conv1.num_outputs)
        h = conv1(x.values, normalization(x, norm1), out=scratch.get(shape), narrow=True)
        scratch[shape] = h.values
        residual = x.values if skip is None else skip(x.values)
        return conv2(h.values, normalization(h, norm2), residual, out=residual)

    return stage


def _attention(attention: Attention) -> Stage:
    norm, qkv, out = copy.deepcopy(attention.norm), _pointwise(attention.qkv), _pointwise(attention.out)

    def stage(x: Map, _: Scratch) -> Map:
        scale, shift = normalization(x, norm)
        normalized = torch.addcmul(shift[:, None, None], x.values, scale[:, None, None])
        q, k, v = qkv(normalized).bfloat16().flatten(1, 2).unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return Map.of(x.values + out(mixed).view_as(x.values))

    return stage


def _halve(halve: Halve) -> Stage:
    if halve.conv is None:
        return lambda x, _: Map.of(_last(F.avg_pool2d(_first(x.values), 2)))
    weight = halve.conv.weight.detach().to(torch.bfloat16, memory_format=torch.channels_last)
    bias = halve.conv.bias.detach().clone()

    def stage(x: Map, _: Scratch) -> Map:
        batch, height, width, channels = x.values.shape
        padded = x.values.new_zeros(batch, height + 1, width + 1, channels, dtype=torch.bfloat16)
        padded[:, :height, :width] = x.values
        return Map.of(_last(F.conv2d(_first(padded), weight, stride=2)) + bias)

    return stage


def _double(double: Double) -> Stage:
    if isinstance(double.conv, nn.Identity):
        return lambda x, _: Map.of(_last(F.interpolate(_first(x.values), scale_factor=2.0, mode="nearest")))
    conv = Convolution3x3(double.conv, "bfloat16", doubled=True)
    return lambda x, _: conv(x.values)


def _pointwise(conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """A 1x1 convolution of (..., C) in bfloat16, with results in float32."""
    weight, bias = conv.weight.detach().flatten(1).bfloat16(), conv.bias.detach().clone()
    return lambda x: F.linear(x.bfloat16(), weight).float().add_(bias)


def _first(x: Tensor) -> Tensor:
    """A map as torch's convolutions take it."""
    return x.permute(0, 3, 1, 2)


def _last(x: Tensor) -> Tensor:
    """Back from `_first`."""
    return x.permute(0, 2, 3, 1).contiguous()
