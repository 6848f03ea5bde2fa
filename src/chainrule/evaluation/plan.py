"""What an evaluation measures, settled before it starts: the loaded model, the images, and every option."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..core import Tokenizer
from ..core.checks import MAX_SIZE
from ..core.values import plain
from ..data import DataConfig
from ..decoding import Sampling
from ..pipeline import Pipeline
from ..saving.hub import find
from ..scorers import features as networks
from ..strict import build_dataclass, read_yaml
from ..zoo import load_kind, read_card
from .records import SampleSettings

NUM_DRAWS = 5
"""Draws of black and white pixels over which a likelihood is averaged."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The options of `evaluate`; None stands for the default.

    data:       a folder, a data set on the hub, or "shapes"; default: the data that the model was trained on
    split:      such as "test" or "test[:1000]"; default: the evaluation split of the model's recipe, or "test"
    size:       (height, width) to which images are resized and cropped; default: as in training
    binarize:   "none", "threshold" or "sample"; default: as in training
    limit:      only this many images, at equal distances; default: all
    strict:     refuse a data set with an image that cannot be read
    batch_size: default: 100, for a tokenizer 32
    seed:       the first seed of binarisation, and the seed of samples; default: 0
    seeds:      with binarize "sample": the number of seeds to average over; default: 5
    samples:    of a model with a prior: draw this many images and compare them with the data; 0: none
    against:    the split that samples are compared with; default: the images evaluated
    sampling:   fields of `decoding.Sampling` for the samples, such as {"guidance": 3.0, "top_k": 100}
    features:   of the perceptual and the Fréchet distance: a name for `load_features`, or "none"; default:
                efficientnet_lite0
    """

    data: str | None = None
    split: str | None = None
    size: tuple[int, int] | None = None
    binarize: str | None = None
    limit: int | None = None
    strict: bool = False
    batch_size: int | None = None
    seed: int | None = None
    seeds: int | None = None
    samples: int = 0
    against: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    features: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("limit", 1, None), ("batch_size", 1, MAX_SIZE), ("seeds", 1, MAX_SIZE), ("seed", 0, None),
            ("samples", 0, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (low <= value and (high is None or value <= high)):
                raise ValueError(
                    f"{name} must be at least {low}{f' and at most {high:,}' if high else ''}, got {value}"
                )

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, those of `sampling` by their own names."""
        chosen = (one for one in fields(self) if one.name != "sampling" and getattr(self, one.name) != one.default)
        return {one.name: getattr(self, one.name) for one in chosen} | dict(self.sampling)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `measure` needs.

    model:      the model, loaded
    name:       what it was loaded by
    data:       the images
    limit:      only this many of them, at equal distances; None: all
    batch_size: images at once
    seeds:      of binarisation; empty where nothing is drawn
    samples:    how images are drawn and compared, if they are
    features:   of a tokenizer's distances: a name for `load_features`, or "none"
    expected:   fingerprint of the images on which the model was evaluated in training, where these are asked for
    """

    model: Pipeline | Tokenizer
    name: str
    data: DataConfig
    limit: int | None
    batch_size: int
    seeds: tuple[int, ...] = ()
    samples: SampleSettings | None = None
    features: str = "none"
    expected: str | None = None

    def command(self) -> str:
        """The command line that measures the same again."""
        words = ["chainrule", "evaluate", self.name, "--data", self.data.source, "--split", self.data.split]
        words += [] if self.data.size is None else ["--size", "{}x{}".format(*self.data.height_width)]
        words += [] if self.limit is None else ["--limit", str(self.limit)]
        if isinstance(self.model, Tokenizer):
            words += ["--features", self.features]
        else:
            words += ["--binarize", self.data.binarize]
            words += ["--seeds", str(len(self.seeds))] if self.seeds else []
            words += ["--seed", str(self.seeds[0])] if self.seeds and self.samples is None else []
            words += [] if self.samples is None else self.samples.options()
        return shlex.join([*words, "--batch-size", str(self.batch_size)])


def plan(model: str | os.PathLike, device: str = "cpu", **options: Any) -> Plan:
    """Loads a model and settles what `evaluate` will measure.

    Args:
        model: a bundled model, a folder, or a hub id: a tokenizer, or a model with a prior.
        device: where it computes.
        options: see `EvaluationSettings`.

    Raises:
        ValueError: no such model, an option out of range, or one that would be ignored.
    """
    name, settings = os.fspath(model), EvaluationSettings(**plain(options))
    loaded = open_model(name, device)
    return (_tokenizer_plan if isinstance(loaded, Tokenizer) else _pipeline_plan)(loaded, name, settings)


def open_model(name: str, device: str) -> Pipeline | Tokenizer:
    """A saved model with a prior, or a tokenizer alone; raises ValueError as `plan`."""
    return load_kind(name, "pipeline", "tokenizer", device=device)


def _pipeline_plan(model: Pipeline, name: str, settings: EvaluationSettings) -> Plan:
    samples = _sample_settings(settings)
    data = _data(name, model.tokenizer.image_shape, settings)
    seeds: tuple[int, ...] = ()
    if data.binarize == "sample":
        first = settings.seed or 0
        seeds = tuple(range(first, first + (settings.seeds or NUM_DRAWS)))
    elif settings.seeds is not None or (settings.seed is not None and samples is None):
        raise ValueError(f"seeds would be ignored: nothing is drawn with binarize {data.binarize}")
    return Plan(
        model=model, name=name, data=data, limit=settings.limit, batch_size=settings.batch_size or 100, seeds=seeds,
        samples=samples, expected=_expected(name, settings),
    )  # fmt: skip


def _sample_settings(settings: EvaluationSettings) -> SampleSettings | None:
    """How images are drawn, if they are."""
    if settings.samples and settings.features == "none":
        raise ValueError("features none leaves nothing to compare samples by; leave out samples or features")
    if settings.samples:
        return SampleSettings(
            count=settings.samples, against=settings.against, seed=settings.seed or 0,
            features=settings.features or networks.DEFAULT, sampling=Sampling(**settings.sampling),
        )  # fmt: skip
    for option in ("against", "features", *settings.sampling):
        if option in settings.given():
            raise ValueError(f"{option} would be ignored: it is for the comparison of samples; ask for samples")
    return None


def _tokenizer_plan(tokenizer: Tokenizer, name: str, settings: EvaluationSettings) -> Plan:
    for option in ("binarize", "seeds", "seed", "samples", "against", *settings.sampling):
        if option in settings.given():
            raise ValueError(f"{option} would be ignored: {name} is a tokenizer without a prior")
    return Plan(
        model=tokenizer, name=name, data=_data(name, tokenizer.image_shape, settings, {"binarize": "none"}),
        limit=settings.limit, batch_size=settings.batch_size or 32,
        features=settings.features or networks.default_features(), expected=_expected(name, settings),
    )  # fmt: skip


def _data(
    name: str, image_shape: tuple[int, int, int], settings: EvaluationSettings, change: Mapping[str, Any] = {}
) -> DataConfig:
    """The images: as the model's recipe describes them, with the changes that the settings ask for."""
    recipe = read_card(name).get("recipe")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    values: dict[str, Any] = dict(recipe.get("data") or {})
    if settings.data is None and "source" in values:
        values["source"] = _trained_on(name, values["source"])
    elif settings.data is not None:
        if settings.data != values.get("source"):  # the columns are those of another table
            values |= {"image_column": None, "label_column": None, "text_column": None}
        values["source"] = settings.data
    if "source" not in values:
        raise ValueError(f"{name} does not say what it was trained on; name the data")
    if settings.size is not None or values["source"] == "shapes":
        values["size"] = list(settings.size or image_shape[1:])
    values |= {"channels": image_shape[0], "flip": False, "strict": settings.strict}
    values["split"] = settings.split or (recipe.get("evaluation") or {}).get("split") or "test"
    values["binarize"] = settings.binarize or values.get("binarize", "none")
    return build_dataclass(DataConfig, values | change, "evaluate")


def _expected(name: str, settings: EvaluationSettings) -> str | None:
    """The fingerprint on a model's card of its evaluation images, if the settings ask for these and all of them."""
    if any(value is not None for value in (settings.data, settings.split, settings.size, settings.limit)):
        return None
    return (read_card(name).get("trained_on") or {}).get("evaluation")


def _trained_on(name: str, source: str) -> str:
    """The source of the images that a model was trained on, which its card calls `source`.

    The recipe of a run has the path of a folder of this machine.  A model that was copied from its run has its name
    only, and that is never looked for: another folder, or a data set of the hub, may be called so.

    Raises:
        ValueError: the folder is no longer there, or nothing says where it is.
    """
    ask = "say where its images are: --data FOLDER, in Python data="
    model = find(name).resolve()
    run = model.parent / "recipe.yaml"
    if model.name == "model" and run.is_file():
        source = (read_yaml(run).get("data") or {}).get("source", source)
        if Path(source).is_absolute() and not Path(source).exists():
            raise ValueError(f"{name} was trained on {source}, which is no longer there; {ask}")
    elif folder := (read_card(name).get("trained_on") or {}).get("folder"):
        raise ValueError(f"{name} was trained on a folder called {folder}, and only its run knows which; {ask}")
    return source
