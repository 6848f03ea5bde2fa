"""`timeline`: the eight systems on the same images, trained where no trained model is at hand, and measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data import DataConfig, load
from ..files import write_file
from ..saving.hub import find
from ..saving.model import read_model
from ..strict import build_dataclass, write_yaml
from ..training import train
from .measure import FULL, QUICK, Scale, measure_system
from .page import write_html, write_markdown
from .results import SystemResult
from .systems import BUNDLED_RERANKER, RERANKER, SYSTEMS, TOKENIZER, Stage, System


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which images, at which sizes, and how much is trained and measured.

    data:       a folder, a hub id, "emoji" or "shapes"
    pixel_size: height and width of the images for models of pixels
    size:       height and width for the others
    splits:     the images for training and for evaluation
    bundled:    whether bundled models are measured where there are any
    effort:     factor of all training steps
    scale:      how much is measured
    """

    data: str
    pixel_size: int
    size: int
    splits: tuple[str, str]
    bundled: bool
    effort: float
    scale: Scale

    def section(self, system: System) -> dict[str, Any]:
        """The section `data` of the recipes of a system."""
        size = self.pixel_size if system.pixels else self.size
        return {"source": self.data, "size": size, "channels": 3, "split": self.splits[0]}


def timeline(
    out: str | os.PathLike,
    data: str | None = None,
    *,
    quick: bool = False,
    size: int | None = None,
    effort: float = 1.0,
    systems: Sequence[str] = (),
) -> Path:
    """Measures the systems of the timeline and writes `index.html` and `timeline.md`; resumes where it stopped.

        from chainrule.timeline import timeline

        timeline("runs/timeline", quick=True)

    Without `data` and `quick`, the bundled models of emoji are measured, at 64x64; systems without one are trained.

    Args:
        out: a folder for the page, the trained models, the pictures and the figures.
        data: your images: a folder or a hub id; all systems are then trained on them.
        quick: all systems are trained on the drawn scenes of `shapes`, or on `data`, and little is measured.
        size: height and width of the images, a multiple of 8; models of pixels take half of it.
        effort: factor of all training steps.
        systems: only these, such as "vqgan"; default: all.

    Returns:
        The page.

    Raises:
        ValueError: an unknown system, a size that the tokenizers cannot take, or images that cannot be loaded.
    """
    known = [system.key for system in SYSTEMS]
    for name in systems:
        if name not in known:
            raise ValueError(f"there is no system {name!r}; the systems are {', '.join(known)}")
    if size is not None and (size < 16 or size % 8):
        raise ValueError(f"size must be a multiple of 8 from 16 up, got {size}")
    if effort <= 0:
        raise ValueError(f"effort must be above 0, got {effort}")
    plan = _plan(data, quick, size, effort)
    folder, results, reasons = Path(out), {}, {}
    for system in SYSTEMS:
        if systems and system.key not in systems:
            continue
        reason = _obstacle(system, plan)
        if reason is None:
            results[system.key] = _result(system, plan, folder)
        else:
            reasons[system.title] = reason
    introduction = _introduction(plan, reasons)
    page = folder / "index.html"
    write_file(page, write_html(results, folder / "pictures", introduction).encode())
    write_file(folder / "timeline.md", write_markdown(results, introduction).encode())
    return page


def _plan(data: str | None, quick: bool, size: int | None, effort: float) -> Plan:
    if data is None and not quick:
        if size not in (None, 64):
            raise ValueError(f"the bundled models of emoji draw 64x64 images, so size cannot be {size}")
        return Plan(
            data="emoji", pixel_size=32, size=64, splits=("train", "test"), bundled=True, effort=effort, scale=FULL
        )  # fmt: skip
    size, splits, scale = size or 32, ("train[:5000]", "test[:256]"), QUICK
    if data is not None:
        splits, scale = ("train", "test"), replace(QUICK, samples=256 if quick else 1000, against="train")
    return Plan(
        data=data or "shapes", pixel_size=size // 2, size=size, splits=splits, bundled=False, effort=effort, scale=scale
    )  # fmt: skip


