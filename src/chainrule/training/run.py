"""From a recipe to a trained model in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..core import entry
from ..files import owned, write_file, write_folder
from ..recipe import Recipe, blaming, describe, read_recipe, section_defaults
from ..strict import read_yaml, to_plain, write_yaml
from .engine.engine import TrainResult, Watch, seconds_per_step, train_task
from .engine.hardware import Hardware

MAY_DIFFER = {
    "training": {"steps", "accumulate", "checkpointing", "logger", "save_every", "log_every", "sample_every"},
    "data": {"source"},
}
"""Keys that may be changed when a run is resumed; a source that has moved is known by its fingerprints."""


def train(
    recipe: str | os.PathLike,
    out: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    resume: bool = True,
    hardware: Hardware = Hardware(),
    quiet: bool = False,
    watch: Watch | None = None,
) -> TrainResult:
    """Trains what a recipe says, or resumes the run of this recipe in `out`: `chainrule train` in Python.

        chainrule.train("shapes_vqvae", "runs/shapes_vqvae", ["training.steps=200"])

    Args:
        recipe: path of a recipe, or the name of one that comes with the package.
        out: folder of the run, made if need be.
        overrides: such as "training.steps=200".
        resume: False refuses a folder that holds a run.
        hardware: where to train.
        quiet: whether to print nothing.
        watch: called after each evaluation but the last with the steps taken and the metrics; what it raises ends the
            run, as a kill would.

    Returns:
        The outcome; `interrupted` is set when SIGINT or SIGTERM stopped it, and a command should then exit
        with 130.

    Raises:
        ValueError: a mistake in the recipe, a folder that holds something else, a run of another recipe or one that
            another process trains.
        Diverged: a loss that is not finite; it is a ValueError.
        OSError: the folder cannot be written.
    """
    folder = Path(out)
    wanted = read_recipe(recipe, overrides)
    fabric = hardware.fabric()
    fabric.launch()
    # The first process fills the cache; a stream they encode together.
    one_by_one = nullcontext() if wanted.data.stream else fabric.rank_zero_first(local=True)
    with blaming(describe(recipe, overrides)), one_by_one:
        task, full = wanted.build(fabric.device, quiet)
    plain, data = full.plain(), task.identity()
    check_folder(folder, plain, resume)
    with _alone(folder, fabric):
        check_folder(folder, plain, resume)  # again: another run may have begun and ended
        check_data(folder, data)
        fabric.barrier()
        if fabric.is_global_zero:
            write_file(folder / "recipe.yaml", write_yaml(plain))
            write_file(folder / "data.yaml", write_yaml(data))
            for note in () if quiet else task.notes:
                print(note)
        return train_task(task, full.training, folder, full.evaluation.every, fabric, quiet, watch)


def time_steps(recipe: Recipe, folder: Path, count: int = 2) -> float:
    """Seconds of a step of a recipe, measured by `count` real ones; its model is written into `folder`.

    Raises:
        ValueError: images, models or values that do not go together.
    """
    fabric = Hardware().fabric()
    fabric.launch()
    task, full = recipe.build(fabric.device, True)
    seconds = seconds_per_step(task, full.training, folder, fabric, count)
    write_folder(folder, lambda target: task.save(task.model, target, {}))
    return seconds


@contextmanager
def _alone(folder: Path, fabric: Any) -> Iterator[None]:
    """Keeps other runs out of a folder; every process of a run raises ValueError or OSError where it cannot have it."""
    with ExitStack() as stack:
        refused = None
        if fabric.is_global_zero:
            try:
                stack.enter_context(owned(folder))
            except (OSError, ValueError) as error:
                refused = error
        refused = fabric.broadcast(refused)
        if refused is not None:
            raise refused
        yield


def check_folder(folder: Path, plain: Mapping[str, Any], resume: bool) -> None:
    """Raises ValueError unless the folder is free, or holds a run of the recipe `plain`."""
    if not folder.exists():
        return
    if folder.is_dir() and all(child.name in (".recipe.yaml.tmp", ".lock") for child in folder.iterdir()):
        return
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder} exists and is not a run (it has no recipe.yaml); choose another folder")
    if not resume:
        raise ValueError(f"{folder} already holds a run; choose another folder, or resume it")
    changed = _difference(read_yaml(folder / "recipe.yaml"), plain)
    if changed:
        raise ValueError(f"{folder} holds a run of another recipe: {changed}; choose another folder")


def check_data(folder: Path, data: Mapping[str, Any]) -> None:
    """Raises ValueError unless the run in a folder, if there is one, began with these data (`Task.identity`)."""
    if not (folder / "data.yaml").is_file():
        return
    before = read_yaml(folder / "data.yaml")
    for name, now in data.items():
        if before.get(name) != now:
            was, new = (", ".join(one) if isinstance(one, list) else one for one in (before.get(name), now))
            raise ValueError(
                f"the data have changed since the run in {folder} began ({name}: {was}, now {new}); put back images, "
                "labels, captions and names of classes, or begin a run in another folder"
            )


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first key that differs and may not, in words; empty if there is none."""
    for section in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(section) or {}, new.get(section) or {}
        defaults = _defaults(section, after)  # what an older version did not write down was as the defaults are
        before = {key: value for key, value in defaults.items() if key in after} | before
        for key in [*before, *(key for key in after if key not in before)]:
            if key in MAY_DIFFER.get(section, ()):
                continue
            if before.get(key) != after.get(key):
                return f"{section}.{key} was {before.get(key)!r} and is {after.get(key)!r}"
    return ""


def _defaults(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a section of a recipe, as plain values; {} where it has none of its own."""
    if section not in ("tokenizer", "prior"):
        return section_defaults(section)
    config = entry(f"{section}s", values["name"]).config if "name" in values else None
    return {f.name: to_plain(f.default) for f in fields(config) if f.default is not MISSING} if config else {}
