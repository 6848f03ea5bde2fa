"""Strict reading of recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from chainrule import recipe
from chainrule.strict import build_dataclass, parse_yaml, to_plain, write_yaml
from chainrule.training import TrainingConfig


@dataclass(frozen=True)
class Inner:
    size: int = 3


@dataclass(frozen=True)
class Outer:
    steps: int
    learning_rate: float = 0.1
    betas: tuple[float, float] | None = None
    widths: tuple[int, ...] = ()
    mode: Literal["slow", "fast"] = "fast"
    compile: Literal["auto"] | bool = "auto"
    inner: Inner = Inner()
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def test_values_arrive():
    text = (
        "{steps: 3, learning_rate: 1e-3, betas: [0, 0.9], widths: [1, 2], compile: true, inner: {size: 4}, path: a/b}"
    )
    built = build_dataclass(Outer, parse_yaml(text, "r.yaml"), "r.yaml")
    assert built == Outer(3, 0.001, (0.0, 0.9), (1, 2), "fast", True, Inner(4), Path("a/b"))
    assert build_dataclass(Outer, parse_yaml(write_yaml(built), "r.yaml"), "r.yaml") == built


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{steps: 3, leraning_rate: 1}",
            "r.yaml: unknown key 'leraning_rate' in 'training'; did you mean 'learning_rate'?",
        ),
        (
            "{steps: 3, zzz: 1}",
            "r.yaml: unknown key 'zzz' in 'training'; there are: steps, learning_rate, betas, widths, "
            "mode, compile, inner, path",
        ),
        ("{learning_rate: 1}", "r.yaml: 'training.steps' is missing"),
        ("{steps: 0}", "r.yaml: in 'training': steps must be at least 1, got 0"),
        ("{steps: 1.5}", "r.yaml: 'training.steps' must be a whole number, got 1.5"),
        ("{steps: true}", "r.yaml: 'training.steps' must be a whole number, got True"),
        ("{steps: 3, learning_rate: fast}", "r.yaml: 'training.learning_rate' must be a number, got 'fast'"),
        ("{steps: 3, learning_rate: .nan}", "r.yaml: 'training.learning_rate' must be finite, got nan"),
        (
            "{steps: 3, betas: [1, 2, 3]}",
            "r.yaml: 'training.betas' must be a list of 2 (a number, a number) or empty, got [1, 2, 3]",
        ),
        ("{steps: 3, widths: [1, x]}", "r.yaml: 'training.widths[1]' must be a whole number, got 'x'"),
        ("{steps: 3, mode: fats}", "r.yaml: 'training.mode' must be slow or fast, got 'fats'; did you mean 'fast'?"),
        ("{steps: 3, compile: 1}", "r.yaml: 'training.compile' must be auto or true or false, got 1"),
        ("{steps: 3, inner: {sise: 1}}", "r.yaml: unknown key 'sise' in 'training.inner'; did you mean 'size'?"),
        ("{steps: 3, steps: 4}", "r.yaml: not valid YAML: the key 'steps' is given twice"),
        ("{steps: 3", "r.yaml: not valid YAML: line 1 has a list or mapping that is not closed"),
        ("steps: a: 3", "r.yaml: not valid YAML: line 1 has a second ': ' in a line"),
        ("steps: !a 3", "r.yaml: not valid YAML: line 1 has a tag, a word that begins with '!'"),
        ("steps: *a", "r.yaml: not valid YAML: line 1 has a name after '*' that stands for nothing"),
        ("steps: |x", "r.yaml: not valid YAML: line 1 has something that is no YAML"),
    ],
)  # fmt: skip
def test_one_sentence_for_every_mistake(text, sentence):
    with pytest.raises(ValueError) as error:
        build_dataclass(Outer, parse_yaml(text, "r.yaml"), "r.yaml", "training")
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"ema_decay": 1}, "ema_decay must lie in 0..1"),
        ({"optimizer": "rmsprop", "betas": [0.9, 0.99]}, "betas would be ignored"),
        ({"decay_share": 0.1}, "decay_share belongs to the schedule wsd"),
        ({"schedule": "wsd"}, "decay_share belongs to the schedule wsd"),
        ({"warmup_steps": 11}, "warmup_steps"),
        ({"batch_size": 2**63}, "batch_size must be at most 1,048,576, got 9,223,372,036,854,775,808"),
        ({"steps": 2**31 + 1}, "steps must be at most 2,147,483,648"),
    ],
)
def test_training_ranges(change, sentence):
    values = {"steps": 10, "batch_size": 4, "learning_rate": 0.1} | change
    with pytest.raises(ValueError, match=sentence):
        build_dataclass(TrainingConfig, values, "r.yaml", "training")


def test_overrides():
    mapping = {"training": {"steps": 5}}
    recipe.apply_override(mapping, "training.steps=200")
    recipe.apply_override(mapping, "prior.widths=[1, 2]")
    recipe.apply_override(mapping, "training.learning_rate=3e-4")
    assert mapping == {"training": {"steps": 200, "learning_rate": 3e-4}, "prior": {"widths": [1, 2]}}
    for wrong in ("steps=3", "training.steps", ".=3"):
        with pytest.raises(ValueError, match="an override reads"):
            recipe.apply_override(mapping, wrong)
    with pytest.raises(ValueError, match="plain value"):
        recipe.apply_override(mapping, "training.steps.x=1")


def test_long_overrides_make_short_sentences():
    for wrong in (
        "training.steps=" + "x" * 5000,
        "x" * 5000,
        "training." + "x" * 5000 + "=1",
        "training.steps=[" * 999,
    ):
        with pytest.raises(ValueError) as error:
            recipe.read_recipe("mnist_pixelcnn", [*["training.steps=2"] * 500, wrong])
        assert len(str(error.value)) < 1000


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mnist_pixelcnn'"):
        recipe.read_recipe("mnist_pixlcnn")


def test_plain_values():
    assert to_plain(Outer(3, path=Path("a"))) == {
        "steps": 3, "learning_rate": 0.1, "betas": None, "widths": [], "mode": "fast", "compile": "auto",
        "inner": {"size": 3}, "path": "a",
    }  # fmt: skip
