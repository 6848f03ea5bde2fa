"""RQ-VAEs of kakaobrain/rq-vae-transformer: `model.pt` and `config.yaml` beside it, a stage folder of an archive.

The encoder and decoder are taming-transformers' and so are their names.  A codebook has one row more than codes
(padding, left out); a shared one is repeated in the file for every depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..tokenizers.rqvae import RQVAE, RQVAEConfig
from . import Imported
from .compvis_vqgan import autoencoder_options, translate_autoencoder
from .sources import find_config, find_weights
from .weights import even_use, fitting, load_weights, read_release

ORIGIN = "RQ-VAE of kakaobrain/rq-vae-transformer, https://github.com/kakaobrain/rq-vae-transformer"
LICENCE = "CC-BY-NC-SA-4.0 for the weights (non-commercial), Apache-2.0 for the code"
MARK = "quantizer.codebooks.0.weight"


def matches(source: Path) -> bool:
    """Whether a config of this release lies beside a checkpoint."""
    return find_config(source, is_config) is not None and find_weights(source) is not None


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a YAML is one of this release."""
    architecture = config.get("arch")
    return isinstance(architecture, Mapping) and architecture.get("type") == "rq-vae"


def load(source: Path) -> Imported:
    """Imports the release; raises ValueError where a part of it is missing or of another architecture."""
    weights = read_release(source, is_config, MARK)
    with fitting(weights.path):
        tokenizer = RQVAE(_config(weights.config["arch"]))
        ours = translate_autoencoder(weights.tensors, weights.path) | _codebooks(weights.tensors, tokenizer)
    load_weights(tokenizer, ours, weights.path)
    return Imported(tokenizer.eval(), ORIGIN, LICENCE, True, weights.files, notes=weights.notes)


def _config(architecture: Mapping[str, Any]) -> RQVAEConfig:
    options, network = architecture["hparams"], architecture["ddconfig"]
    if options.get("bottleneck_type", "rq") != "rq":
        raise ValueError(f"only the bottleneck type rq is supported, not {options['bottleneck_type']}")
    height, width, depth = options["code_shape"]
    if list(options["latent_shape"][:2]) != [height, width]:
        raise ValueError("an RQ-VAE whose codes stand for several latent positions each is not supported")
    factor = 2 ** (len(network["ch_mult"]) - 1)
    return RQVAEConfig(
        image_height=height * factor, image_width=width * factor, **autoencoder_options(network), depth=depth,
        embedding_dim=options["embed_dim"],
        codebook_size=equal(options["n_embed"], "n_embed"), decay=float(equal(options.get("decay", 0.99), "decay")),
        shared=bool(options.get("shared_codebook", False)), beta=float(options.get("latent_loss_weight", 0.25)),
        restart_below=RQVAEConfig.restart_below if options.get("restart_unused_codes", True) else 0.0,
        error="l1" if options.get("loss_type", "mse") == "l1" else "mse",
    )  # fmt: skip


def equal(value: Any, name: str) -> Any:
    """A number, or the one that a list of numbers, one per depth, repeats; raises ValueError where they differ."""
    if not isinstance(value, (list, tuple)):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"a model whose depths differ in {name} is not supported: {list(value)}")
    return value[0]


def _codebooks(tensors: Mapping[str, Tensor], tokenizer: RQVAE) -> dict[str, Tensor]:
    ours = {}
    for index in range(len(tokenizer.quantizer.codebooks)):
        theirs, prefix = f"quantizer.codebooks.{index}.", f"quantizer.codebooks.{index}."
        codebook = tensors[theirs + "weight"][:-1]
        ours |= {prefix + "weight": codebook, **even_use(prefix, codebook)}
        usage = tensors.get(theirs + "cluster_size_ema")
        if usage is not None and bool(torch.isfinite(usage).all()) and float(usage.sum()) > 0:
            ours |= {prefix + "usage": usage, prefix + "recent": usage}
    return ours
