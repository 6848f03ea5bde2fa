"""VQGANs of CompVis/taming-transformers and latent-diffusion: a lightning checkpoint (`*.ckpt`) and its config.

The source is a folder with `checkpoints/last.ckpt` and `configs/model.yaml`, as published, or a checkpoint with its
config (`*.yaml`) beside it. Read are taming's classes `VQModel` and `GumbelVQ`, and latent-diffusion's `VQModel` and
`VQModelInterface`, which are the same network; `loss.*` (perceptual network, discriminator) is left out. Attention
sits on the levels whose side, for the config's `resolution`, is among `attn_resolutions`; queries, keys and values are
one convolution here and three there. The Gumbel model's codes are the noise-free argmax.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..tokenizers._grid import square
from ..tokenizers.vqgan import VQGAN, VQGANConfig, VQGANGumbel, VQGANGumbelConfig
from . import Imported
from .renaming import rename, under
from .sources import find_config, find_weights
from .weights import even_use, fitting, load_weights, read_release

ORIGIN = "VQGAN of CompVis/taming-transformers, https://github.com/CompVis/taming-transformers"
DIFFUSION = "VQModel of CompVis/latent-diffusion, https://github.com/CompVis/latent-diffusion"
LICENCE = "MIT for the code; none is stated for the weights"
CLASSES = re.compile(
    r"(.*\.)?models\.(vqgan\.(VQModel|VQNoDiscModel|GumbelVQ)|(?P<diffusion>autoencoder\.VQModel(Interface)?))"
)
MARK = "encoder.conv_in.weight"
DEFAULT_BETA = 0.25
LEVEL = {  # names inside a level of the encoder or decoder
    "block.{}.nin_shortcut.*": "blocks.{}.skip.*",
    "block.{}.*": "blocks.{}.*",
    "attn.{}.q.*": "attention.{}.qkv.*:q",
    "attn.{}.k.*": "attention.{}.qkv.*:k",
    "attn.{}.v.*": "attention.{}.qkv.*:v",
    "attn.{}.proj_out.*": "attention.{}.out.*",
    "attn.{}.*": "attention.{}.*",
    "downsample.*": "resample.*",
    "upsample.*": "resample.*",
}
MIDDLE = {
    "block_1.*": "0.*",
    "attn_1.q.*": "1.qkv.*:q",
    "attn_1.k.*": "1.qkv.*:k",
    "attn_1.v.*": "1.qkv.*:v",
    "attn_1.proj_out.*": "1.out.*",
    "attn_1.*": "1.*",
    "block_2.*": "2.*",
}
AUTOENCODER = {
    "quant_conv.*": "to_codebook.*",
    "post_quant_conv.*": "from_codebook.*",
    **under(LEVEL, "encoder.down.{}", "encoder.levels.{}"),
    **under(LEVEL, "decoder.up.{}", "decoder.levels.{}"),
    **under(MIDDLE, "encoder.mid", "encoder.middle"),
    **under(MIDDLE, "decoder.mid", "decoder.middle"),
}
PARTS = ("encoder", "decoder", "quant_conv", "post_quant_conv")


def matches(source: Path) -> bool:
    """Whether a config of this release lies beside a checkpoint."""
    return find_config(source, is_config) is not None and find_weights(source) is not None


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a YAML is one of this release."""
    model = config.get("model")
    return isinstance(model, Mapping) and CLASSES.fullmatch(str(model.get("target", ""))) is not None


def load(source: Path) -> Imported:
    """Imports the release; raises ValueError where a part of it is missing or of another architecture."""
    weights = read_release(source, is_config, MARK)
    model = weights.config["model"]
    origin = DIFFUSION if CLASSES.fullmatch(model["target"])["diffusion"] else ORIGIN
    with fitting(weights.path):
        side = model["params"]["ddconfig"]["resolution"]
        tokenizer = read_tokenizer(model, weights.tensors, weights.path, side)
    return Imported(tokenizer, origin, LICENCE, False, weights.files, notes=weights.notes)


