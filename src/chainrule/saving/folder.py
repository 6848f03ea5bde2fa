"""The folder of a saved model: `config.yaml`, one `*.safetensors` per part, and the files of a text tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ..core import CodeSpec, Tokenizer, entry
from ..files import write_folder
from ..strict import build_dataclass, to_plain
from .hub import find
from .weights import read_weights, write_weights

FORMAT = 1
SUPER_RESOLUTION = "super_resolution"
"""The `kind` of a folder that holds one, and the name of its weights."""


def write_model(
    folder: Path, config: Mapping[str, Any], parts: Mapping[str, nn.Module], files: Mapping[str, str] = {},
    dtypes: Mapping[str, torch.dtype | None] = {},
) -> None:  # fmt: skip
    """Writes config.yaml, `NAME.safetensors` per part (floats as `dtypes` has it), and text files by name; a folder
    that holds a model is replaced as a whole.

    Raises:
        ValueError: the folder exists and is not a saved model.
    """
    if folder.exists() and not (folder / "config.yaml").is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is no saved model; choose another folder")

    def write(new: Path) -> None:
        for name, part in parts.items():
            write_weights(part, new / f"{name}.safetensors", dtypes.get(name))
        for name, content in files.items():
            (new / name).write_text(content, encoding="utf-8")
        (new / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")

    write_folder(folder, write)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """sha256 of a tokenizer's config and weights: what a prior was trained on."""
    digest = hashlib.sha256(json.dumps(describe("tokenizers", tokenizer), sort_keys=True).encode())
    for key, value in sorted(tokenizer.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def describe(kind: str, model: nn.Module) -> dict[str, Any]:
    """Name and config of a part, as config.yaml holds them, and that of its encoder where it was built by another."""
    encoder = getattr(model, "encoder_config", None)
    plain = {"name": model.name, "config": to_plain(model.config)}
    return plain if encoder is None else plain | {"encoder_config": to_plain(encoder)}


def read_config(folder: Path) -> Mapping[str, Any]:
    """config.yaml of a saved model; raises ValueError if it is damaged or of another format."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is damaged, it is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, Mapping) or config.get("format") != FORMAT:
        raise ValueError(f"{path} is not a model of format {FORMAT}; save it again with this version of chainrule")
    return config


def holds(value: Any, *keys: str) -> bool:
    """Whether a value is a mapping with all of these keys."""
    return isinstance(value, Mapping) and all(key in value for key in keys)


def read_tokenizer(folder: Path, description: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that config.yaml in `folder` describes; `weights` names another model that holds them."""
    other = description.get("weights")
    return read_part(find(other) if other else folder, "tokenizers", description)


def read_part(folder: Path, kind: str, description: Mapping[str, Any]) -> Any:
    """Builds a part and reads its weights."""
    model, where = entry(kind, description["name"]), str(folder / "config.yaml")
    config = build_dataclass(model.config, description["config"], where)
    arguments = (CodeSpec.from_dict(description["codes"]), config) if "codes" in description else (config,)
    if "encoder_config" in description:
        encoder_config = build_dataclass(model.config, description["encoder_config"], where)
        part = model.model(encoder_config).with_decoder(config)
    else:
        part = model.model(*arguments)
    if part.state_dict():
        read_weights(part, folder / f"{kind[:-1]}.safetensors")
    return part
