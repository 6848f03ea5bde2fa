"""What a recipe or a published size costs on a machine, and what to change where it does not fit."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..data import load
from ..data.config import SPLIT
from ..recipe import Recipe, apply_override, blaming, describe, read_recipe
from ..strict import build_dataclass
from ..training.engine.config import TrainingConfig
from ..training.engine.count import Cost, count_step
from ..training.engine.engine import seconds_per_step
from ..training.engine.hardware import Hardware
from ..training.engine.task import Task
from ..training.tasks.codes import IMAGES_AT_ONCE, encode
from ..training.tasks.prior_task import PriorTask
from .machine import UTILISATION, Machine, peak_memory
from .preset import PresetTask
from .stream import with_first_images

STEPS = 3
"""Steps that are measured, after one that is not."""
FEW = 256
"""Images at least, from which labels, captions and steps are taken."""
SHARED = "--strategy fsdp"
"""The option of `train` by which devices share weights, gradients and the state of the optimizer."""
META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class CostPlan:
    """What a training costs.

    name:       of the recipe, or of the model and its preset
    machine:    where it is to run
    batch_size: images of a step on each device
    cost:       of a step on each device
    memory:     bytes at the peak on each device; measured on this machine, with all that the process holds
    seconds:    of a step
    measured:   whether real steps were timed; otherwise the time follows from the peak rate of the devices
    steps:      of the training
    preparing:  seconds to encode the images before the first step; 0 where they are not encoded, or this is not known
    encoding:   seconds to encode an image of a stream, which is not in `preparing`: the number of images is not known
    evaluating: seconds of all evaluations, of a stream each on `evaluation.limit` images; 0 where this is not known
    changes:    what to change where it does not fit, the first being the cheapest
    """

    name: str
    machine: Machine
    batch_size: int
    cost: Cost
    memory: int
    seconds: float
    measured: bool
    steps: int
    preparing: float = 0.0
    encoding: float = 0.0
    evaluating: float = 0.0
    changes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether each device has the memory."""
        return not self.machine.memory or self.memory <= self.machine.memory

    @property
    def hours(self) -> float:
        """Of everything."""
        return (self.preparing + self.steps * self.seconds + self.evaluating) / 3600

    def plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        derived = {"steps_per_second": 1 / self.seconds, "hours": self.hours, "fits": self.fits}
        return asdict(self) | derived

    def lines(self) -> list[tuple[str, str]]:
        """The plan as pairs of a title and a description."""
        cost, machine = self.cost, self.machine
        parts = {f.name: getattr(cost, f.name) for f in fields(cost) if f.name not in ("parameters", "flops")}
        how = "measured" if self.measured else f"at {UTILISATION:.0%} of the peak rate of {machine.devices} devices"
        room = f" of {_bytes(machine.memory)}" if machine.memory else ""
        found = [
            ("parameters", f"{cost.parameters:,}"),
            ("images per step", f"{self.batch_size * machine.devices:,}, {self.batch_size:,} on each device"),
            *((name, _bytes(size)) for name, size in parts.items()),
            ("peak memory", f"{_bytes(self.memory)}{room} on each device" + ("" if self.fits else ": does not fit")),
            ("operations", f"{cost.flops * machine.devices / 1e12:,.3g} TFLOP per step"),
            ("step", f"{self.seconds:.3g} s ({how}), {1 / self.seconds:.3g} steps per second"),
        ]
        for title, seconds in (("encoding", self.preparing), ("evaluating", self.evaluating)):
            found += [(title, f"{seconds / 3600:.3g} hours")] if seconds else []
        if self.encoding:
            each = f"{1000 * self.encoding:.3g} s for each 1,000 images of the stream"
            found.append(("encoding", f"{each}, whose number is not known: not in the total"))
        found.append(("total", f"{self.hours:.3g} hours for {self.steps:,} steps"))
        return found + [("change", change) for change in self.changes]


