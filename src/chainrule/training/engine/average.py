"""Exponential moving average of weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .hardware import spreads_weights
from .sharding import is_sharded, local, whole


def evaluated_copy(module: nn.Module, fabric: Any) -> nn.Module:
    """A copy of a module; it shares the parameters that do not learn, unless these are to be spread over processes."""
    shared = [] if spreads_weights(fabric) else [p for p in module.parameters() if not p.requires_grad]
    return copy.deepcopy(module, {id(parameter): parameter for parameter in shared})


class Average:
    """The exponential moving average of a module's weights:

        average <- average + (1 - d_n) (weights - average),    d_n = min(decay, (1 + n) / (10 + n))

    at its n-th update, n = 0, 1, ...; the rise of d_n makes the average forget the initial weights.
    Buffers are copied, and parameters that do not learn stay.  With `decay` 0 the average is the weights themselves.

    Args:
        source: what is trained, perhaps spread over several processes.
        module: a copy of it, not spread, that is evaluated and saved; the source itself where the two are the same.
        decay: see above.

    Attributes:
        num_updates: n.
    """

    def __init__(self, source: nn.Module, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.num_updates = module, decay, 0
        if module is not source:
            module.eval().requires_grad_(False)
        self.is_sharded = is_sharded(source)
        trained, frozen = source.state_dict(), {n for n, p in source.named_parameters() if not p.requires_grad}
        names = {name for name, _ in source.named_parameters()} - frozen
        if decay == 0:
            self.weights = trained
        elif self.is_sharded:
            self.weights = {name: value.clone() for name, value in trained.items()}
        else:
            self.weights = module.state_dict()
        pairs = {name: (local(self.weights[name]), local(trained[name])) for name in trained if name not in frozen}
        self.averaged = [pair for name, pair in pairs.items() if name in names]
        self.copied = [pair for name, pair in pairs.items() if name not in names]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average; to be called after each step of the optimizer."""
        if self.decay == 0:
            return
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_([mine for mine, _ in self.averaged], [theirs for _, theirs in self.averaged], 1 - decay)
        for mine, theirs in self.copied:
            mine.copy_(theirs)
        self.num_updates += 1

    @torch.no_grad()
    def whole(self) -> nn.Module:
        """The averaged module; all processes must ask for it."""
        if self.is_sharded:
            for name, mine in self.module.state_dict().items():
                mine.copy_(whole(self.weights[name]))
        return self.module

    def state_dict(self) -> dict | None:
        """What a checkpoint keeps; None without an average."""
        return None if self.decay == 0 else {"module": self.weights, "num_updates": self.num_updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict | None) -> None:
        """Restores what `state_dict` returned."""
        assert (state is None) == (self.decay == 0)
        if state is not None:
            for name, mine in self.weights.items():
                mine.copy_(state["module"][name])
            self.num_updates = state["num_updates"]
