"""DALL-E Mini and Mega as kuprel/min-dalle keeps them: `encoder.pt`, `decoder.pt`, `vocab.json`, `merges.txt` and the
detokenizer `detoker.pt`, bare state dicts in float16 or float32.

The source is a folder `dalle_bart_mini` or `dalle_bart_mega` with `vqgan/detoker.pt` beside it, the folder that holds
both, or one with all files as they are published, where those of Mini end in `_mini`; given `encoder_mini.pt` or
another file of the release, the model is the one it belongs to.  There is no config: all sizes follow from the shapes,
and a head has 64 features.

The norms whose gain the original training left out lack it in the file: it is 1.  The detokenizer writes pixels in
[0, 1]: its last convolution is scaled to write [-1, 1].  It has no encoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core import CodeSpec
from ..files import read_text
from ..priors.dalle_bart import DalleBart, DalleBartConfig
from ..text.dalle_mini import DalleMiniTokenizer
from ..tokenizers._grid import square
from ..tokenizers.vqgan import VQGAN, VQGANConfig
from . import Imported
from .compvis_vqgan import translate_autoencoder
from .reader import sha256
from .renaming import rename, under
from .sources import named
from .weights import even_use, fitting, load_weights, read_weights

ORIGIN = "DALL-E Mini by Boris Dayma and others in the files of kuprel/min-dalle, https://github.com/kuprel/min-dalle"
LICENCE = "Apache-2.0 for the code of DALL-E Mini, MIT for that of min-dalle; for the weights see their model cards"
HEAD_FEATURES = 64
MARK = "post_quant_conv.weight"  # of the detokenizer
NORM_GROUPS, NORM_EPS = 32, 1e-5
LAYER = {  # names inside a layer of either half
    "pre_self_attn_layer_norm.*": "attention.norm.*",
    "self_attn_layer_norm.*": "attention.out_norm.*",
    "self_attn.q_proj.weight": "attention.query_key_value.weight:q",
    "self_attn.k_proj.weight": "attention.query_key_value.weight:k",
    "self_attn.v_proj.weight": "attention.query_key_value.weight:v",
    "self_attn.out_proj.*": "attention.projection.*",
    "pre_encoder_attn_layer_norm.*": "cross.norm.*",
    "encoder_attn_layer_norm.*": "cross.out_norm.*",
    "encoder_attn.q_proj.*": "cross.query.*",
    "encoder_attn.k_proj.weight": "cross.key_value.weight:k",
    "encoder_attn.v_proj.weight": "cross.key_value.weight:v",
    "encoder_attn.out_proj.*": "cross.projection.*",
    "glu.ln0.*": "mlp.norm.*",
    "glu.ln1.*": "mlp.hidden_norm.*",
    "glu.fc0.weight": "mlp.expand.weight:gate",
    "glu.fc1.weight": "mlp.expand.weight:value",
    "glu.fc2.*": "mlp.contract.*",
}
ENCODER = {
    "embed_tokens.weight": "words.weight",
    "embed_positions.weight": "word_positions",
    "layernorm_embedding.*": "words_norm.*",
    "final_ln.*": "encoder_norm.*",
    **under(LAYER, "layers.{}", "encoder.{}"),
}
DECODER = {
    "embed_tokens.weight": "codes.weight",
    "embed_positions.weight": "positions",
    "layernorm_embedding.*": "codes_norm.*",
    "final_ln.*": "head.norm.*",
    "lm_head.weight": "head.linear.weight",
    **under(LAYER, "layers.{}", "decoder.{}"),
}


@dataclass(frozen=True)
class Files:
    """The files of one model."""

    encoder: Path
    decoder: Path
    vocabulary: Path
    merges: Path
    detokenizer: Path

    def all(self) -> tuple[Path, ...]:
        """All files of the release."""
        return self.encoder, self.decoder, self.vocabulary, self.merges, self.detokenizer


def matches(source: Path) -> bool:
    """Whether `source` is, or holds, the files of a model."""
    return bool(_find(source))


def _find(source: Path) -> list[Files]:
    """The models in a source; all but encoder and merges may be missing."""
    folders, endings = [source, *sorted(source.glob("dalle_bart_*"))], ("", "_mini")
    if source.is_file():
        folders, endings = [source.parent], ("_mini",) if source.stem.endswith("_mini") else ("",)
    found = []
    for folder in folders:
        for ending in endings:
            files = Files(
                *(named(folder, part + ending) or folder / f"{part}{ending}.pt" for part in ("encoder", "decoder")),
                folder / f"vocab{ending}.json", folder / f"merges{ending}.txt", _detokenizer(folder),
            )  # fmt: skip
            ours = source.is_dir() or source in files.all()
            if ours and files.encoder.is_file() and files.merges.is_file():
                found.append(files)
    return found


def _detokenizer(folder: Path) -> Path:
    places = [folder, folder / "vqgan", folder.absolute().parent / "vqgan"]
    return next((path for place in places if (path := named(place, "detoker"))), places[-1] / "detoker.pt")


def load(source: Path) -> Imported:
    """Imports the release; raises ValueError where a part of it is missing or of another architecture."""
    found = _find(source)
    if len(found) > 1:
        names = " or ".join(str(files.encoder.relative_to(source)) for files in found)
        raise ValueError(f"{source} holds several models: give one, by its folder or its file {names}")
    (files,) = found
    for path in files.all():
        if not path.is_file():
            raise ValueError(f"{path} is missing; {files.encoder} needs it")
    marks = {files.encoder: "embed_tokens.weight", files.decoder: "lm_head.weight", files.detokenizer: MARK}
    weights = [read_weights(path, mark) for path, mark in marks.items()]
    encoder, decoder, detokenizer = (one.tensors for one in weights)
    with fitting(files.encoder.parent, "is not DALL-E Mini"):
        tokenizer = _tokenizer(detokenizer, math.isqrt(len(decoder["embed_positions.weight"])), files.detokenizer)
        prior = _prior(encoder, decoder, tokenizer.spec, files)
    text_tokenizer = DalleMiniTokenizer(
        read_text(files.vocabulary), read_text(files.merges), prior.config.text_length, prior.config.text_vocab_size
    )
    hashes = {path.name: sha256(path) for path in (files.vocabulary, files.merges)}
    notes = []
    for one in weights:
        hashes |= one.files
        notes += one.notes
    return Imported(tokenizer, ORIGIN, LICENCE, False, hashes, prior, text_tokenizer, tuple(notes))


def _prior(
    encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor], spec: CodeSpec, files: Files
) -> DalleBart:  # fmt: skip
    num_words, width = encoder["embed_tokens.weight"].shape
    if width % HEAD_FEATURES:
        raise ValueError(f"{files.encoder.name} has {width} features, no multiple of {HEAD_FEATURES}, those of a head")
    ours = rename(encoder, ENCODER, files.encoder) | rename(decoder, DECODER, files.decoder)
    prior = DalleBart(
        spec,
        DalleBartConfig(
            num_layers=1 + max(int(key.split(".")[1]) for key in encoder if key.startswith("layers.")),
            width=width,
            num_heads=width // HEAD_FEATURES,
            mlp_width=encoder["layers.0.glu.fc0.weight"].shape[0],
            num_rows=len(decoder["embed_tokens.weight"]),
            text_length=len(encoder["embed_positions.weight"]),
            text_vocab_size=num_words,
        ),
    )
    for key, value in prior.state_dict().items():
        if key.endswith("norm.weight"):
            ours.setdefault(key, torch.ones_like(value))
    load_weights(prior, ours, files.encoder.parent)
    return prior.eval()


def _tokenizer(tensors: Mapping[str, Tensor], side: int, where: Path) -> VQGAN:
    """The detokenizer as half a VQGAN of side x side codes, in evaluation mode."""
    blocks = [re.match(r"decoder\.up\.(\d+)\.block\.(\d+)\.", key) for key in tensors]
    levels, numbers = zip(*((int(found[1]), int(found[2])) for found in blocks if found), strict=True)
    channels = [len(tensors[f"decoder.up.{level}.block.0.conv1.bias"]) for level in range(max(levels) + 1)]
    base, factor = math.gcd(*channels), 2 ** max(levels)
    codebook_size, dim = tensors["embedding.weight"].shape
    tokenizer = VQGAN(
        VQGANConfig(
            **square(side * factor), width=base, multipliers=tuple(count // base for count in channels),
            num_blocks=max(numbers), attention_levels=tuple(
                level for level in range(len(channels)) if f"decoder.up.{level}.attn.0.q.weight" in tensors
            ),
            latent_channels=len(tensors["post_quant_conv.bias"]), norm_groups=NORM_GROUPS, norm_eps=NORM_EPS,
            codebook_size=codebook_size, embedding_dim=dim, has_encoder=False,
        )
    )  # fmt: skip
    ours = translate_autoencoder(tensors, where)
    ours["decoder.conv_out.weight"] = 2 * ours["decoder.conv_out.weight"].float()
    ours["decoder.conv_out.bias"] = 2 * ours["decoder.conv_out.bias"].float() - 1
    codebook = tensors["embedding.weight"]
    ours |= {"quantizer.codebook.weight": codebook, **even_use("quantizer.codebook.", codebook)}
    load_weights(tokenizer, ours, where)
    return tokenizer.eval()