def read_tokenizer(
    model: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path, side: int
) -> VQGAN | VQGANGumbel:
    """The VQGAN of a config's section (`target`, `params`), for images of side x side, in evaluation mode.

    Raises:
        ValueError: tensors of another architecture, or one that ours has not.
        KeyError, TypeError: a part of the config or a tensor is missing.
    """
    gumbel, params = model["target"].endswith("GumbelVQ"), model["params"]
    config = replace(_gumbel_config(params) if gumbel else _config(params), image_height=side, image_width=side)
    tokenizer = VQGANGumbel(config) if gumbel else VQGAN(config)
    ours = translate_autoencoder(tensors, where)
    ours |= _gumbel_quantizer(tensors) if gumbel else _quantizer(tensors)
    load_weights(tokenizer, ours, where)
    return tokenizer.eval()


def _config(params: Mapping[str, Any]) -> VQGANConfig:
    _refuse_remap(params)
    side = params["ddconfig"]["resolution"]
    return VQGANConfig(
        **square(side), **autoencoder_options(params["ddconfig"]), codebook_size=params["n_embed"],
        embedding_dim=params["embed_dim"],
        beta=DEFAULT_BETA, legacy_beta=True,
    )  # fmt: skip


def _gumbel_config(params: Mapping[str, Any]) -> VQGANGumbelConfig:
    _refuse_remap(params)
    network = params["ddconfig"]
    if network["z_channels"] != params["embed_dim"]:
        raise ValueError("a Gumbel VQGAN needs embed_dim equal to z_channels: its logits are made of z_channels")
    schedule = (params.get("temperature_scheduler_config") or {}).get("params") or {}
    temperatures = float(schedule.get("lr_max", 1.0)), float(schedule.get("lr_min", 0.0625))
    return VQGANGumbelConfig(
        **square(network["resolution"]), **autoencoder_options(network), codebook_size=params["n_embed"],
        embedding_dim=params["embed_dim"], kl_weight=float(params.get("kl_weight", 1e-8)), temperatures=temperatures,
    )  # fmt: skip


def _refuse_remap(params: Mapping[str, Any]) -> None:
    if params.get("remap") is not None:
        raise ValueError("a VQGAN whose codes are renumbered (remap) is not supported")


def autoencoder_options(network: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our ConvAutoencoderConfig, but for height and width, from a `ddconfig`.

    Raises:
        ValueError: an architecture that ours has not.
    """
    if network.get("double_z", True):
        raise ValueError("the encoder gives means and variances (double_z): that is no VQGAN")
    if network["in_channels"] != network["out_ch"]:
        raise ValueError(
            f"the model reads {network['in_channels']} channels and writes {network['out_ch']}: not a tokenizer"
        )
    if network.get("give_pre_end") or network.get("attn_type", "vanilla") not in ("vanilla", "vanilla-xformers"):
        raise ValueError("give_pre_end and attn_type other than vanilla are not supported")
    multipliers = tuple(network["ch_mult"])
    sides = [network["resolution"] // 2**level for level in range(len(multipliers))]
    return {
        "image_channels": network["in_channels"],
        "width": network["ch"],
        "multipliers": multipliers,
        "num_blocks": network["num_res_blocks"],
        "attention_levels": tuple(i for i, side in enumerate(sides) if side in network["attn_resolutions"]),
        "latent_channels": network["z_channels"],
        "dropout": float(network.get("dropout", 0.0)),
        "resample_convolution": bool(network.get("resamp_with_conv", True)),
    }


def translate_autoencoder(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Encoder, decoder and the convolutions to and from the codebook, under our names; see `rename`."""
    return rename({key: value for key, value in tensors.items() if key.split(".")[0] in PARTS}, AUTOENCODER, where)


def _quantizer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    codebook = tensors["quantize.embedding.weight"]
    return {"quantizer.codebook.weight": codebook, **even_use("quantizer.codebook.", codebook)}


def _gumbel_quantizer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        "quantizer.weight": tensors["quantize.embed.weight"],
        "to_logits.weight": tensors["quantize.proj.weight"],
        "to_logits.bias": tensors["quantize.proj.bias"],
    }
