"""The adversary's part of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainingConfig
from .hardware import autocast
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
        self.adversary, self.config, self.fabric = adversary, config, fabric
        module = adversary.module.to(fabric.device)
        if config.channels_last:
            module = module.to(memory_format=torch.channels_last)
        self.module = module.train()
        self.optimizer = torch.optim.Adam(
            module.parameters(), lr=adversary.learning_rate, betas=adversary.betas, fused=True
        )
        self.autocast = autocast(config.precision, fabric.device)
        self.wrapped = fabric.setup_module(module)

    def take_step(self, step: int, loss_of: Callable[[nn.Module], Tensor]) -> Tensor:
        """One step, unless it has not begun; returns the loss, 0 before.

        Args:
            step: number of the model's step, from 0.
            loss_of: the adversary's loss, of the module to call.
        """
        if step / self.config.steps < self.adversary.start:
            return torch.zeros((), device=self.fabric.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.adversary.learning_rate * schedule_factor(self.config, step)
        self.optimizer.zero_grad()
        with self.autocast():
            loss = loss_of(self.wrapped)
        self.fabric.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
