"""minDALL-E of kakaobrain: a VQGAN, a transformer over text and image, and the tokenizer of its texts.

The source is the unpacked release: `config.yaml`, `stage1_last.ckpt`, `stage2_last.ckpt` and
`tokenizer/bpe-16k-vocab.json`, `tokenizer/bpe-16k-merges.txt`.  What the config leaves out has the defaults of the
original code, which are the sizes of the 1.3B model.  The VQGAN is taming-transformers', the blocks are minGPT's.

Texts are lower-cased and split as BERT splits them, words end with `</w>`; the padding is token 0 and attended to.  It
is one row of the embedding there, and here the vector of the padding at every position.  Layers without biases get
zeros.  Nothing predicts the first token of a text: see `priors.dalle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import CharBPETokenizer
from torch import Tensor

from ..core import CodeSpec, GridSpec
from ..priors.dalle import DALLE, DALLEConfig
from ..text.bpe import BPETokenizer
from ..tokenizers.vqgan import VQGAN
from . import Imported, compvis_vqgan
from .compvis_net2net import translate_blocks
from .compvis_vqgan import read_tokenizer
from .reader import sha256
from .sources import find_config, folder_of, named, read_config
from .weights import fitting, load_weights, read_weights

ORIGIN = "minDALL-E of kakaobrain, https://github.com/kakaobrain/minDALL-E"
LICENCE = "CC-BY-NC-SA-4.0 for the weights (non-commercial), Apache-2.0 for the code"
MARK = "tok_emb_txt.weight"
WEIGHTS = {"stage1_last": compvis_vqgan.MARK, "stage2_last": MARK}  # files, and a name of a tensor in each
VOCABULARY = ("tokenizer/bpe-16k-vocab.json", "tokenizer/bpe-16k-merges.txt")
STAGE_ONE = {"embed_dim": 256, "n_embed": 16384}
NETWORK = {
    "double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "pdrop": 0.0,
}  # fmt: skip
STAGE_TWO = {"vocab_size_txt": 16384, "vocab_size_img": 16384}
TRANSFORMER = {
    "embed_dim": 1536, "n_layers": 42, "n_heads": 24, "ctx_len_img": 256, "ctx_len_txt": 64, "embd_pdrop": 0.0,
    "resid_pdrop": 0.0, "attn_pdrop": 0.0, "gelu_use_approx": False,
}  # fmt: skip
CONTEXT_LENGTH = 64
KINDS = {"stage1": "vqgan", "stage2": "transformer1d"}


def matches(source: Path) -> bool:
    """Whether a config of this release lies beside both checkpoints."""
    return find_config(source, is_config) is not None and all(named(folder_of(source), name) for name in WEIGHTS)


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a YAML is one of this release."""
    stages = {name: config.get(name) for name in KINDS}
    return all(
        isinstance(stage, Mapping) and stage.get("type", KINDS[name]) == KINDS[name] for name, stage in stages.items()
    )


def load(source: Path) -> Imported:
    """Imports the release; raises ValueError where a part of it is missing or of another architecture."""
    folder, config_path = folder_of(source), find_config(source, is_config)
    config = read_config(config_path)
    one, two = (read_weights(named(folder, name), mark) for name, mark in WEIGHTS.items())
    with fitting(one.path):
        tokenizer = _tokenizer(config["stage1"], one.tensors, one.path)
    with fitting(two.path):
        prior = _prior(config["stage2"], tokenizer)
        ours = _translate(two.tensors, prior, two.path)
    load_weights(prior, ours, two.path)
    length = prior.spec.grids[0].num_positions
    if (config.get("dataset") or {}).get("context_length", CONTEXT_LENGTH) != length:
        raise ValueError(f"{config_path.name}: dataset.context_length must be ctx_len_txt, which is {length}")
    text_tokenizer = read_char_bpe(*(folder / name for name in VOCABULARY), length)
    files = {name: sha256(folder / name) for name in VOCABULARY} | {config_path.name: sha256(config_path)}
    files |= one.files | two.files
    return Imported(tokenizer, ORIGIN, LICENCE, True, files, prior.eval(), text_tokenizer, one.notes + two.notes)


