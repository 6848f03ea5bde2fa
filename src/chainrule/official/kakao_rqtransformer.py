"""RQ-Transformers of kakaobrain/rq-vae-transformer: an archive's folders `stage1` and `stage2`, each of `model.pt` and
`config.yaml`.

The source is the folder that holds both, or that of stage two (or its checkpoint) with `stage1` beside it, whose
RQ-VAE becomes the tokenizer and gives the prior its codebook. A condition of one token is a class, of one value none,
of several tokens a text. The text tokenizer is read from `*-vocab.json` and `*-merges.txt` beside the checkpoint, in
the folder above, or in a folder `tokenizer` of either; the original code keeps these files beside its
modules. Queries, keys and values are one matrix here and three there, and the bias of the input is added once per
position here and once per code there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..core import CodeSpec
from ..priors.rq_transformer import RQTransformer, RQTransformerConfig
from ..tokenizers.rqvae import RQVAE
from . import Imported, kakao_rqvae
from .kakao_mindalle import read_char_bpe
from .kakao_rqvae import LICENCE, equal
from .reader import sha256
from .renaming import MINGPT, rename, under
from .sources import find_config, find_weights
from .weights import fitting, load_weights, read_release

ORIGIN = "RQ-Transformer of kakaobrain/rq-vae-transformer, https://github.com/kakaobrain/rq-vae-transformer"
MARK = "pos_emb_hw"
REQUIRED = ("input_emb_vqvae", "head_emb_vqvae", "cumsum_depth_ctx", "shared_cls_emb")
"""Options that all released models have on, and that are off where a config leaves them out."""
NO_VOCABULARY = (
    "the model draws from texts, but its text tokenizer is not there, so it reads none and cannot be trained further; "
    "put the files bpe-*-vocab.json and bpe-*-merges.txt of the original code beside the checkpoint and convert again"
)
NAMES = {
    "pos_emb_cond": "prefix_positions",
    "pos_emb_hw": "positions",
    "pos_emb_d": "depths",
    "cond_emb.*": "prefix.*",
    "input_mlp.*": "to_spatial.*",
    "head_mlp.*": "to_depth.*",
    "cond_classifier.layer_norm.*": "text_classifier.norm.*",
    "cond_classifier.linear.*": "text_classifier.linear.*",
    "classifier.layer_norm.*": "classifier.norm.*",
    "classifier.linear.*": "classifier.linear.*",
    **under(MINGPT, "body_transformer.blocks.{}", "spatial.{}"),
    **under(MINGPT, "head_transformer.blocks.{}", "depth.{}"),
}


def matches(source: Path) -> bool:
    """Whether a config of this release lies beside a checkpoint, in the source or in its folder `stage2`."""
    folder = _stage_two(source)
    return find_config(folder, is_config) is not None and find_weights(folder) is not None


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a YAML is one of this release."""
    architecture = config.get("arch")
    return isinstance(architecture, Mapping) and architecture.get("type") == "rq-transformer"


def _stage_two(source: Path) -> Path:
    return source / "stage2" if (source / "stage2").is_dir() else source


def load(source: Path) -> Imported:
    """Imports the release; raises ValueError where a part of it is missing or of another architecture."""
    source = _stage_two(source)
    stage_one = find_config(source, is_config).absolute().parent.parent / "stage1"
    if not kakao_rqvae.matches(stage_one):
        raise ValueError(f"the RQ-VAE of {source} is missing: its folder stage1 must lie beside it")
    imported = kakao_rqvae.load(stage_one)
    tokenizer = imported.tokenizer
    weights = read_release(source, is_config, MARK)
    with fitting(weights.path):
        prior = _prior(weights.config, tokenizer)
        ours = rename(weights.tensors, NAMES, weights.path)
        ours |= {name: ours[name].squeeze(0) for name in ("prefix_positions", "positions", "depths") if name in ours}
        ours["to_spatial.bias"] = prior.grid.depth * ours["to_spatial.bias"]
    codebooks = [codebook.weight for codebook in tokenizer.quantizer.codebooks]
    ours["codebook"] = codebooks[0] if tokenizer.config.shared else torch.stack(codebooks)
    load_weights(prior, ours, weights.path)
    files = {f"stage1/{name}": value for name, value in imported.files.items()}
    files |= {f"stage2/{name}": value for name, value in weights.files.items()}
    notes, text_tokenizer = imported.notes + weights.notes, None
    if length := prior.conditions.text_length:
        if paths := _vocabulary(stage_one.parent / "stage2"):
            text_tokenizer = read_char_bpe(*paths, length)
            files |= {path.name: sha256(path) for path in paths}
        else:
            notes += (NO_VOCABULARY,)
    return Imported(tokenizer, ORIGIN, LICENCE, True, files, prior.eval(), text_tokenizer, notes)


def _vocabulary(stage_two: Path) -> tuple[Path, Path] | None:
    """The files of the text tokenizer, vocabulary and merges.

    Raises:
        ValueError: several vocabularies, or one without its merges.
    """
    for above in (stage_two, stage_two.parent):
        for folder in (above, above / "tokenizer"):
            found = sorted(folder.glob("*vocab.json"))
            if len(found) > 1:
                raise ValueError(f"{folder} holds several vocabularies; leave only that of the model in it")
            for path in found:
                merges = path.with_name(path.name.removesuffix("vocab.json") + "merges.txt")
                if not merges.is_file():
                    raise ValueError(f"{merges} is missing; {path.name} needs it")
                return path, merges
    return None


def _prior(config: Mapping[str, Any], tokenizer: RQVAE) -> RQTransformer:
    """The untrained prior that a config describes.

    Raises:
        ValueError: an architecture that ours has not, or codes that are not the tokenizer's.
    """
    architecture = config["arch"]
    for option in REQUIRED:
        if not architecture.get(option, False):
            raise ValueError(f"an RQ-Transformer without {option} is not supported")
    for part in ("body", "head"):
        block = architecture[part]["block"]
        usual = {"gelu": "v1", "attn_bias": True, "mlp_bias": True, "embed_dim": architecture["embed_dim"]}
        for option, value in usual.items():
            if block.get(option, value) != value:
                raise ValueError(f"an RQ-Transformer with {option} {block[option]} in its {part} is not supported")
    codebook_size = architecture.get("vocab_size") or config["dataset"]["vocab_size"]
    spec = CodeSpec.single(*architecture["block_size"], equal(codebook_size, "vocab_size"))
    if (spec, architecture["input_embed_dim"]) != (tokenizer.spec, tokenizer.config.embedding_dim):
        raise ValueError(
            f"stage2 models {spec.only} of {architecture['input_embed_dim']} features, stage1 gives "
            f"{tokenizer.spec.only} of {tokenizer.config.embedding_dim}: they do not belong together"
        )
    length, values = architecture.get("block_size_cond", 0), architecture.get("vocab_size_cond", 0)
    condition = {"text_length": length, "text_vocab_size": values} if length > 1 else {}
    if length <= 1 < values:
        condition = {"num_classes": values}
    body, head = architecture["body"], architecture["head"]
    return RQTransformer(
        spec,
        RQTransformerConfig(
            width=architecture["embed_dim"],
            num_layers=body["n_layer"],
            num_heads=body["block"]["n_head"],
            depth_layers=head["n_layer"],
            depth_heads=head["block"]["n_head"],
            embedding_dim=tokenizer.config.embedding_dim,
            shared_codebook=tokenizer.config.shared,
            dropout=float(body["block"].get("resid_pdrop", 0.1)),
            **condition,
        ),
    )
