"""What `fit` trains on a folder: one of the systems of the timeline, of the size that the time allows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import cache
from ..data.images import decode
from ..evaluation import load_features, psnr
from ..files import write_file
from ..images import to_pil
from ..pictures import png
from ..planning import peak_memory
from ..recipe import apply_override, build_recipe, find_recipe
from ..strict import build_dataclass, read_yaml
from ..timeline.systems import SYSTEMS, TOKENIZER, System
from ..training import time_steps
from ..zoo import load_tokenizer
from .look import Example, Look

FEW = 2000
"""Below this many pictures, a bundled tokenizer and prior are tried."""
FINE_TUNING_RATE = 5e-4
"""Learning rate of a bundled prior that is trained further: a quarter of what a new one gets."""
ENOUGH_PSNR = 21.0
"""dB, mean over the examples, from which a bundled tokenizer is taken."""
FROM_NOTHING = "prior-from-nothing"
RESIZED = {"crop": "cut to a square", "pad": "padded with white to a square", "stretch": "stretched to a square"}
"""What `data.resize` means for pictures of another shape."""
RESERVE = 0.1
"""Share of the whole time for loading, evaluating and the report."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A training to come.

    name:    of its recipe and of its run: "tokenizer", "prior", or "prior-from-nothing", with which a prior that began
             as a bundled one is compared
    recipe:  all sections; the prior's tokenizer is in the run beside it, see `with_tokenizer`
    seconds: of a step, measured
    given:   keys that the user has given, such as "training.save_every": they stay
    """

    name: str
    recipe: dict[str, Any]
    seconds: float
    given: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Steps that the recipe asks for."""
        return self.recipe["training"]["steps"]

    @property
    def model(self) -> str:
        """The name of what is trained, registered or bundled."""
        section = self.recipe["prior" if "prior" in self.recipe else "tokenizer"]
        return section.get("name") or section["path"]

    def with_steps(self, steps: int) -> StagePlan:
        """The stage with another number of steps; evaluations and checkpoints follow."""
        every = {
            "training": {
                "save_every": max(1, round(60 / self.seconds)),
                "log_every": max(1, steps // 100),
                "sample_every": 0,
            },
            "evaluation": {"every": max(1, steps // 10), "limit": 500},
        }
        recipe = {
            name: self.recipe[name] | {k: v for k, v in values.items() if f"{name}.{k}" not in self.given}
            for name, values in every.items()
        }
        return replace(self, recipe=self.recipe | recipe | {"training": recipe["training"] | {"steps": steps}})

    def with_tokenizer(self, path: str) -> StagePlan:
        """The stage with the tokenizer of a folder, if it needs one."""
        needs = self.recipe.get("tokenizer", {}).get("path") == TOKENIZER
        return replace(self, recipe=self.recipe | {"tokenizer": {"path": path}}) if needs else self


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """What was found in a folder, and what will be trained on it.

    wish:      what the user asked for; a fit is resumed only for the same
    system:    key of a system of the timeline
    condition: "label", "caption" or "nothing"
    stages:    trainings one after the other
    bundled:   name of a bundled tokenizer that is used, or None
    notes:     sentences about choices that are not plain
    memory:    bytes of this process after the measured steps, or 0 where the system does not say
    """

    wish: dict[str, Any]
    look: Look
    system: str
    condition: str
    stages: tuple[StagePlan, ...]
    bundled: str | None
    notes: tuple[str, ...]
    memory: int

    def plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> FitPlan:
        """The plan of what `plain` gave."""
        return build_dataclass(cls, plain, "fit.json")

    def lines(self) -> list[tuple[str, str]]:
        """The plan as pairs of a title and a description."""
        look, colour = self.look, "grey" if self.look.channels == 1 else "colour"
        data = self.stages[0].recipe["data"] if self.stages else {}
        found = [
            ("image size", f"{look.size}x{look.size}, {colour}, {RESIZED[data.get('resize', 'crop')]}"),
            ("system", next(system.title for system in SYSTEMS if system.key == self.system)),
            ("conditioned on", self.condition),
        ]
        for stage in self.stages:
            minutes = stage.steps * stage.seconds / 60
            text = f"{stage.model}, {stage.steps:,} steps of {stage.seconds:.2f} s (measured): {minutes:.1f} minutes"
            found.append((stage.name, text))
        if self.memory:
            found.append(("memory", f"about {(self.memory + look.count * 3 * look.size**2) / 2**30:.1f} GiB"))
        return found + [("note", sentence) for sentence in self.notes]


def make_plan(look: Look, examples: Sequence[Example], wish: Mapping[str, Any]) -> FitPlan:
    """The plan for a folder; a few real steps of each model are timed.

    Args:
        look, examples: see `look`.
        wish: folder, minutes, system (or None) and overrides, a list of "section.key=value".

    Raises:
        ValueError: an unknown system, one that reads captions where there are none, or wrong overrides.
    """
    system, overrides = _system(wish["system"], look), wish["overrides"]
    if system.pixels:
        look = replace(look, size=min(look.size, 32))
    size = _recipe(system.stages[0], look, system, overrides)["data"]["size"]
    if not isinstance(size, int):
        raise ValueError(f"data.size must be one number, the height and width, got {size}")
    look = replace(look, size=size)
    recipes = [_recipe(stage, look, system, overrides) for stage in _stages(system, overrides, size)]
    seconds, notes = wish["minutes"] * 60 * (1 - RESERVE), _without_weights(recipes)
    with cache.scratch() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the examples, not about the folder
        images = _write_examples(scratch / "examples", examples, look, recipes[0]["data"].get("resize", "crop"))
        own = any(override.startswith("tokenizer.") for override in overrides)
        bundled, tried = (None, "") if own else _bundled(system, look, images)
        if bundled:
            recipes = _from_bundled(system, look, overrides)
        stages = _timed(recipes, scratch, bundled, seconds, overrides)
    notes += [tried] if tried else []
    if len(recipes) > 1 and bundled:
        notes.append("half of the time trains a prior from nothing, and the better of the two is the model")
    return FitPlan(
        wish=dict(wish), look=look, system=system.key, condition=_condition(system, look), stages=tuple(stages),
        bundled=bundled, notes=tuple(notes), memory=peak_memory(),
    )  # fmt: skip


def _system(key: str | None, look: Look) -> System:
    key = key or ("parti" if look.captions > look.count / 2 else "rq_transformer")
    found = {system.key: system for system in SYSTEMS}
    if key not in found:
        raise ValueError(f"there is no system {key!r}; the systems are {', '.join(found)}")
    if found[key].wants == "caption" and not look.captions:
        raise ValueError(f"{found[key].title} reads captions, and the pictures have none; choose another system")
    return found[key]


def _condition(system: System, look: Look) -> str:
    return "nothing" if system.wants == "label" and len(look.classes) < 2 else system.wants


def _stages(system: System, overrides: Sequence[str], size: int) -> Sequence[Mapping[str, Any]]:
    """The stages of a system: the recipes of its bundled model, if that is for images of this size, or else those of
    the timeline, which are smaller.  Where the user changes the models, those of the timeline are what changes."""
    if not system.bundled or any(override.startswith(("tokenizer.", "prior.")) for override in overrides):
        return system.stages
    tokenizer, prior = _bundled_stages(system)
    return (tokenizer, prior) if prior["data"]["size"] == size else system.stages


def _bundled_stages(system: System) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The recipes of the tokenizer and of the prior of a system's bundled model."""
    prior = read_yaml(find_recipe(system.bundled))
    return read_yaml(find_recipe(prior["tokenizer"]["path"])), prior | {"tokenizer": {"path": TOKENIZER}}


def _without_weights(recipes: Sequence[dict[str, Any]]) -> list[str]:
    """Takes the perceptual loss out of recipes where the weights of its network are not installed, and says so."""
    found = []
    for losses in [recipe["losses"] for recipe in recipes if "perceptual" in recipe.get("losses", {})]:
        try:
            load_features(losses["perceptual"]["network"])
        except ValueError as error:
            del losses["perceptual"]
            found.append(f"the tokenizer is trained without a perceptual loss, and will be less sharp: {error}")
    return found


def _from_bundled(system: System, look: Look, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The trainings on a bundled tokenizer: of a new prior, then of the bundled prior, with other classes.

    The bundled prior is for images of one size, and for a user who changes nothing of it.
    """
    _, stage = _bundled_stages(system)
    new = _recipe(stage, look, system, overrides)
    if stage["data"]["size"] != look.size or any(one.startswith(("prior.", "text.")) for one in overrides):
        return [new]
    begun = {"path": system.bundled}
    if system.wants == "label":
        begun["num_classes"] = new["prior"].get("num_classes", 0)
    own = any(override.startswith("training.learning_rate=") for override in overrides)
    training = new["training"] | ({} if own else {"learning_rate": FINE_TUNING_RATE})
    return [new, {name: new[name] for name in ("data", "evaluation")} | {
        "prior": begun, "training": training,
    }]  # fmt: skip


def _recipe(stage: Mapping[str, Any], look: Look, system: System, overrides: Sequence[str]) -> dict[str, Any]:
    """A stage as a recipe for the pictures of a folder.

    Raises:
        ValueError: an override of a section that neither stage has.
    """
    recipe = deepcopy({name: section for name, section in stage.items() if name not in ("data", "evaluation")})
    recipe |= {"data": {"source": look.source, "split": look.split, "size": look.size, "channels": look.channels}}
    recipe |= {"evaluation": {"split": look.held_out}}
    dropped = ("precision", "label_dropout")
    recipe["training"] = {key: value for key, value in recipe["training"].items() if key not in dropped}
    recipe["training"] |= {"compile": False}
    if "prior" in recipe:
        recipe["prior"].pop("num_classes", None)
        if _condition(system, look) == "label":
            recipe["prior"]["num_classes"] = "data"
            recipe["training"]["label_dropout"] = 0.1
    mine = ("prior", "text") if "prior" in recipe else ("tokenizer", "losses")
    for override in overrides:
        part = override.split(".")[0]
        if part not in ("data", "training", "evaluation", "prior", "text", "tokenizer", "losses"):
            raise ValueError(f"{override!r} would be ignored; fit knows data, tokenizer, losses, prior, text, training")
        if part in ("data", "training", "evaluation", *mine):
            apply_override(recipe, override)
    if adversarial := recipe.get("losses", {}).get("adversarial"):  # small images need a smaller discriminator
        adversarial.setdefault("num_layers", 2 if look.size < 32 else 3)
    return recipe


def _write_examples(folder: Path, examples: Sequence[Example], look: Look, resize: str) -> Tensor:
    """Writes examples as a folder that recipes read; the images that could be decoded, uint8 (N, C, H, W)."""
    images = []
    for index, example in enumerate(examples):
        try:
            picture = decode(example.source, (look.size, look.size), look.channels, resize)
            images.append(torch.from_numpy(picture.pixels))
        except Exception:  # whatever Pillow raises on a damaged file, which training names
            continue
        label = "" if len(look.classes) < 2 else str(example.label)
        for split in ("train", "test") if index < 2 else ("train",):
            path = folder / split / label / f"{index}.png"
            write_file(path, png(to_pil(images[-1][None])[0]))
            if look.captions:
                write_file(path.with_suffix(".txt"), (example.text or "picture").encode())
    if not images:
        raise ValueError(f"no picture of {look.source} can be decoded")
    return torch.stack(images)


def _bundled(system: System, look: Look, images: Tensor) -> tuple[str | None, str]:
    """The bundled tokenizer of a system, if it keeps enough of a small collection, and a sentence about it."""
    if look.count >= FEW or not system.bundled:
        return None, ""
    name = read_yaml(find_recipe(system.bundled))["tokenizer"]["path"]
    tokenizer = load_tokenizer(name)
    if tokenizer.image_shape[0] != images.shape[1]:
        return None, ""
    try:
        tokenizer = tokenizer.at_size(*images.shape[2:])
    except ValueError:  # a size that it cannot have
        return None, ""
    with torch.no_grad():
        value = psnr(images, tokenizer.decode(tokenizer.encode(images))).mean().item()
    good = value >= ENOUGH_PSNR
    verdict = "it is used" if good else "a new one is trained"
    return name if good else None, f"{name} reconstructs with {value:.1f} dB, {ENOUGH_PSNR:.0f} are needed: {verdict}"


def _timed(
    recipes: Sequence[dict], scratch: Path, bundled: str | None, seconds: float, overrides: Sequence[str]
) -> list[StagePlan]:  # fmt: skip
    """The recipes with the steps that the time allows, each the same multiple of its own, if the user gives none."""
    tokenizer, measured, given = bundled, [], tuple(override.split("=")[0].strip() for override in overrides)
    for number, recipe in enumerate(recipes):
        data = recipe["data"] | {"source": str(scratch / "examples"), "split": "train"}
        sample = recipe | {"data": data, "evaluation": {"split": "test"}}
        if sample.get("tokenizer", {}).get("path") == TOKENIZER:
            sample["tokenizer"] = {"path": tokenizer}
        measured.append(time_steps(build_recipe(sample, "the planned recipe"), scratch / str(number)))
        tokenizer = tokenizer or str(scratch / str(number))
    own = [recipe["training"]["steps"] for recipe in recipes]
    factor = 1 if "training.steps" in given else seconds / sum(map(mul, own, measured))
    return [
        StagePlan(name=_name(recipe, recipes), recipe=recipe, seconds=each, given=given).with_steps(
            max(1, int(factor * steps))
        )
        for recipe, each, steps in zip(recipes, measured, own, strict=True)
    ]


def _name(recipe: Mapping[str, Any], recipes: Sequence[Mapping[str, Any]]) -> str:
    """The name of a stage among the stages."""
    if "prior" not in recipe:
        return "tokenizer"
    begun = any("path" in other.get("prior", {}) for other in recipes)
    return FROM_NOTHING if begun and "path" not in recipe["prior"] else "prior"