def _obstacle(system: System, plan: Plan) -> str | None:
    """Why a system cannot be trained on the images, if it cannot."""
    if system.wants == "caption" and load(_config(system, plan)).texts is None:
        return "the images have no captions"
    return None


def _config(system: System, plan: Plan) -> DataConfig:
    return build_dataclass(DataConfig, plan.section(system), "data")


def _result(system: System, plan: Plan, folder: Path) -> SystemResult:
    """The figures of a system: those kept in the folder, or new ones."""
    file = folder / "figures" / f"{system.key}.json"
    if file.is_file():
        return build_dataclass(SystemResult, json.loads(file.read_text(encoding="utf-8")), str(file))
    stages = _bundled(system.bundled) if plan.bundled and system.bundled else _train(system, plan, folder)
    reranker = _reranker(system, plan, folder) if system.wants == "caption" else None
    pictures = folder / "pictures" / system.key
    result = measure_system(system, stages, reranker, None if plan.bundled else plan.data, plan.scale, pictures)
    write_file(file, json.dumps(asdict(result), indent=1).encode())
    return result


def _bundled(name: str) -> list[str]:
    """A bundled model after the tokenizer that it was trained on."""
    tokenizer = read_model(find(name)).tokenizer.weights
    return [tokenizer, name] if tokenizer else [name]


def _train(system: System, plan: Plan, folder: Path) -> list[str]:
    """Trains the stages of a system one after the other; the folders of their models.

    Raises:
        KeyboardInterrupt: Ctrl-C during a training, which is saved; the same call resumes it.
    """
    labelled = system.wants == "label" and load(_config(system, plan)).num_classes is not None
    models: list[str] = []
    for index, stage in enumerate(system.stages):
        name = f"{system.key}-{index + 1}" if len(system.stages) > 1 else system.key
        models.append(_train_stage(name, _recipe(stage, plan, system, models, labelled), folder))
    return models


def _reranker(system: System, plan: Plan, folder: Path) -> str:
    """What chooses among samples of a system that reads captions: bundled, or trained on the same images."""
    if plan.bundled:
        return BUNDLED_RERANKER
    return _train_stage("reranker", _recipe(RERANKER, plan, system, [], False), folder)


def _train_stage(name: str, recipe: Mapping[str, Any], folder: Path) -> str:
    """Trains a recipe; the folder of the model.  Errors as `_train`."""
    path = folder / "recipes" / f"{name}.yaml"
    write_file(path, write_yaml(recipe).encode())
    result = train(path, folder / "runs" / name)
    if result.interrupted:
        raise KeyboardInterrupt
    return str(result.folder / "model")


def _recipe(stage: Stage, plan: Plan, system: System, before: list[str], labelled: bool) -> dict[str, Any]:
    """A stage as a recipe: with the images, the tokenizer of the stage before, and the classes of the images."""
    recipe = {"data": plan.section(system), **stage, "evaluation": {"split": plan.splits[1]}}
    training = dict(stage["training"])
    training["steps"] = max(1, round(training["steps"] * plan.effort))
    recipe["training"] = training
    if stage.get("tokenizer", {}).get("path") == TOKENIZER:
        recipe["tokenizer"] = {"path": before[-1]}
    if labelled and "prior" in stage:
        recipe["prior"] = {**stage["prior"], "num_classes": "data"}
        training["label_dropout"] = 0.1
    return recipe


def _introduction(plan: Plan, reasons: Mapping[str, str]) -> str:
    text = (
        f"All systems on {plan.data}: images of {plan.pixel_size}x{plan.pixel_size} for models of pixels and of "
        f"{plan.size}x{plan.size} for the others. Fréchet distances compare {plan.scale.samples:,} samples with the "
        "training images. Seconds were measured on this machine while nothing else was said to run."
    )
    return text + "".join(f" {title} is missing: {reason}." for title, reason in reasons.items())
