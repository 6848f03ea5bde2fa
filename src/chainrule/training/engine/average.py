"""Exponential moving average of weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A second copy of a module that follows the first:

        average <- average + (1 - d_n) (weights - average),    d_n = min(decay, (1 + n) / (10 + n))

    at its n-th update, n = 0, 1, ...; the rise of d_n makes the average forget the initial weights.
    Buffers are copied, and parameters that do not learn are shared.  With `decay` 0 the average is the module itself.

    Attributes:
        module: the averaged module, in evaluation mode unless it is the trained one.
        num_updates: n.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.source, self.decay, self.num_updates = module, decay, 0
        frozen = {id(parameter): parameter for parameter in module.parameters() if not parameter.requires_grad}
        self.module = module if decay == 0 else copy.deepcopy(module, frozen).eval().requires_grad_(False)
        self._pairs = [
            (mine, theirs)
            for mine, theirs in zip(self.module.parameters(), module.parameters(), strict=True)
            if mine is not theirs
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average; to be called after each step of the optimizer."""
        if self.decay == 0:
            return
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(*(list(each) for each in zip(*self._pairs, strict=True)), 1 - decay)
        for mine, theirs in zip(self.module.buffers(), self.source.buffers(), strict=True):
            mine.copy_(theirs)
        self.num_updates += 1

    def state_dict(self) -> dict | None:
        """What a checkpoint keeps; None without an average."""
        return None if self.decay == 0 else {"module": self.module.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict | None) -> None:
        """Restores what `state_dict` returned."""
        assert (state is None) == (self.decay == 0)
        if state is not None:
            self.module.load_state_dict(state["module"])
            self.num_updates = state["num_updates"]
