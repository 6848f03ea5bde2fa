"""The doctor: watches a training by its tables, and says what it changed or what to change.

a rate too high     a loss that is not finite, training nats that rise, a tokenizer that forgets    begins again
overfitting         held-out nats rise while those of training fall                                 begins again
collapse            most entries of a codebook are not in use                                       says so
a washed-out decoder   reconstructions have lost the edges of the pictures                          says so
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..files import write_file

SLACK = 1.01
"""Held-out nats above their best by this factor, twice at least, are worse."""
RISE = 1.1
"""Training nats above their least by this factor have risen."""
FORGOTTEN = 5.0
"""dB by which reconstructions may become worse; a discriminator costs one or two."""
LEAST_USE, LEAST_DETAIL = 0.5, 0.6
WINDOWS = 5
"""Parts of the log so far whose means are compared."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The tables of a run: numbers by column, `step` among them; {} where nothing was written yet."""

    training: Mapping[str, list[float]]
    held_out: Mapping[str, list[float]]

    @classmethod
    def read(cls, run: Path) -> Curves:
        """Those of the folder of a run."""
        return cls(training=_columns(run / "log.csv"), held_out=_columns(run / "evaluation.csv"))


class Treatment(Exception):
    """A training is to begin again.

    Args:
        sentence: why, and what changes.
        steps: of the new training.
        rate: factor of its learning rate.
    """

    def __init__(self, sentence: str, steps: int, rate: float = 1.0) -> None:
        super().__init__(sentence)
        self.steps, self.rate = steps, rate


class Doctor:
    """What is said about the trainings of a fit, kept in a file.

    Args:
        file: of its notes, which a resumed fit finds again.
        quiet: whether to print nothing.
    """

    def __init__(self, file: Path, quiet: bool) -> None:
        self.file, self.quiet = file, quiet

    @property
    def notes(self) -> list[str]:
        """All sentences so far."""
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else []

    def say(self, stage: str, sentence: str) -> None:
        """Notes and prints a sentence about a training, once."""
        notes, sentence = self.notes, f"{stage}: {sentence}"
        if sentence not in notes:
            write_file(self.file, json.dumps([*notes, sentence], indent=1, ensure_ascii=False).encode())
            if not self.quiet:
                print(f"doctor: {sentence}", flush=True)

    def watch(self, stage: str, curves: Curves, step: int, steps: int) -> None:
        """Looks at a training after an evaluation.

        Args:
            stage: the name of the training.
            curves: so far.
            step, steps: taken, and to be taken in all.

        Raises:
            Treatment: it is to begin again.
        """
        if rate_is_too_high(curves):
            raise too_high("it became worse while it trained", step, steps)
        best = overfits_since(curves)
        if best is None:
            return
        where = f"it overfits: held-out nats were best after {best:,} steps and have risen since"
        if best + step > steps:
            self.say(stage, f"{where}; fewer steps or more pictures would be better")
            return
        raise Treatment(f"{where}; begun again with {best:,} steps, over which the learning rate falls to 0", best)

    def look_back(self, stage: str, curves: Curves) -> None:
        """Says what is to be said about a training that has ended."""
        for name, values in curves.held_out.items():
            if name.startswith("usage") and values[-1] < LEAST_USE:
                self.say(
                    stage,
                    f"collapse: only {values[-1]:.0%} of the codes are in use; a smaller tokenizer.codebook_size, "
                    "a lower training.learning_rate or more minutes would help",
                )

    def judge_decoder(self, stage: str, kept: float) -> None:
        """Says it where a decoder washes out; `kept` is what `detail` gives."""
        if kept < LEAST_DETAIL:
            self.say(
                stage,
                f"the decoder washes out: edges of reconstructions have {kept:.0%} of the contrast of the pictures; "
                'more minutes, losses.perceptual (pip install "chainrule[metrics]") or a larger tokenizer would help',
            )


def too_high(what: str, step: int, steps: int) -> Treatment:
    """The treatment of a learning rate that is too high, noticed after `step` of `steps` steps."""
    left = max(steps - step, steps // 2, 1)
    return Treatment(
        f"the learning rate is too high: {what}; begun again with a third of it, {left:,} steps", left, 1 / 3
    )


def rate_is_too_high(curves: Curves) -> bool:
    """Whether training nats have risen, or a tokenizer reconstructs held-out pictures much worse than before."""
    quality = curves.held_out.get("psnr", [])
    if quality and max(quality) - quality[-1] > FORGOTTEN:
        return True
    nats = curves.training.get("nats", [])
    if len(nats) < 2 * WINDOWS:
        return False
    size = len(nats) // WINDOWS
    means = [sum(nats[start : start + size]) / size for start in range(len(nats) - WINDOWS * size, len(nats), size)]
    return means[-1] > RISE * min(means)


def overfits_since(curves: Curves) -> int | None:
    """The step at which held-out nats were best, if they have been worse in two evaluations since and training nats
    have not."""
    nats, steps = curves.held_out.get("nats", []), curves.held_out.get("step", [])
    if len(nats) < 3:
        return None
    best = nats.index(min(nats))
    later = nats[best + 1 :]
    if len(later) < 2 or min(later) < SLACK * nats[best]:
        return None
    training = dict(zip(curves.training["step"], curves.training["nats"], strict=True))
    then = [value for step, value in training.items() if step <= steps[best]]
    return int(steps[best]) if then and curves.training["nats"][-1] < then[-1] else None


def detail(images: Tensor, reconstructions: Tensor) -> float:
    """The contrast of edges in reconstructions divided by the contrast of edges in the images.

    It is 1 for perfect reconstructions and 0 for even grey ones.  Both are uint8 (B, C, H, W).
    """

    def edges(pictures: Tensor) -> float:
        values = pictures.double()
        return (values.diff(dim=-1).abs().sum() + values.diff(dim=-2).abs().sum()).item()

    return edges(reconstructions) / max(edges(images), 1.0)


def _columns(file: Path) -> dict[str, list[float]]:
    if not file.is_file():
        return {}
    with open(file, encoding="utf-8", newline="") as lines:
        rows: Sequence[dict[str, str]] = list(csv.DictReader(lines))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
