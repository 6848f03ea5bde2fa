"""The folder of a saved model: `config.yaml`, the weights of each part, and the files of a text tokenizer.

format: 1
kind: pipeline                     or tokenizer, reranker, classifier, upscaler
tokenizer: {name, config, …}       one section per part; its weights are in tokenizer.safetensors
prior: {name, config, codes}
class_names: […]
card: {…}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..core import CodeSpec, Prior, Tokenizer, entry
from ..core.building import Uninitialized, shapes_only
from ..files import decode_text, write_folder
from ..strict import build_dataclass, parse_yaml, to_plain, write_yaml
from ..text.bpe import TextTokenizer, read_text_tokenizer, text_tokenizers
from .hub import find_bundled
from .weights import check_weights, read_weights, write_weights

M = TypeVar("M", bound=nn.Module)

FORMAT = 1
Kind = Literal["pipeline", "tokenizer", "reranker", "classifier", "upscaler"]
PARTS: dict[Kind, set[str]] = {
    "pipeline": {"tokenizer", "prior"},
    "tokenizer": {"tokenizer"},
    "reranker": {"reranker", "text_tokenizer"},
    "classifier": {"classifier"},
    "upscaler": {"upscaler"},
}
"""The parts that a saved model must have; a pipeline may have a text tokenizer too."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a saved model.

    config: plain values of the part's config
    """

    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TokenizerPart(Part):
    """A tokenizer.

    name:           as it is registered
    encoder_config: config of the tokenizer whose encoder and codes it has, if its decoder was built by another config
    weights:        the bundled model that holds the weights; None: the folder itself
    hash:           `tokenizer_hash` of the tokenizer that the prior was trained with
    """

    name: str
    encoder_config: Mapping[str, Any] | None = None
    weights: str | None = None
    hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class PriorPart(Part):
    """A prior.

    name:  as it is registered
    codes: height, width, depth and codebook size of each grid that it models
    """

    name: str
    codes: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class AdapterPart:
    """A prior that is a small change of another model's, whose tokenizer it has: see `chainrule.adapters`.

    base:        the model that is changed: a bundled one, a hub id, or a folder
    hash:        `prior_hash` of its prior
    rank, alpha: see `layers.lora`
    """

    base: str
    hash: str
    rank: int
    alpha: float


@dataclass(frozen=True, kw_only=True)
class TextPart(Part):
    """A text tokenizer.

    name: its kind
    hash: `TextTokenizer.hash` of the one that the model was trained with
    """

    name: str
    hash: str


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """Everything that config.yaml holds.

    format:      version of the format
    kind:        what the folder holds
    tokenizer, prior, text_tokenizer, reranker, classifier, upscaler: the parts, see `PARTS`
    adapter:     where the weights lie that are not in the folder of a pipeline; None: all are there
    class_names: names of the classes of a prior
    card:        what is known of the model (data, licence, recipe, minutes, figures), any plain values
    """

    format: int = FORMAT
    kind: Kind
    tokenizer: TokenizerPart | None = None
    prior: PriorPart | None = None
    text_tokenizer: TextPart | None = None
    reranker: Part | None = None
    classifier: Part | None = None
    upscaler: Part | None = None
    adapter: AdapterPart | None = None
    class_names: tuple[str, ...] | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = {*set().union(*PARTS.values())}
        given = {name for name in every if getattr(self, name) is not None}
        if missing := sorted(PARTS[self.kind] - given):
            raise ValueError(f"{missing[0]!r} is missing, which a {self.kind} needs")
        if extra := sorted(given - PARTS[self.kind] - ({"text_tokenizer"} if self.kind == "pipeline" else set())):
            raise ValueError(f"{extra[0]!r} is no part of a {self.kind}")
        if self.kind == "pipeline" and self.tokenizer.hash is None:
            raise ValueError("'tokenizer.hash' is missing, which a pipeline needs")
        for name in ("class_names", "adapter"):
            if getattr(self, name) is not None and self.kind != "pipeline":
                raise ValueError(f"{name!r} is no part of a {self.kind}")


# ---------------------------------------------------------------- writing


def write_model(
    folder: str | os.PathLike, saved: SavedModel, weights: Mapping[str, Mapping[str, Tensor]],
    text_tokenizer: TextTokenizer | None = None, dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Writes a model; a folder that holds one is replaced as a whole.

    Args:
        folder: new, empty, or a saved model.
        saved: what config.yaml is to hold.
        weights: of each part that has a file, by name.
        text_tokenizer: writes files of its own.
        dtype: type of the weights in the files, see `chainrule.save`; it leaves a pipeline's tokenizer as it is, since
            the prior knows its codes.

    Raises:
        ValueError: the folder holds anything but a saved model.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    check_replaceable(folder)
    plain = {key: value for key, value in asdict(saved).items() if value is not None}
    for name, part in plain.items():
        if isinstance(getattr(saved, name), Part):
            plain[name] = {key: value for key, value in part.items() if value is not None}

    def write(new: Path) -> None:
        for name, tensors in weights.items():
            narrow = None if (saved.kind, name) == ("pipeline", "tokenizer") else dtype
            write_weights(tensors, new / f"{name}.safetensors", narrow)
        for name, content in ({} if text_tokenizer is None else text_tokenizer.files()).items():
            (new / name).write_text(content, encoding="utf-8")
        write_config(new, plain)

    write_folder(folder, write)


def check_replaceable(folder: Path) -> None:
    """Raises ValueError if a file would be lost, other than those of a saved model, when a folder is replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_saved_model(folder):
        raise ValueError(f"{folder} exists and is no saved model; choose another folder")
    ours = {"config.yaml", *(f"{part}.safetensors" for parts in PARTS.values() for part in parts)}
    ours |= {name for kind in text_tokenizers().values() for name in kind.file_names}
    if others := sorted({child.name for child in folder.iterdir()} - ours):
        raise ValueError(
            f"{folder} holds {others[0]}, which is no part of the saved model and would be lost; move it, or choose "
            "another folder"
        )