def plan(
    recipe: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    machine: Machine | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> CostPlan:
    """What a training costs, before it begins: `chainrule plan` in Python.

        plan("parti", preset="20b", machine=Machine(devices=64, memory=80 * 10**9, rate=300e12)).hours

    Args:
        recipe: path of a recipe or the name of one that comes with the package; with a preset, a tokenizer or a prior.
        overrides: such as "training.batch_size=8"; with a preset, of the section `training`.
        preset: a published size.
        machine: with a rate, nothing is computed, and the precision auto is bfloat16; without a rate, or without a
            machine, a few real steps are timed here.
        clock: what times the steps.

    Raises:
        ValueError: as `train`; a preset without the rate of a machine; or a batch that the devices cannot share.
    """
    if preset is not None and (machine is None or not machine.rate):
        raise ValueError("a preset has no data to measure a step with; give the memory and the rate of a device")
    measured = machine is None or not machine.rate
    machine = machine or Machine.this()
    if preset is not None:
        name, task = f"{recipe} {preset}", PresetTask(str(recipe), preset)
        training = _training(overrides)
    else:
        name = describe(recipe, overrides)
        with blaming(name):
            read = read_recipe(recipe, overrides)
            streamed = read.data.stream
            if streamed:
                read = with_first_images(read, _few(read), read.evaluation.batch_size)
            task, full = _small(read).build(META, True)
            training = full.training
    if not measured and training.precision == "auto":
        training = replace(training, precision="bfloat16")
    if training.batch_size % machine.devices:
        raise ValueError(f"batch_size ({training.batch_size}) must be a multiple of the devices ({machine.devices})")
    one = replace(training, batch_size=training.batch_size // machine.devices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the few images that serve here
        cost = count_step(task, one)
    found = CostPlan(
        name=name, machine=machine, batch_size=one.batch_size, cost=cost, memory=cost.peak,
        seconds=cost.flops / (machine.rate * UTILISATION) if machine.rate else 0.0, measured=measured,
        steps=training.steps,
    )  # fmt: skip
    if measured:
        found = _measured(found, read, clock, streamed)
    return found if found.fits else replace(found, changes=_changes(task, one, found))


def _training(overrides: Sequence[str]) -> TrainingConfig:
    """The section `training` of a preset."""
    given: dict[str, Any] = {"training": {}}
    for override in overrides:
        apply_override(given, override)
    if others := [name for name in given if name != "training"]:
        raise ValueError(f"{others[0]!r} would be ignored: of a preset only keys of 'training' can change")
    return build_dataclass(TrainingConfig, given["training"], "", "training")


def _small(recipe: Recipe) -> Recipe:
    """The recipe with a few of its images, so that few are encoded."""
    count, judged = _few(recipe), recipe.evaluation.batch_size
    evaluation = replace(recipe.evaluation, split=_first(recipe.evaluation.split, judged), limit=judged)
    return replace(recipe, data=replace(recipe.data, split=_first(recipe.data.split, count)), evaluation=evaluation)


def _few(recipe: Recipe) -> int:
    """Images of the training split that serve."""
    return max(FEW, 2 * recipe.training.batch_size)


def _first(split: str, count: int) -> str:
    """The first images of a split or of a slice of it, if its ends are counted from the beginning."""
    name, start, stop = SPLIT.fullmatch(split).groups()
    if not all(end is None or end.isdecimal() for end in (start, stop)):
        return split
    first = int(start or 0)
    return f"{name}[{first}:{first + count if stop is None else min(int(stop), first + count)}]"


def _measured(found: CostPlan, recipe: Recipe, clock: Callable[[], float], streamed: bool) -> CostPlan:
    """The plan with what a few real steps and a small evaluation take here; of a stream, images are not counted."""
    fabric = Hardware().fabric()
    fabric.launch()
    task, full = _small(recipe).build(fabric.device, True)
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_per_step(task, full.training, Path(folder), fabric, STEPS, clock)
    with torch.no_grad():
        task.model.eval()
        evaluating = _time(lambda: task.evaluate(task.model, False), clock) / len(task.evaluated(False))
        encoding = 0.0
        if isinstance(task, PriorTask) and task.training_codes:
            images = task.training.images[:IMAGES_AT_ONCE].to(fabric.device)
            encoding = _time(lambda: encode(task.tokenizer, images), clock) / len(images) * len(task.training_codes)
    used = peak_memory() if fabric.device.type == "cpu" else torch.cuda.max_memory_allocated()
    training, held_out = 0, recipe.evaluation.limit
    if not streamed:
        training = len(load(replace(full.data, split=recipe.data.split)))
        held_out = len(load(replace(full.data, split=recipe.evaluation.split, captions="first")))
    times = full.training.steps // recipe.evaluation.every
    return replace(
        found, seconds=seconds, memory=used or found.memory, preparing=encoding * training,
        encoding=encoding if streamed else 0.0,
        evaluating=evaluating * (times * min(recipe.evaluation.limit, held_out) + held_out),
    )  # fmt: skip


def _time(work: Callable[[], object], clock: Callable[[], float]) -> float:
    since = clock()
    work()
    return clock() - since


def _changes(task: Task, training: TrainingConfig, found: CostPlan) -> tuple[str, ...]:
    """What makes a training fit, the cheapest first; `training` is that of one device."""
    size, devices = training.batch_size, found.machine.devices
    room = found.machine.memory - (found.memory - found.cost.peak)
    options: dict[tuple[str, bool], list[Cost]] = {}
    for option in product(dict.fromkeys([training.optimizer, "adamw"]), {training.checkpointing, True}):
        changed = replace(training, optimizer=option[0], checkpointing=option[1], accumulate=1)
        with suppress(ValueError):  # a model whose layers cannot be computed again
            options[option] = [count_step(task, replace(changed, batch_size=images)) for images in (1, 2)]
    changes = []
    for strategy, shards in {"": 1, SHARED: devices}.items() if devices > 1 else [("", 1)]:
        for (optimizer, checkpointing), (one, two) in options.items():
            each = max(0, two.activations - one.activations)
            fixed = one.states / shards + one.activations - each
            parts = next((k for k in range(1, size + 1) if size % k == 0 and fixed + each * size / k <= room), None)
            if parts is None:
                continue
            keys = {"optimizer": optimizer, "checkpointing": checkpointing, "accumulate": parts}
            words = [f"training.{key}={_word(value)}" for key, value in keys.items() if value != getattr(training, key)]
            changes.append(" ".join([strategy, *words] if strategy else words))
    return tuple(changes) or ("a smaller model, or devices with more memory: one image does not fit",)


def _word(value: object) -> str:
    return str(value).lower()


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.3g} GB" if size >= 1e9 else f"{size / 1e6:,.3g} MB"
