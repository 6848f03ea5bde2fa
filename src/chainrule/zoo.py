"""Saved models by name: a bundled one, a folder, or a hub id; and the function that saves any of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .adapters import find_base, read_adapted
from .core import Tokenizer
from .files import read_whole
from .pipeline import Pipeline
from .saving import publish
from .saving.hub import find, is_local
from .saving.model import (
    Kind,
    Part,
    SavedModel,
    read_model,
    read_module,
    read_prior,
    read_text,
    read_tokenizer,
    text_part,
    tokenizer_part,
    write_model,
)
from .scorers.classifier import Classifier, ClassifierConfig
from .scorers.public_clip import PublicCLIP
from .scorers.reranker import Reranker, RerankerConfig
from .strict import to_plain
from .upscaling.upscaler import Upscaler, UpscalerConfig

Model = Pipeline | Tokenizer | Reranker | Classifier | Upscaler
_KINDS: dict[type, Kind] = {Reranker: "reranker", Classifier: "classifier", Upscaler: "upscaler"}
_USES: dict[Kind, str] = {
    "pipeline": "open it with chainrule.load",
    "tokenizer": "a tokenizer without a prior encodes, decodes and reconstructs, but draws nothing",
    "reranker": "chainrule sample and serve take it as --reranker",
    "classifier": "chainrule sample and serve take it as --reranker",
    "upscaler": "chainrule sample and serve take it as --upscaler",
}


def load(
    name: str | os.PathLike, device: str = "cpu", *, revision: str | None = None, token: str | None = None
) -> Model:
    """A saved model, in evaluation mode.

        load("mnist_pixelcnn").sample(4)
        load("emoji_vqgan").encode(images)
        load("shapes_upscaler").upscale(images)

    Args:
        name: a bundled model, a folder, the folder of a training run, or a hub id such as "user/model".
        device: where it computes.
        revision: of a model on the hub: a branch, a tag or a commit; None is the newest.
        token: of the hub, for private models; None: the one of `hf auth login` or of the variable HF_TOKEN.

    Returns:
        what the folder holds: a `Pipeline`, a `Tokenizer`, a `Reranker`, a `Classifier` or an `Upscaler`.

    Raises:
        ValueError: nothing of that name, damaged files, or files that do not belong together.
    """
    return load_kind(name, device=device, revision=revision, token=token)


def load_kind(
    name: str | os.PathLike, *kinds: Kind, device: str = "cpu", revision: str | None = None, token: str | None = None
) -> Model:
    """As `load`; raises ValueError where the folder holds a model of another kind than `kinds`, if these are given."""
    return read_whole(find(name, revision, token), lambda folder: _read(folder, kinds)).to(device)


def _read(folder: Path, kinds: Sequence[Kind]) -> Model:
    saved = read_model(folder)
    _check_kind(folder, saved, kinds)
    if saved.adapter is not None:
        return read_adapted(folder, saved, _read_base(folder, saved))
    if saved.kind == "pipeline":
        return Pipeline(
            read_tokenizer(folder, saved.tokenizer), read_prior(folder, saved.prior), saved.class_names, saved.card,
            read_text(folder, saved.text_tokenizer),
        )  # fmt: skip
    if saved.kind == "tokenizer":
        return read_tokenizer(folder, saved.tokenizer)
    if saved.kind == "reranker":
        build = partial(Reranker, text_tokenizer=read_text(folder, saved.text_tokenizer), card=saved.card)
        return read_module(folder, "reranker", saved.reranker, build, RerankerConfig)
    if saved.kind == "classifier":
        return read_module(folder, "classifier", saved.classifier, Classifier, ClassifierConfig)
    return read_module(folder, "upscaler", saved.upscaler, Upscaler, UpscalerConfig)


def _read_base(folder: Path, saved: SavedModel) -> Pipeline:
    """The pipeline that an adapter changes, which is none itself."""

    def read(base: Path) -> Pipeline:
        if read_model(base).adapter is not None:
            raise ValueError(f"{base} is an adapter itself; save it whole, chainrule.save(chainrule.load(…), …)")
        return _read(base, ("pipeline",))

    return read_whole(find_base(folder, saved.adapter), read)


def load_tokenizer(name: str | os.PathLike, device: str = "cpu") -> Tokenizer:
    """The tokenizer of a saved model, with or without a prior; arguments and errors as for `load`."""

    def read(folder: Path) -> Tokenizer:
        saved = read_model(folder)
        _check_kind(folder, saved, ("tokenizer", "pipeline"))
        if saved.adapter is not None:
            return _read_base(folder, saved).tokenizer
        return read_tokenizer(folder, saved.tokenizer)

    return read_whole(find(name), read).to(device)


def load_scorer(name: str | os.PathLike, device: str = "cpu") -> Reranker | Classifier | PublicCLIP:
    """A model that judges images.

        scorer = load_scorer("runs/emoji_classifier")
        images = model.sample(16, "Flags", best_of=8, scorer=scorer.for_labels("Flags"))

    Args:
        name: as for `load`; or a public CLIP: a folder of the package transformers, or a hub id such as
            "openai/clip-vit-base-patch32".
        device: where it computes.

    Raises:
        ValueError: nothing of that name, a model of another kind, damaged files, or a missing package.
    """
    if not is_local(name):
        return PublicCLIP(os.fspath(name), device)
    return load_kind(name, "reranker", "classifier", device=device)


def save(
    model: Model, folder: str | os.PathLike, card: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes a model to a folder, from which `load` reads it; a folder that holds a model is replaced as a whole.

    Args:
        model: what `load` gives.
        folder: new, empty, or a saved model.
        card: what is known of the model (data, licence, recipe, figures), any plain values; None: the model's own card,
            if it has one.
        dtype: type of the weights in their file: torch.bfloat16 for half the bytes, torch.int8 for a quarter (rows of
            matrices and filters, each with a scale); None: as they are.  When loaded, weights have the default type
            again.  A pipeline's tokenizer stays as it is, since the prior knows its codes.

    Raises:
        ValueError: the folder exists and is not a saved model.
        OSError: the folder cannot be written.
    """
    card = dict(getattr(model, "card", {}) if card is None else card)
    if isinstance(model, Pipeline):
        model.save(folder, dtype, card)
    elif isinstance(model, Tokenizer):
        saved = SavedModel(kind="tokenizer", tokenizer=tokenizer_part(model), card=card)
        write_model(folder, saved, {"tokenizer": model.state_dict()}, dtype=dtype)
    else:
        kind: Kind = _KINDS[type(model)]
        text = model.text_tokenizer if kind == "reranker" else None
        parts = {kind: Part(config=to_plain(model.config)), "text_tokenizer": text_part(text)}
        write_model(folder, SavedModel(kind=kind, card=card, **parts), {kind: model.state_dict()}, text, dtype)


