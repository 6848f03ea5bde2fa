"""The record of an evaluation: a figure, and all that is needed to repeat it."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..config import build_dataclass
from ..data import DataConfig
from ..metrics import Likelihood

TOLERANCE = 1e-3
"""Largest relative difference of two figures that agree."""


def versions() -> dict[str, str]:
    """Of python, torch, numpy and chainrule."""
    import numpy
    import torch

    from .. import __version__

    found = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__}
    try:
        return found | {"chainrule": version("chainrule")}
    except PackageNotFoundError:  # run from its source
        return found | {"chainrule": __version__}


def today() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Record:
    """What `chainrule evaluate` writes.

    likelihood:     the figure, in nats per image
    bits_per_dim:   the same per channel of a pixel, with its standard error
    command:        what computes it
    model, model_sha256: the model as it was named, and the sha256 of its weights
    data, data_name, fingerprint: which images, and the fingerprint of their pixels and labels
    limit:          of those, only this many (the first); None is all
    seeds:          of the binarisation; empty where nothing was drawn
    dtype:          in which the model computed
    nats_per_code, bits_per_image: of the codes of a learned tokenizer; None for pixels
    """

    likelihood: Likelihood
    bits_per_dim: float
    bits_per_dim_standard_error: float | None
    command: str
    model: str
    model_sha256: str
    data: DataConfig
    data_name: str
    fingerprint: str
    limit: int | None
    seeds: tuple[int, ...]
    batch_size: int
    dtype: str
    nats_per_code: float | None = None
    bits_per_image: float | None = None
    versions: dict[str, str] = field(default_factory=versions)
    date: str = field(default_factory=today)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, again: Record) -> list[str]:
        """How a repetition differs, in words; empty if it agrees."""
        found = []
        if again.model_sha256 != self.model_sha256:
            new, old = again.model_sha256[:12], self.model_sha256[:12]
            found.append(f"the weights are others (sha256 {new}…, recorded {old}…)")
        if again.fingerprint != self.fingerprint:
            found.append(f"the images are others (fingerprint {again.fingerprint}, recorded {self.fingerprint})")
        old, new = self.likelihood.nats, again.likelihood.nats
        if not abs(new - old) <= TOLERANCE * abs(old):
            found.append(f"the figure differs by {new - old:+.4f} nats ({new:.4f}, recorded {old:.4f})")
        return found


def read_record(path: Path) -> Record:
    """Reads a record; raises ValueError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no record of an evaluation: not valid JSON ({error})") from error
    if not isinstance(value, dict) or "likelihood" not in value:
        raise ValueError(f"{path} is no record of an evaluation: it has no likelihood")
    return build_dataclass(Record, value, str(path))


def weights_sha256(folder: Path) -> str:
    """sha256 over the names and bytes of the safetensors files of a model."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
