"""`fit`: look at a folder, plan, train a tokenizer and a prior, and put the model in one folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..files import write_file, write_folder
from ..recipe import read_recipe
from ..strict import build_dataclass, read_yaml, write_yaml
from ..training import Diverged, TrainResult, load_examples, train
from ..zoo import read_card
from .doctor import Curves, Doctor, Treatment, too_high
from .evaluate import Figures, measure
from .look import look
from .plan import RESERVE, FitPlan, StagePlan, make_plan
from .report import measured, write_report

ATTEMPTS = 3
"""Trainings of a stage at most: the doctor begins one again at most twice."""


def fit(
    folder: str | os.PathLike,
    minutes: float = 60,
    out: str | os.PathLike = "mine",
    *,
    system: str | None = None,
    overrides: Sequence[str] = (),
    plan_only: bool = False,
    quiet: bool = False,
) -> Path | None:
    """Trains a model on a folder of pictures in a given time; the same call resumes one that was stopped.

        chainrule.fit("pictures", minutes=60)

    In `out` are report.html, fit.json (what was found and planned), tokenizer.yaml and prior.yaml (recipes that `train`
    runs), the folders tokenizer and prior (their runs), figures.json, doctor.json where the doctor spoke, pictures, and
    model.

    Args:
        folder: a folder, zip or tar file of pictures, perhaps in a folder per class, perhaps with captions.
        minutes: for everything, from the first look to the last evaluation; a forecast, not a limit.
        out: see above.
        system: key of a system of the timeline; by default parti where most pictures have captions, else
            rq_transformer.
        overrides: such as "data.size=32" or "prior.width=64"; those of `data`, `training` and `evaluation` are for
            both recipes.
        plan_only: whether to print the plan only, and to write nothing.
        quiet: whether to print nothing.

    Returns:
        The folder of the model, or None with `plan_only`.

    Raises:
        ValueError: no pictures, values that do not go together, or an `out` that holds something else.
        KeyboardInterrupt: a training was stopped by a signal, and is saved.
    """
    if not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    wish = {
        "folder": str(Path(folder).expanduser().resolve()), "minutes": minutes, "system": system,
        "overrides": list(overrides),
    }  # fmt: skip
    out = Path(out)
    plan, known = _kept(out, wish), True
    if plan is None:
        since, known = time.monotonic(), False
        plan = make_plan(*look(folder), wish)
        _say(f"Found in {plan.look.source}", plan.look.lines(), quiet)
        seconds = f"{time.monotonic() - since:.1f} s"
        _say("Plan", [*plan.lines(), ("looked and planned", seconds)], quiet)
    if plan_only:
        return None
    if not known:
        write_file(out / "fit.json", json.dumps(plan.plain(), indent=1).encode())
    doctor = Doctor(out / "doctor.json", quiet)
    results = _train(plan, out, doctor, quiet)
    best = min(results, key=lambda result: result.metrics.get("nats", math.inf)).folder
    write_folder(out / "model", lambda target: shutil.copytree(best / "model", target, dirs_exist_ok=True))
    figures = _figures(plan, results, best, out)
    if figures.detail is not None:
        doctor.judge_decoder("tokenizer", figures.detail)
    curves = {run.name: Curves.read(run) for run in _runs(plan.stages, out)}
    page = write_report(plan, figures, curves, doctor.notes, out / "pictures")
    write_file(out / "report.html", page.encode())
    _say("Measured", measured(figures), quiet)
    return out / "model"


def _kept(out: Path, wish: dict[str, Any]) -> FitPlan | None:
    """The plan in a folder, if there is one.

    Raises:
        ValueError: the folder holds something else, or a fit of another wish.
    """
    file = out / "fit.json"
    if not file.is_file():
        if out.exists() and (not out.is_dir() or any(not child.name.startswith(".") for child in out.iterdir())):
            raise ValueError(f"{out} exists and holds no fit (it has no fit.json); choose another folder")
        return None
    plan = FitPlan.from_plain(json.loads(file.read_text(encoding="utf-8")))
    for name, value in wish.items():
        if plan.wish[name] != value:
            raise ValueError(f"{out} holds a fit with {name} {plan.wish[name]!r}, not {value!r}; choose another folder")
    return plan


def _say(heading: str, lines: Sequence[tuple[str, str]], quiet: bool) -> None:
    if not quiet:
        print("\n".join([f"{heading}:", *(f"  {title:<18} {text}" for title, text in lines)]), flush=True)


def _figures(plan: FitPlan, results: Sequence[TrainResult], best: Path, out: Path) -> Figures:
    """The figures that are in the folder, or new ones."""
    file = out / "figures.json"
    if file.is_file():
        return build_dataclass(Figures, json.loads(file.read_text(encoding="utf-8")), str(file))
    recipe = read_recipe(best / "recipe.yaml")
    models = {result.folder.name: result.folder / "model" for result in results if "nats" in result.metrics}
    examples = load_examples(recipe.data, recipe.evaluation)
    figures = measure(models, best.name, examples, plan.wish["minutes"], out / "pictures")
    write_file(file, json.dumps(asdict(figures), indent=1, ensure_ascii=False).encode())
    return figures


def _train(plan: FitPlan, out: Path, doctor: Doctor, quiet: bool) -> list[TrainResult]:
    """Trains the stages one after the other."""
    results: list[TrainResult] = []
    tokenizer = plan.bundled
    for stage in plan.stages:
        if tokenizer is not None:
            stage = stage.with_tokenizer(tokenizer)
        result = _train_stage(_within(plan, stage, out), out, doctor, quiet)
        results.append(result)
        if stage.name == "tokenizer":
            tokenizer = str((result.folder / "model").resolve())
    return results


def _train_stage(stage: StagePlan, out: Path, doctor: Doctor, quiet: bool) -> TrainResult:
    """Trains a stage, anew where the doctor says so; a recipe that is in the folder stays as it is."""
    for attempt in range(1, ATTEMPTS + 1):
        name = _attempt(stage, attempt)
        file, following = out / f"{name}.yaml", out / f"{_attempt(stage, attempt + 1)}.yaml"
        if not file.is_file():
            write_file(file, write_yaml(stage.recipe))
        stage = replace(stage, recipe=read_yaml(file))
        if following.is_file():
            continue

        def watch(step: int, metrics: object, run: Path = out / name, steps: int = stage.steps) -> None:
            doctor.watch(run.name, Curves.read(run), step, steps)

        try:
            result = train(file, out / name, quiet=quiet, watch=watch if attempt < ATTEMPTS else None)
        except Diverged as error:
            if attempt == ATTEMPTS:
                raise
            treatment = too_high(str(error).split(";")[0], 0, stage.steps)
        except Treatment as found:
            treatment = found
        else:
            if result.interrupted:
                raise KeyboardInterrupt
            doctor.look_back(name, Curves.read(out / name))
            return result
        doctor.say(name, str(treatment))
        rate = read_yaml(out / name / "recipe.yaml")["training"]["learning_rate"] * treatment.rate
        again = stage.with_steps(treatment.steps).recipe
        write_file(following, write_yaml(again | {"training": again["training"] | {"learning_rate": rate}}))
    raise AssertionError("the last attempt returns or raises")


def _attempt(stage: StagePlan, number: int) -> str:
    return stage.name if number == 1 else f"{stage.name}-{number}"


def _runs(stages: Sequence[StagePlan], out: Path) -> dict[Path, StagePlan]:
    """The folders of the trainings of some stages that have saved a model, in their order, with their stages."""
    runs = {out / _attempt(stage, number): stage for stage in stages for number in range(1, ATTEMPTS + 1)}
    return {run: stage for run, stage in runs.items() if (run / "model").is_dir()}


def _within(plan: FitPlan, stage: StagePlan, out: Path) -> StagePlan:
    """A stage with the steps for which there is time after the earlier stages took theirs."""
    earlier = plan.stages[: [one.name for one in plan.stages].index(stage.name)]
    if not earlier or "training.steps" in stage.given:
        return stage
    cards = [(one.seconds, read_card(str(run / "model"))) for run, one in _runs(earlier, out).items()]
    taken = 60 * sum(card["minutes"] for _, card in cards)
    expected = sum(seconds * card["steps"] for seconds, card in cards)
    left = plan.wish["minutes"] * 60 * (1 - RESERVE) - taken
    return stage.with_steps(max(1, int(left / (stage.seconds * max(taken / expected, 0.1)))))
