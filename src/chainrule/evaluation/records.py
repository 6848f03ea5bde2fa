"""The record of an evaluation: a figure, and all that is needed to repeat it."""

from __future__ import annotations

import datetime
import platform
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import DataConfig
from ..decoding import Sampling
from ..files import parse_json, read_text
from ..kernels.native import processor_kind
from ..strict import build_dataclass
from . import GenerationQuality, Likelihood, TokenizerQuality

TOLERANCE = 1e-3
"""Largest relative difference of two figures that agree."""
ROUNDING = 1e-6
"""Largest difference of two figures that agree, however small they are: a distance of equal images is not quite 0."""


def versions() -> dict[str, str]:
    """Of python, torch, numpy and chainrule, and the kind of processor."""
    from .. import __version__

    numbers = {"torch": str(torch.__version__), "numpy": np.__version__, "chainrule": __version__}
    return {"python": platform.python_version()} | numbers | {"processor": processor_kind()}


def today() -> str:
    """The time now, in UTC, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Record(ABC):
    """What `chainrule evaluate` writes of any model.

    command:        what computes it
    model, model_sha256: the model as it was named, and the sha256 of its weights
    data, data_name, fingerprint: which images, and the fingerprint of their pixels and labels
    limit:          of those, only this many, at equal distances; None is all
    dtype:          in which the model computed
    """

    command: str
    model: str
    model_sha256: str
    data: DataConfig
    data_name: str
    fingerprint: str
    limit: int | None
    batch_size: int
    dtype: str
    versions: dict[str, str] = field(default_factory=versions)
    date: str = field(default_factory=today)

    @abstractmethod
    def figures(self) -> dict[str, tuple[float, str]]:
        """What a repetition must give again: figures by name, with their units."""

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return asdict(self)

    def differences(self, again: Record) -> list[str]:
        """How a repetition differs, in words; empty if it agrees."""
        found = []
        if again.model_sha256 != self.model_sha256:
            new, old = again.model_sha256[:12], self.model_sha256[:12]
            found.append(f"the weights are others (sha256 {new}…, recorded {old}…)")
        if again.fingerprint != self.fingerprint:
            found.append(f"the images are others (fingerprint {again.fingerprint}, recorded {self.fingerprint})")
        repeated = again.figures()
        for name, (old, unit) in self.figures().items():
            if name not in repeated:
                found.append(f"the {name} was not measured again")
                continue
            new = repeated[name][0]
            if not abs(new - old) <= max(TOLERANCE * abs(old), ROUNDING):
                found.append(f"the {name} differs by {new - old:+.4f}{unit} ({new:.4f}, recorded {old:.4f})")
        return found


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How images are drawn to be compared with those of a data set.

    count:     of images
    against:   the split compared with, as a whole; None: the images of the likelihood
    sampling:  how codes are drawn
    seed:      image i depends on it and on i only
    features:  a name for `load_features`
    """

    count: int
    against: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    features: str = "efficientnet_lite0"

    def options(self) -> list[str]:
        """Of the command line."""
        words = ["--samples", str(self.count), "--seed", str(self.seed), "--features", self.features]
        if self.against is not None:
            words += ["--against", self.against]
        for one in fields(Sampling):
            value = getattr(self.sampling, one.name)
            if value != one.default:
                words += ["--" + one.name.replace("_", "-"), str(value)]
        return words


@dataclass(frozen=True, kw_only=True)
class SamplesRecord:
    """Of images that a model has drawn.

    settings:          how
    quality:           the figures
    fingerprint:       of the images compared with
    seconds_per_image: to draw one, in batches; not compared
    """

    settings: SampleSettings
    quality: GenerationQuality
    fingerprint: str
    seconds_per_image: float


@dataclass(frozen=True, kw_only=True)
class LikelihoodRecord(Record):
    """Of a model with a prior.

    likelihood:     the figure, in nats per image
    bits_per_dim:   of a model of pixels, the same in bits per channel of a pixel, with its standard error; None for a
                    learned tokenizer, whose codes are not the whole image
    seeds:          of the binarisation; empty where nothing was drawn
    nats_per_code, bits_per_image: of the codes of a learned tokenizer; None for pixels
    samples:        figures of images drawn, if any were
    """

    likelihood: Likelihood
    bits_per_dim: float | None
    bits_per_dim_standard_error: float | None
    seeds: tuple[int, ...]
    nats_per_code: float | None = None
    bits_per_image: float | None = None
    samples: SamplesRecord | None = None

    def figures(self) -> dict[str, tuple[float, str]]:
        found = {"figure": (self.likelihood.nats, " nats")}
        if self.samples is not None:
            quality = self.samples.quality
            found |= {"Fréchet distance": (quality.frechet, ""), "precision": (quality.precision, "")}
            found |= {"Fréchet distance of reconstructions": (quality.floor, ""), "recall": (quality.recall, "")}
        return found

    def differences(self, again: Record) -> list[str]:
        found = super().differences(again)
        assert isinstance(again, LikelihoodRecord)
        if self.samples is not None and again.samples is not None:
            new, old = again.samples.fingerprint, self.samples.fingerprint
            if new != old:
                found.append(f"the images compared with are others (fingerprint {new}, recorded {old})")
            precision = self.samples.settings.sampling.precision
            if found and precision != "float32" and again.versions.get("processor") != self.versions.get("processor"):
                found.append(f"another kind of processor draws other images in {precision}")
        return found


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord(Record):
    """Of a tokenizer alone.

    tokenizer: the figures; the seconds among them are not compared
    features:  the name of the network of the perceptual and of the Fréchet distance; "none": not measured
    """

    tokenizer: TokenizerQuality
    features: str

    def figures(self) -> dict[str, tuple[float, str]]:
        quality = self.tokenizer
        found = {"PSNR": (quality.psnr.value, " dB"), "SSIM": (quality.ssim.value, "")}
        if quality.perceptual is not None:
            found["perceptual distance"] = quality.perceptual.value, ""
        if quality.frechet is not None:
            found["Fréchet distance"] = quality.frechet, ""
        for use in quality.codebooks:
            where = f" of grid {use.grid}" + ("" if use.depth is None else f", depth {use.depth}")
            found["share of codes used" + where] = use.share_used, ""
            found["perplexity" + where] = use.perplexity, ""
        return found | {"number of bits": (quality.bits_per_image, "")}


def read_record(path: Path) -> LikelihoodRecord | TokenizerRecord:
    """Reads a record; raises ValueError if there is none."""
    value = parse_json(read_text(path), f"{path} is no record of an evaluation")
    if not isinstance(value, dict) or not {"likelihood", "tokenizer"} & set(value):
        raise ValueError(f"{path} is no record of an evaluation: it has no likelihood and no figures of a tokenizer")
    return build_dataclass(LikelihoodRecord if "likelihood" in value else TokenizerRecord, value, str(path))
