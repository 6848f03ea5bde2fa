"""From a recipe to a trained model in a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..core import entry
from ..files import write_file
from ..recipe import TrainingConfig, read_recipe
from ..strict import read_yaml, to_plain, write_yaml
from .engine.engine import TrainResult, train
from .engine.hardware import Hardware
from .tasks.classifier import classifier_task
from .tasks.prior import prior_task
from .tasks.reranker import contrastive_task
from .tasks.tokenizer import tokenizer_task
from .tasks.upscaler import super_resolution_task

MAY_DIFFER = {"steps", "save_every", "log_every", "sample_every"}
"""Keys of the section `training` that may be changed when a run is resumed."""


def fit(
    recipe: str | os.PathLike,
    out: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    resume: bool = True,
    hardware: Hardware = Hardware(),
    quiet: bool = False,
) -> TrainResult:
    """Trains a recipe's classifier, reranker or super-resolution, its prior or, without these, its tokenizer.  A run in
    `out` goes on.

    Args:
        recipe: path of a recipe, or the name of one that comes with the package.
        out: folder of the run, made if need be.
        overrides: such as "training.steps=200".
        resume: False refuses a folder that holds a run.
        hardware: where to train.
        quiet: whether to print nothing.

    Returns:
        The outcome; `interrupted` is set when SIGINT or SIGTERM stopped it, and a command should then exit
        with 130.

    Raises:
        ValueError: a mistake in the recipe, a folder that holds something else or a run of another recipe,
            or a loss that is not finite.
    """
    folder = Path(out)
    fabric = hardware.fabric()
    fabric.launch()
    recipe = read_recipe(recipe, overrides)
    with fabric.rank_zero_first(local=True):  # the first fills the cache of images and codes, the others find them
        if recipe.classifier is not None:
            task, plain = classifier_task(recipe)
        elif recipe.reranker is not None:
            task, plain = contrastive_task(recipe)
        elif recipe.super_resolution is not None:
            task, plain = super_resolution_task(recipe)
        else:
            task, plain = prior_task(recipe, fabric.device, quiet) if recipe.prior else tokenizer_task(recipe)
    check_folder(folder, plain, resume)
    fabric.barrier()
    if fabric.is_global_zero:
        write_file(folder / "recipe.yaml", write_yaml(plain))
    return train(task, recipe.training, folder, recipe.evaluation.every, fabric, quiet)


def check_folder(folder: Path, plain: Mapping[str, Any], resume: bool) -> None:
    """Raises ValueError unless the folder is free, or holds a run of the recipe `plain`."""
    if not folder.exists():
        return
    if folder.is_dir() and all(child.name == ".recipe.yaml.tmp" for child in folder.iterdir()):
        return
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder} exists and is not a run (it has no recipe.yaml); choose another folder")
    if not resume:
        raise ValueError(f"{folder} already holds a run; choose another folder, or resume it")
    changed = _difference(read_yaml(folder / "recipe.yaml"), plain)
    if changed:
        raise ValueError(f"{folder} holds a run of another recipe: {changed}; choose another folder")


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first key that differs and may not, in words; empty if there is none."""
    for section in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(section) or {}, new.get(section) or {}
        before = _defaults(section, after) | before  # what an older version did not write down was as the defaults are
        for key in [*before, *(key for key in after if key not in before)]:
            if section == "training" and key in MAY_DIFFER:
                continue
            if before.get(key) != after.get(key):
                return f"{section}.{key} was {before.get(key)!r} and is {after.get(key)!r}"
    return ""


def _defaults(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a section of a recipe, as plain values; {} where it has none of its own."""
    if section in ("tokenizer", "prior") and "name" in values:
        config = entry(f"{section}s", values["name"]).config
    elif section == "training":
        config = TrainingConfig
    else:
        return {}
    return {f.name: to_plain(f.default) for f in fields(config) if f.default is not MISSING}
