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
from .reader import read_checkpoint, sha256
from .sources import even_use, find_config, find_weights, load_weights, read_config, state_dict

ORIGIN = "RQ-VAE of kakaobrain/rq-vae-transformer, https://github.com/kakaobrain/rq-vae-transformer"
LICENCE = "CC-BY-NC-SA-4.0 for the weights (non-commercial), Apache-2.0 for the code"


def matches(source: Path) -> bool:
    """Whether a config of this release lies beside a checkpoint."""
    return find_config(source, _is_ours) is not None and find_weights(source, "*.pt") is not None


def _is_ours(config: Mapping[str, Any]) -> bool:
    architecture = config.get("arch")
    return isinstance(architecture, Mapping) and architecture.get("type") == "rq-vae"


def load(source: Path) -> Imported:
    """Imports the release; raises ValueError where a part of it is missing or of another architecture."""
    config_path, weights_path = find_config(source, _is_ours), find_weights(source, "*.pt")
    architecture = read_config(config_path)["arch"]
    tensors = model_tensors(read_checkpoint(weights_path), weights_path)
    try:
        tokenizer = RQVAE(_config(architecture))
        ours = translate_autoencoder(tensors, weights_path) | _codebooks(tensors, tokenizer)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{weights_path.name} does not fit {config_path.name}: {error} is missing or wrong") from None
    load_weights(tokenizer, ours, weights_path)
    files = {path.name: sha256(path) for path in (config_path, weights_path)}
    return Imported(tokenizer.eval(), ORIGIN, LICENCE, True, files)


def model_tensors(checkpoint: Any, where: Path) -> dict[str, Tensor]:
    """The model's tensors; of a checkpoint that has only averaged weights, those."""
    if isinstance(checkpoint, Mapping) and "state_dict" not in checkpoint:
        checkpoint = checkpoint.get("state_dict_ema", checkpoint)
    return {key.removeprefix("module."): value for key, value in state_dict(checkpoint, where).items()}


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
