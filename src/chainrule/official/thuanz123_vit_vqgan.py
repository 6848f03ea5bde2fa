"""ViT-VQGAN of thuanz123/enhancing-transformers: a lightning checkpoint (`*.ckpt`) and its config (`*.yaml`).

The source is the checkpoint, or the folder that holds it; the config lies beside it or, as in a repository, in
`configs`.  `loss.*` (perceptual network, discriminator) is left out.  Images are in [0, 1]; attention heads have 64
channels whatever the config says of the width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..tokenizers.vit_vqgan import ENHANCING, TransformerSize, ViTVQGAN, ViTVQGANConfig
from . import Imported
from .sources import find_config, find_weights
from .weights import fitting, load_weights, read_release

ORIGIN = "ViT-VQGAN of enhancing-transformers, github.com/thuanz123/enhancing-transformers"
LICENCE = "MIT"
TARGET = "enhancing.modules.stage1.vitvqgan.ViTVQ"
MARK = "encoder.to_patch_embedding.0.weight"
BLOCKS = {  # ours: theirs, inside a block
    "attention_norm": "0.norm", "attention.query_key_value": "0.fn.to_qkv", "attention.output": "0.fn.to_out",
    "mlp_norm": "1.norm", "mlp.0": "1.fn.net.0", "mlp.2": "1.fn.net.2",
}  # fmt: skip


def matches(source: Path) -> bool:
    """Whether a config of this release lies beside a checkpoint."""
    return find_config(source, is_config) is not None and find_weights(source) is not None


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a YAML is one of this release."""
    model = config.get("model")
    return isinstance(model, Mapping) and str(model.get("target", "")) == TARGET


def load(source: Path) -> Imported:
    """Imports the release; raises ValueError where a part of it is missing or of another architecture."""
    weights = read_release(source, is_config, MARK)
    with fitting(weights.path):
        tokenizer = ViTVQGAN(_config(weights.config["model"]["params"], weights.tensors))
        load_weights(tokenizer, _translate(tokenizer, weights.tensors), weights.path)
    return Imported(tokenizer.eval(), ORIGIN, LICENCE, False, weights.files, notes=weights.notes)


def _config(params: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ViTVQGANConfig:
    quantizer = params["quantizer"]
    if quantizer.get("use_residual", False):
        raise ValueError("a ViT-VQGAN with residual codes (use_residual) is not supported")
    side = params["image_size"]
    if not isinstance(side, int):
        raise ValueError(f"image_size must be a number (images are square), got {side!r}")
    codebook_size, embedding_dim = tensors["quantizer.embedding.weight"].shape
    width, channels = tensors["encoder.to_patch_embedding.0.weight"].shape[:2]
    heads = {
        part: tensors[f"{part}.transformer.layers.0.0.fn.to_qkv.weight"].shape[0] for part in ("encoder", "decoder")
    }
    sizes = {part: _size(params[part]) for part in heads}
    head_dims = {rows // (3 * sizes[part].num_heads) for part, rows in heads.items()}
    if len(head_dims) != 1 or width != sizes["encoder"].width:
        raise ValueError("the checkpoint's attention or width differs from what its config says")
    return ViTVQGANConfig(
        image_height=side, image_width=side, image_channels=channels, patch_size=params["patch_size"],
        **sizes, codebook_size=codebook_size, embedding_dim=embedding_dim, head_width=head_dims.pop(),
        metric="cosine" if quantizer.get("use_norm", True) else "euclidean",
        beta=float(quantizer.get("beta", 0.25)), **ENHANCING,
    )  # fmt: skip


def _size(params: Mapping[str, Any]) -> TransformerSize:
    names = {"width": "dim", "num_layers": "depth", "num_heads": "heads", "mlp_width": "mlp_dim"}
    return TransformerSize(**{ours: params[theirs] for ours, theirs in names.items()})


def _translate(tokenizer: ViTVQGAN, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names; patches are linear maps here and convolutions there."""
    ours = {
        "encoder.patches.weight": tensors["encoder.to_patch_embedding.0.weight"].flatten(1),
        "encoder.patches.bias": tensors["encoder.to_patch_embedding.0.bias"],
        "decoder.patches.weight": tensors["decoder.to_pixel.1.weight"].flatten(1).T,
        "decoder.bias": tensors["decoder.to_pixel.1.bias"],
        "quantizer.codebook.weight": tensors["quantizer.embedding.weight"],
    }
    for ours_part, theirs in (("to_lookup", "pre_quant"), ("from_lookup", "post_quant")):
        ours |= {f"{ours_part}.{kind}": tensors[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    for part, place in (("encoder", "en"), ("decoder", "de")):
        ours[f"{part}.transformer.positions"] = tensors[f"{part}.{place}_pos_embedding"].squeeze(0)
        for kind in ("weight", "bias"):
            ours[f"{part}.transformer.norm.{kind}"] = tensors[f"{part}.transformer.norm.{kind}"]
    for key, value in tokenizer.state_dict().items():
        if (
            key.startswith("quantizer.") and key not in ours
        ):  # the use of codes, unknown: even, or all would be restarted
            ours[key] = torch.ones_like(value)
        part, _, rest = key.partition(".transformer.blocks.")
        if rest:
            number, _, name = rest.partition(".")
            module, _, kind = name.rpartition(".")
            ours[key] = tensors[f"{part}.transformer.layers.{number}.{BLOCKS[module]}.{kind}"]
    return ours
