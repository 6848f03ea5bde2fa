"""What the engine trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Task(Protocol):
    """A model, its examples, its loss, and how to judge, show and save it.  The engine knows nothing else.

    Attributes:
        model: the module that is trained and averaged.
        num_examples: number of training examples.
    """

    model: nn.Module
    num_examples: int

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

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the batch that is minimised, and further means to log, the most telling first.

        `model` is `self.model`, perhaps compiled or wrapped for several processes: it is to be called,
        once, and not looked into.
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