def read_char_bpe(vocabulary: Path, merges: Path, length: int) -> BPETokenizer:
    """The lower-casing tokenizer of a vocabulary with [PAD], [UNK] and `</w>`.

    Args:
        vocabulary, merges: `*-vocab.json` and `*-merges.txt`.
        length: tokens of a text.

    Raises:
        ValueError: files that are missing or damaged, or in which [PAD] is not token 0.
    """
    try:
        theirs = CharBPETokenizer.from_file(str(vocabulary), str(merges), unk_token="[UNK]", lowercase=True)
    except Exception as error:  # the package raises no narrower class
        raise ValueError(f"{vocabulary.name} or {merges.name} is missing or damaged") from error
    if theirs.token_to_id("[PAD]") != 0:
        raise ValueError(f"[PAD] must be token 0 of {vocabulary.name}, is {theirs.token_to_id('[PAD]')}")
    theirs.add_special_tokens(["[PAD]"])
    return BPETokenizer(theirs.to_str(), length)


def _tokenizer(stage: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path) -> VQGAN:
    stage, network = STAGE_ONE | dict(stage), NETWORK | dict(stage.get("hparams") or {})
    params = {
        "embed_dim": stage["embed_dim"],
        "n_embed": stage["n_embed"],
        "ddconfig": network | {"dropout": network["pdrop"]},
    }
    model = {"target": "taming.models.vqgan.VQModel", "params": params}
    return read_tokenizer(model, tensors, where, network["resolution"])


def _prior(stage: Mapping[str, Any], tokenizer: VQGAN) -> DALLE:
    stage, size = STAGE_TWO | dict(stage), TRANSFORMER | dict(stage.get("hparams") or {})
    grid = tokenizer.spec.only
    if (size["ctx_len_img"], stage["vocab_size_img"]) != (grid.num_positions, grid.codebook_size):
        raise ValueError(
            f"the transformer models {size['ctx_len_img']} codes of {stage['vocab_size_img']}, the VQGAN gives "
            f"{grid.num_positions} of {grid.codebook_size}"
        )
    text = GridSpec(1, size["ctx_len_txt"], 1, stage["vocab_size_txt"])
    config = DALLEConfig(
        num_layers=size["n_layers"],
        width=size["embed_dim"],
        num_heads=size["n_heads"],
        attention="full",
        start_token=False,
        axial_positions=False,
        quick_gelu=bool(size["gelu_use_approx"]),
        dropout=float(size["resid_pdrop"]),
        embedding_dropout=float(size["embd_pdrop"]),
        attention_dropout=float(size["attn_pdrop"]),
    )
    return DALLE(CodeSpec((text, grid)), config)


def _translate(tensors: Mapping[str, Tensor], prior: DALLE, where: Path) -> dict[str, Tensor]:
    """The transformer under our names."""
    ours = translate_blocks(tensors, where)
    for key, value in prior.blocks.state_dict(prefix="blocks.").items():
        if key.endswith(".bias") and "norm" not in key:
            ours.setdefault(key, torch.zeros_like(value))
    words = tensors["tok_emb_txt.weight"]
    ours |= {
        "tokens.0.weight": words,
        "tokens.1.weight": tensors["tok_emb_img.weight"],
        "padding": words[:1].expand(len(prior.padding), -1),
        "text_positions": tensors["pos_emb_txt.weight"],
        "image_positions.0": tensors["pos_emb_img.weight"],
        "norm.weight": tensors["ln_f.weight"],
        "norm.bias": tensors["ln_f.bias"],
        "heads.0.weight": tensors["head_txt.weight"],
        "heads.1.weight": tensors["head_img.weight"],
    }
    return ours