def write_config(folder: Path, plain: Mapping[str, Any]) -> None:
    """Writes config.yaml."""
    (folder / "config.yaml").write_text(write_yaml(plain), encoding="utf-8")


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """sha256 of a tokenizer's config and weights: what a prior was trained on."""
    return _hash(tokenizer_part(tokenizer), tokenizer)


def prior_hash(prior: Prior) -> str:
    """sha256 of a prior's config, codes and weights."""
    return _hash(prior_part(prior), prior)


def _hash(part: Part, module: nn.Module) -> str:
    plain = {key: value for key, value in asdict(part).items() if value is not None}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_part(tokenizer: Tokenizer, hash: str | None = None) -> TokenizerPart:
    """A tokenizer as config.yaml describes it."""
    encoder = getattr(tokenizer, "encoder_config", None)
    return TokenizerPart(
        name=tokenizer.name, config=to_plain(tokenizer.config), hash=hash,
        encoder_config=None if encoder is None else to_plain(encoder),
    )  # fmt: skip


def prior_part(prior: Prior) -> PriorPart:
    """A prior as config.yaml describes it."""
    return PriorPart(name=prior.name, config=to_plain(prior.config), codes=prior.spec.to_dict())


def text_part(text_tokenizer: TextTokenizer | None) -> TextPart | None:
    """A text tokenizer, if there is one, as config.yaml describes it."""
    if text_tokenizer is None:
        return None
    return TextPart(name=text_tokenizer.name, config=text_tokenizer.config, hash=text_tokenizer.hash())


# ---------------------------------------------------------------- reading


def read_model(folder: Path) -> SavedModel:
    """config.yaml of a saved model.

    Raises:
        ValueError: it is missing, damaged or of another format.
    """
    path = folder / "config.yaml"
    try:
        text = decode_text(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} is no saved model: a folder with config.yaml is needed") from None
    config = parse_yaml(text, f"{path} is damaged")
    if not isinstance(config, Mapping) or config.get("format") != FORMAT:
        raise ValueError(f"{path} is not a model of format {FORMAT}; save it again with this version of chainrule")
    return build_dataclass(SavedModel, config, f"{path} is incomplete or damaged")


def is_saved_model(folder: Path) -> bool:
    """Whether a folder holds a saved model, and not just some config.yaml."""
    try:
        read_model(folder)
    except ValueError:
        return False
    return True


def read_tokenizer(folder: Path, part: TokenizerPart) -> Tokenizer:
    """A tokenizer with its weights, in evaluation mode.

    Raises:
        ValueError: weights that are missing, damaged or of another tokenizer.
    """
    registered, where = entry("tokenizers", part.name), str(folder / "config.yaml")
    config = build_dataclass(registered.config, part.config, where, "tokenizer.config")
    encoder = config
    if part.encoder_config is not None:
        encoder = build_dataclass(registered.config, part.encoder_config, where, "tokenizer.encoder_config")

    def build() -> Tokenizer:
        tokenizer = registered.model(encoder)
        return tokenizer if part.encoder_config is None else tokenizer.with_decoder(config)

    holder = folder if part.weights is None else find_bundled(part.weights, f"{where}: 'tokenizer.weights'")
    tokenizer = _with_weights(build, holder / "tokenizer.safetensors")
    if part.hash not in (None, tokenizer_hash(tokenizer)):
        raise ValueError(f"the prior in {folder} was trained on the codes of another tokenizer than the one beside it")
    return tokenizer.eval()


def read_prior(folder: Path, part: PriorPart) -> Prior:
    """A prior with its weights, in evaluation mode; raises ValueError where they are missing or damaged."""
    registered = entry("priors", part.name)
    config = build_dataclass(registered.config, part.config, str(folder / "config.yaml"), "prior.config")
    try:
        spec = CodeSpec.from_dict(part.codes)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.yaml'}: in 'prior.codes': {error}") from None
    return _with_weights(lambda: registered.model(spec, config), folder / "prior.safetensors").eval()


def read_text(folder: Path, part: TextPart | None) -> TextTokenizer | None:
    """The text tokenizer, if there is one; raises ValueError where files are missing, damaged or of another."""
    if part is None:
        return None
    text_tokenizer = read_text_tokenizer(folder, part.name, part.config)
    if text_tokenizer.hash() != part.hash:
        raise ValueError(f"the model in {folder} was trained on another text tokenizer than the one beside it")
    return text_tokenizer


def read_module(folder: Path, name: str, part: Part, build: Callable[[Any], nn.Module], config: type) -> nn.Module:
    """Another part with its weights, in evaluation mode.

    Args:
        folder: of the saved model.
        name: of the part.
        part: how config.yaml describes it.
        build: from a config to a module.
        config: class of the config.

    Raises:
        ValueError: weights that are missing or damaged.
    """
    built = build_dataclass(config, part.config, str(folder / "config.yaml"), f"{name}.config")
    return _with_weights(lambda: build(built), folder / f"{name}.safetensors").eval()


def _with_weights(build: Callable[[], M], path: Path) -> M:
    """A module with the weights of a file; no memory is taken for it before the shapes of both are seen to agree."""
    with shapes_only():
        check_weights(build().state_dict(), path)
    with Uninitialized():
        module = build()
    read_weights(module, path)
    return module
