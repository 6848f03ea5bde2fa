"""The adversary's part of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainingConfig
from .hardware import placed
from .learner import Learner
from .schedule import schedule_factor
from .task import Adversary


class AdversaryTraining:
    """Trains an adversary with an Adam of its own, in the precision and by the schedule of the model.

    Args:
        adversary: what is trained; its module is moved to the device.
        config: of the model's training.
        fabric: a launched `lightning_fabric.Fabric`.
    """

    def __init__(self, adversary: Adversary, config: TrainingConfig, fabric: Any) -> None:
        self.adversary, self.config = adversary, config
        options = {"lr": adversary.learning_rate, "betas": adversary.betas, "fused": config.precision != "float16"}
        module = placed(adversary.module.train(), config, fabric)
        self.learner = Learner(module, lambda module: torch.optim.Adam(module.parameters(), **options), config, fabric)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keeps the loss of the model from adding to the adversary's gradients."""
        self.learner.module.requires_grad_(False)
        yield
        self.learner.module.requires_grad_(True)

    def add_gradient(
        self, step: int, loss_of: Callable[[nn.Module], Tensor], share: float, last: bool
    ) -> Tensor:  # fmt: skip
        """Adds the gradient of a part of the batch, unless the adversary has not begun; returns the loss, 0 before.

        Args:
            step: number of the model's step, from 0.
            loss_of: the adversary's loss, of the module to call.
            share: of the batch.
            last: whether this is the last part of the batch.
        """
        if not self._has_begun(step):
            return torch.zeros((), device=self.learner.fabric.device)
        return self.learner.add_gradient(lambda module: (loss_of(module), {}), share, last)["loss"]

    def take_step(self, step: int) -> None:
        """One step of the optimizer, unless the adversary has not begun."""
        if self._has_begun(step):
            self.learner.take_step(self.adversary.learning_rate * schedule_factor(self.config, step))

    def _has_begun(self, step: int) -> bool:
        return step / self.config.steps >= self.adversary.start
