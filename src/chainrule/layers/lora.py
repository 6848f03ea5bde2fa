"""LoRA: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.

    W = W_0 + alpha / r  U D        D (r, in) random, U (out, r) zero at first; W_0 stays, D and U learn

Of a transformer the matrices of attention are adapted, as in section 4.2 of the paper; where query, key and value are
one matrix, they share D.  `merge` writes W in the place of the product, so that sampling costs what it did.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADAPTED = ("query_key_value", "query", "key_value", "projection")
"""Names of the matrices of attention in `layers`."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """How large the change of a matrix may be.

    rank:  r, of each change
    alpha: the change is multiplied by alpha / rank
    """

    rank: int = 16
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank of lora must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"alpha of lora must be above 0, got {self.alpha}")


class LowRank(nn.Linear):
    """A linear layer that stays, and a change of low rank that learns; `weight` is their sum."""

    def __init__(self, frozen: nn.Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        self.frozen, self.scale = frozen.requires_grad_(False), config.alpha / config.rank
        size = {"dtype": torch.float32, "device": frozen.weight.device}
        down = torch.empty(config.rank, self.in_features, **size)
        self.down = nn.Parameter(nn.init.normal_(down, std=self.in_features**-0.5))
        self.up = nn.Parameter(torch.zeros(self.out_features, config.rank, **size))

    @property
    def weight(self) -> Tensor:
        """W, (out, in)."""
        return self.frozen.weight + self.scale * self.up @ self.down

    @property
    def bias(self) -> Tensor | None:
        """(out,), or None."""
        return self.frozen.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.scale * F.linear(F.linear(x, self.down), self.up)


def add_lora(module: nn.Module, config: LoRAConfig, also: Iterable[str] = ()) -> str:
    """Freezes a module but for low-rank changes of its attention, and for the parameters named `also`.

    Returns:
        A sentence that says how much of the module learns.

    Raises:
        ValueError: a module without attention.
    """
    module.requires_grad_(False)
    places = [(parent, name) for parent in module.modules() for name, child in parent.named_children()
              if name in ADAPTED and isinstance(child, nn.Linear)]  # fmt: skip
    if not places:
        raise ValueError("lora adapts the attention of transformers, and this model has none; leave out training.lora")
    for parent, name in places:
        setattr(parent, name, LowRank(getattr(parent, name), config))
    for name in also:
        module.get_parameter(name).requires_grad_(True)
    learn = sum(value.numel() for value in trained(module).values())
    total = sum(value.numel() for value in module.parameters())
    return f"lora trains {learn:,} of {total:,} weights ({learn / total:.2%})"


def trained(module: nn.Module) -> dict[str, Tensor]:
    """What an adapter is: the parameters that learn, by name."""
    return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}


def merge(module: nn.Module) -> None:
    """Adds the low-rank changes to the matrices, in place: the module is again of plain layers."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LowRank):
                child.frozen.weight.data.copy_(child.weight.detach())
                setattr(parent, name, child.frozen)
