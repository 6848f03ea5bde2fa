"""Transformers of CompVis/taming-transformers, with their VQGAN: a lightning checkpoint and its config.

The source is a folder with `checkpoints/last.ckpt` and `configs/*-project.yaml`, as published, or a checkpoint with
its config beside it; the class is `Net2NetTransformer` over a minGPT.  Models of classes (`Labelator`) and without a
condition are read; those conditioned on maps or boxes are refused, as they need a second tokenizer.

A class, and the start token of a model without a condition, is a row of the code embedding there; here the classes
share these rows too, and the start token gets a copy of its row.  The stored masks are left out, and positions
beyond those of an image's codes.  The transformer may have been trained on crops: where its block is shorter than the
codes of the VQGAN's `resolution`, images are squares of as many codes as it holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..priors.gpt import GPT, GPTConfig
from . import Imported
from .compvis_vqgan import LICENCE, read_tokenizer
from .renaming import MINGPT, rename, under
from .sources import find_config, find_weights
from .weights import fitting, load_weights, read_release

ORIGIN = "transformer of CompVis/taming-transformers, https://github.com/CompVis/taming-transformers"
MARK = "transformer.tok_emb.weight"


def matches(source: Path) -> bool:
    """Whether a config of this release lies beside a checkpoint."""
    return find_config(source, is_config) is not None and find_weights(source) is not None


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a YAML is one of this release."""
    model = config.get("model")
    return isinstance(model, Mapping) and str(model.get("target", "")).endswith(".Net2NetTransformer")


def load(source: Path) -> Imported:
    """Imports the release; raises ValueError where a part of it is missing or of another architecture."""
    weights = read_release(source, is_config, MARK)
    tensors, where = weights.tensors, weights.path
    with fitting(where):
        params = weights.config["model"]["params"]
        size, first_stage = _size(params), params["first_stage_config"]
        network = first_stage["params"]["ddconfig"]
        downsampling = 2 ** (len(network["ch_mult"]) - 1)
        side = network["resolution"] // downsampling
        if side * side > size["block_size"]:  # the last code is not read, so that block_size tokens make as many codes
            side = math.isqrt(size["block_size"])
        tokenizer = read_tokenizer(first_stage, part(tensors, "first_stage_model."), where, side * downsampling)
        prior = GPT(tokenizer.spec, _config(params, size))
        ours = _translate(part(tensors, "transformer."), prior, where, params.get("sos_token", 0))
    load_weights(prior, ours, where)
    return Imported(tokenizer, ORIGIN, LICENCE, False, weights.files, prior.eval(), notes=weights.notes)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one part of a model, under its own names."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _size(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the minGPT."""
    transformer = params["transformer_config"]
    permuter = (params.get("permuter_config") or {}).get("target", "Identity")
    if not transformer["target"].endswith(".mingpt.GPT"):
        raise ValueError(f"a transformer of class {transformer['target']} is not supported, only mingpt.GPT")
    if not permuter.endswith("Identity"):
        raise ValueError(f"codes in another order than raster ({permuter}) are not supported")
    if transformer["params"].get("n_unmasked", 0):
        raise ValueError("a prefix that sees what comes after (n_unmasked) is not supported")
    return transformer["params"]


def _config(params: Mapping[str, Any], size: Mapping[str, Any]) -> GPTConfig:
    return GPTConfig(
        num_layers=size.get("n_layer", 12),
        width=size.get("n_embd", 256),
        num_heads=size.get("n_head", 8),
        num_classes=_num_classes(params),
        dropout=float(size.get("resid_pdrop", 0.0)),
        embedding_dropout=float(size.get("embd_pdrop", 0.0)),
        attention_dropout=float(size.get("attn_pdrop", 0.0)),
    )


def _num_classes(params: Mapping[str, Any]) -> int:
    condition = params["cond_stage_config"]
    if params.get("unconditional") or condition == "__is_unconditional__":
        return 0
    target = condition if isinstance(condition, str) else str(condition["target"])
    if not target.endswith(".Labelator"):
        raise ValueError(f"a transformer conditioned by {target} is not supported, only by a class or by nothing")
    return int(condition["params"]["n_classes"])


def translate_blocks(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The blocks of a minGPT under the names of ours, without their masks; see `rename`."""
    blocks = {key: value for key, value in tensors.items() if re.fullmatch(r"blocks\..*\.(weight|bias)", key)}
    return rename(blocks, under(MINGPT, "blocks.{}", "blocks.{}"), where)


def _translate(tensors: Mapping[str, Tensor], prior: GPT, where: Path, start: int) -> dict[str, Tensor]:
    """The transformer under our names; rows of the embedding and head that no code of ours has are left out."""
    ours = translate_blocks(tensors, where)
    num_tokens, num_positions = len(prior.tokens.weight), len(prior.positions)
    ours["tokens.weight"] = tensors["tok_emb.weight"][:num_tokens]
    if prior.beginning is not None:
        ours["beginning"] = tensors["tok_emb.weight"][start]
    positions = tensors["pos_emb"][0, :num_positions]
    if len(positions) == num_positions - 1:  # the last code is never read
        positions = torch.cat([positions, torch.zeros_like(positions[:1])])
    ours["positions"] = positions
    ours |= {f"head.norm.{kind}": tensors[f"ln_f.{kind}"] for kind in ("weight", "bias")}
    ours["head.linear.weight"] = tensors["head.weight"][: prior.spec.only.codebook_size]
    return ours
