"""What the engine trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Adversary:
    """A module that learns against the model: after each step of the model it takes one of its own.

    module:        what is trained
    start:         share of the steps, 0..1, after which it begins
    learning_rate: of its Adam, at the peak of the schedule, which is that of the model
    betas:         of its Adam
    """

    module: nn.Module
    start: float
    learning_rate: float
    betas: tuple[float, float]


class Task(Protocol):
    """A model, its examples, its loss, and how to judge, show and save it.  The engine knows nothing else.

    Attributes:
        model: the module that is trained and averaged.
        adversary: what is trained against it, or None.
        num_examples: number of training examples.
        notes: what a user should know at the start, a sentence each.
    """

    model: nn.Module
    adversary: Adversary | None
    num_examples: int
    notes: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What a resumed run must find again, plain values by name: above all, fingerprints of the data."""
        return {}

    def setup(self, device: torch.device) -> None:
        """Moves what is not trained to the device; called once, before anything else."""

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> Any:
        """A process's part of a batch, on the CPU.

        Args:
            indices: int64 (B,), the examples of the whole batch.
            part: those of them that this process works on.
            generator: of all noise, to be drawn for the whole batch and then cut, so that the number of
                processes changes nothing.  No other randomness may be used: this runs in a thread.
        """

    def loss(self, model: nn.Module, batch: Any, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the batch that is minimised, and further means to log, the most telling first.

        Args:
            model: `self.model`, perhaps compiled or wrapped for several processes: it is to be called,
                once, and not looked into.
            batch: of `batch`.
            progress: share of the steps taken, 0..1, for schedules.
        """

    def adversary_loss(self, module: nn.Module, batch: Any) -> Tensor:
        """The mean that the adversary minimises; called after `loss` of the same batch.

        `module` is `self.adversary.module`, perhaps wrapped: likewise to be called, once, and not looked into.
        Tasks without an adversary do not need this method.
        """

    def evaluate(self, model: nn.Module, final: bool) -> dict[str, float]:
        """What `model`, of the type of `self.model`, scores on held-out examples; empty if there are none.

        `final` asks for all examples, after the last step; otherwise a sample will do.
        """

    def preview(self, model: nn.Module, seed: int) -> Tensor | None:
        """Images to look at while training, uint8 (N, C, H, W), or None."""

    def save(self, model: nn.Module, folder: Path, card: dict[str, Any]) -> None:
        """Writes `model` as what users load.

        Args:
            model: of the type of `self.model`.
            folder: an empty folder.
            card: plain values about the run: steps, minutes, metrics.
        """
