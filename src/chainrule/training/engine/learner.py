"""A module and its optimizer, in the precision of the run and spread over its processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.native import has_bfloat16
from .config import TrainingConfig
from .hardware import autocast, compiled, loss_scaling
from .muon import Muon
from .sharding import whole


class Learner:
    """What the model and its adversary have in common.

    Args:
        module: what is trained, on the device.
        optimizer: makes the optimizer of a module.
        config: of the training.
        fabric: a launched `lightning_fabric.Fabric`.
        gradient_clip: largest norm of the gradient; 0 is no limit.
        compile: whether the module is compiled.

    Attributes:
        module: what is trained.
        wrapped: the module as it is to be called in training.
    """

    def __init__(
        self, module: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer], config: TrainingConfig,
        fabric: Any, gradient_clip: float = 0.0, compile: bool = False,
    ) -> None:  # fmt: skip
        self.fabric, self.gradient_clip = fabric, gradient_clip
        self.module = module
        self.wrap(compiled(module, fabric.device) if compile else module)
        self.optimizer = optimizer(self.module)
        self.autocast = autocast(config.precision, fabric.device)
        self.scaling = loss_scaling(config.precision, fabric.device)

    def wrap(self, module: nn.Module) -> None:
        """Prepares the module, or its compiled form, for several processes."""
        self.wrapped = self.fabric.setup_module(module)

    def add_gradient(
        self, loss_of: Callable[[nn.Module], tuple[Tensor, dict[str, Tensor]]], share: float, last: bool
    ) -> dict[str, Tensor]:  # fmt: skip
        """Adds the gradient of a loss; returns the loss and what else is to be logged.

        Args:
            loss_of: the loss and further figures, of the module to call.
            share: of the batch, the factor of the loss.
            last: whether this is the last part of the batch: then the processes take the mean of their gradients.
        """
        with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
            with self.autocast():
                loss, figures = loss_of(self.wrapped)
            self.scaling.backward(share * loss, None)
        return {"loss": loss.detach()} | {name: value.detach() for name, value in figures.items()}

    def take_step(self, learning_rate: float) -> Tensor | None:
        """One step of the optimizer; returns the norm of the gradient where that is limited."""
        norm = None
        if self.gradient_clip:
            self.scaling.unscale_gradients(self.optimizer)
            norm = whole(nn.utils.clip_grad_norm_(self.module.parameters(), self.gradient_clip))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaling.optimizer_step(self.optimizer)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaling": self.scaling.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaling.load_state_dict(state.get("scaling", {}))


def build_optimizer(module: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of the config for a module on a device; weight decay for matrices and filters only."""
    options: dict[str, Any] = {"lr": config.learning_rate}
    if config.betas is not None:
        options["betas"] = config.betas
    if config.optimizer == "muon":
        half = config.precision == "bfloat16" or has_bfloat16(device)
        dtype = torch.bfloat16 if half else torch.float32
        return Muon(module, weight_decay=config.weight_decay, dtype=dtype, **options)
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer in ("adam", "adamw"):
        options["fused"] = config.precision != "float16"  # a fused step would undo the scale of the loss by itself
    classes = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adamax": torch.optim.Adamax,
        "rmsprop": torch.optim.RMSprop,
    }
    return classes[config.optimizer](groups, **options)