def push(
    model: Model | str | os.PathLike, repo_id: str, *, private: bool = False, token: str | None = None
) -> str:  # fmt: skip
    """Uploads a model to the Hugging Face hub, with a card: data, licence, figures, pictures, and how to use it.

    Args:
        model: what `load` gives, or the name or folder of a saved model.
        repo_id: as "user/name"; the repository is made if there is none.
        private: whether a new repository is.
        token: see `load`.

    Returns:
        The URL of the repository.

    Raises:
        ValueError: no such model, a wrong name, or a hub that refuses.
    """
    if isinstance(model, (str, os.PathLike)):
        folder = find(model)
        opened = load(folder)
        picture = opened.samples() if isinstance(opened, Pipeline) else None
        return publish.push(folder, repo_id, private=private, token=token, picture=picture)
    if isinstance(model, Pipeline):
        return model.push_to_hub(repo_id, private=private, token=token)
    with tempfile.TemporaryDirectory(prefix="chainrule-") as temporary:
        folder = Path(temporary) / "model"
        save(model, folder)
        return publish.push(folder, repo_id, private=private, token=token)


def kind_of(name: str | os.PathLike) -> Kind:
    """The kind of a saved model; raises ValueError as `load` does."""
    return read_model(find(name)).kind


def read_card(name: str | os.PathLike) -> dict[str, Any]:
    """The card of a saved model; raises ValueError as `load` does."""
    return dict(read_model(find(name)).card)


def _check_kind(folder: Path, saved: SavedModel, kinds: tuple[Kind, ...]) -> None:
    if kinds and saved.kind not in kinds:
        found, needed = (f"{'an' if name[0] == 'u' else 'a'} {name}" for name in (saved.kind, " or ".join(kinds)))
        raise ValueError(f"{folder} holds {found}, but {needed} is needed; {_USES[saved.kind]}")
