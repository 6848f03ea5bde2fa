"""Adapters: what LoRA changes of a pipeline, in a small folder that names the model it belongs to.

config.yaml describes the whole pipeline and has a section `adapter` with the name and the hash of the base model;
prior.safetensors holds what was trained, and nothing else.  `chainrule.load` reads the base model and adds the changes
to its matrices, so that the result is an ordinary pipeline.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from .core import Prior
from .core.building import shapes_only
from .layers.lora import LoRAConfig, add_lora, merge, trained
from .pipeline import Pipeline
from .saving.hub import find, is_local
from .saving.model import AdapterPart, SavedModel, prior_hash, read_text, tokenizer_hash, write_model
from .saving.weights import check_weights, read_shapes, read_tensors
from .strict import build_dataclass


def base_of(name: str | os.PathLike) -> str:
    """A model as an adapter names it: a bundled model or a hub id as it is, a folder by its whole path."""
    return os.fspath(Path(name).resolve()) if is_local(name) and Path(name).exists() else os.fspath(name)


def find_base(folder: Path, adapter: AdapterPart) -> Path:
    """The folder of the model that an adapter changes; one that has moved is also found beside the adapter's.

    Raises:
        ValueError: it is nowhere.
    """
    named = Path(adapter.base)
    beside = folder.parent / named.name
    moved = named.is_absolute() and not is_local(named) and beside != folder and is_local(beside)
    try:
        return find(beside if moved else named)
    except ValueError as error:
        raise ValueError(
            f"{folder} is an adapter of {adapter.base}, which is not here ({error}); put it there, or write its place "
            "in 'adapter.base' of config.yaml"
        ) from None


def save_adapter(pipeline: Pipeline, adapter: AdapterPart, folder: str | os.PathLike) -> None:
    """Writes what was trained of a pipeline whose prior `layers.lora.add_lora` has changed; errors as for `save`."""
    saved = replace(pipeline.saved(), adapter=adapter)
    write_model(folder, saved, {"prior": trained(pipeline.prior)}, pipeline.text_tokenizer)


def read_adapted(folder: Path, saved: SavedModel, base: Pipeline) -> Pipeline:
    """The pipeline of an adapter, merged, from that of its base, which is used up.

    Raises:
        ValueError: the base is not the model that the adapter was trained on, or weights are missing or damaged.
    """
    if saved.adapter.hash != prior_hash(base.prior) or saved.tokenizer.hash != tokenizer_hash(base.tokenizer):
        raise ValueError(f"{folder} is an adapter of another {saved.adapter.base} than the one that is here")
    prior = _adapted(folder, saved, base.prior)
    return Pipeline(base.tokenizer, prior, saved.class_names, saved.card, read_text(folder, saved.text_tokenizer))


def _adapted(folder: Path, saved: SavedModel, base: Prior) -> Prior:
    path, where = folder / "prior.safetensors", str(folder / "config.yaml")
    config = build_dataclass(type(base.config), saved.prior.config, where, "prior.config")
    lora = LoRAConfig(rank=saved.adapter.rank, alpha=saved.adapter.alpha)
    also = [name for name in read_shapes(path) if not name.endswith((".up", ".down"))]
    with shapes_only():
        whole = type(base)(base.spec, config)
        shapes, new = whole.state_dict(), base.state_dict()
        absent = [name for name, value in shapes.items() if name not in new or new[name].shape != value.shape]
        if set(absent) - set(also) or set(also) - set(dict(whole.named_parameters())):
            raise ValueError(f"{path} holds weights of another architecture than {saved.adapter.base}")
        add_lora(whole, lora, also)
        check_weights(trained(whole), path)
    prior = base
    if config != base.config:  # other classes
        prior = type(base)(base.spec, config).eval()
        prior.load_state_dict({name: new[name] for name in shapes if name not in absent}, strict=False)
    add_lora(prior, lora, also)
    prior.load_state_dict(read_tensors(trained(prior), path), strict=False)
    merge(prior)
    return prior.requires_grad_(True)
