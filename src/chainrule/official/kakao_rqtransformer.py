"""RQ-Transformers of kakaobrain/rq-vae-transformer: an archive's folders `stage1` and `stage2`, each of `model.pt` and
`config.yaml`.

The source is the folder that holds both, or that of stage two (or its checkpoint) with `stage1` beside it, whose RQ-VAE
becomes the tokenizer and gives the prior its codebook.  A condition of one token is a class, of one value none, of
several tokens a text.  Queries, keys and values are one matrix here and three there, and the bias of the input is added
once per position here and once per code there.
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
from .kakao_rqvae import LICENCE, equal, model_tensors
from .reader import read_checkpoint, sha256
from .renaming import MINGPT, rename, under
from .sources import find_config, find_weights, load_weights, read_config

ORIGIN = "RQ-Transformer of kakaobrain/rq-vae-transformer, https://github.com/kakaobrain/rq-vae-transformer"
REQUIRED = ("input_emb_vqvae", "head_emb_vqvae", "cumsum_depth_ctx", "shared_cls_emb")
"""Options that all released models have on, and that are off where a config leaves them out."""
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
    return find_config(folder, _is_ours) is not None and find_weights(folder, "*.pt") is not None


def _is_ours(config: Mapping[str, Any]) -> bool:
    architecture = config.get("arch")
    return isinstance(architecture, Mapping) and architecture.get("type") == "rq-transformer"


def _stage_two(source: Path) -> Path:
    return source / "stage2" if (source / "stage2").is_dir() else source


def load(source: Path) -> Imported:
    """Imports the release; raises ValueError where a part of it is missing or of another architecture."""
    source = _stage_two(source)
    config_path, weights_path = find_config(source, _is_ours), find_weights(source, "*.pt")
    stage_one = config_path.absolute().parent.parent / "stage1"
    if not kakao_rqvae.matches(stage_one):
        raise ValueError(f"the RQ-VAE of {weights_path} is missing: its folder stage1 must lie beside it")
    imported = kakao_rqvae.load(stage_one)
    tokenizer = imported.tokenizer
    tensors = model_tensors(read_checkpoint(weights_path), weights_path)
    try:
        prior = _prior(read_config(config_path), tokenizer)
        ours = rename(tensors, NAMES, weights_path)
        ours |= {name: ours[name].squeeze(0) for name in ("prefix_positions", "positions", "depths") if name in ours}
        ours["to_spatial.bias"] = prior.grid.depth * ours["to_spatial.bias"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{weights_path.name} does not fit {config_path.name}: {error} is missing or wrong") from None
    codebooks = [codebook.weight for codebook in tokenizer.quantizer.codebooks]
    ours["codebook"] = codebooks[0] if tokenizer.config.shared else torch.stack(codebooks)
    load_weights(prior, ours, weights_path)
    files = {f"stage1/{name}": value for name, value in imported.files.items()}
    files |= {f"stage2/{path.name}": sha256(path) for path in (config_path, weights_path)}
    return Imported(tokenizer, ORIGIN, LICENCE, True, files, prior.eval())


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
