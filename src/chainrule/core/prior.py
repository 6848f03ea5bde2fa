"""The contract of a prior: p(codes | context) = prod_t p(c_t | c_<t, context).

A prior answers in two ways that must agree.  `forward` reads whole images of codes and gives all
conditionals at once (training, scoring).  `init_state` and `step` give them one by one and remember
what they need (sampling).  Nothing here samples: the loop lives in `chainrule.decoding`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .codes import Codes, CodeSpec, GridSpec
from .conditions import Conditions
from .context import Context

StateT = TypeVar("StateT")


class Prior(nn.Module, ABC):
    """p(codes | context), built from a CodeSpec and a config.

    Args:
        spec: the codes that are modelled.
        conditions: what the model is conditioned on; by default nothing.
    """

    name: str  # set by the registry

    def __init__(self, spec: CodeSpec, conditions: Conditions = Conditions()) -> None:
        super().__init__()
        self.spec, self.conditions = spec, conditions

    @classmethod
    def spec_of(cls, image: CodeSpec, text: GridSpec | None) -> CodeSpec:
        """The codes that a prior of this class models, from those of an image and of the text given with it, if any.

        Raises:
            ValueError: a model of texts without a text.
        """
        return image

    @property
    def grid_weights(self) -> tuple[float, ...]:
        """The loss in training is the sum over grids of weight x mean nats per code; the weights sum to 1.

        By default a grid weighs as many codes as it has, which makes the loss the mean over all codes.
        """
        return tuple(grid.num_positions / self.spec.length for grid in self.spec.grids)

    @abstractmethod
    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        """Logits of every code given those before it: one float (B, H, W, D, K) per grid of `spec`."""

    @abstractmethod
    def init_state(self, batch_size: int, context: Context) -> object:
        """The state before any code is known.

        A state is a dataclass (possibly of nested tuples, lists and dataclasses); every tensor in it
        has the batch first, so that `select` can reorder the images it stands for.
        """

    @abstractmethod
    def step(self, previous: Tensor, state: StateT) -> tuple[Tensor, StateT]:
        """Logits (B, K) of code t, where t counts the calls from 0, given code t-1.

        Args:
            previous: int64 (B,), the code at position t-1; ignored at t = 0.
            state: what the previous call returned; it is consumed, and may be changed in place.
        """

    def decoding(self, precision: str) -> Prior:
        """This prior with its weights packed once for `step`, in a precision; as it is where none is offered.

        Args:
            precision: "float32", the model itself; a transformer also offers "bfloat16" and "int8", which are faster
                and another, slightly worse, distribution.

        Raises:
            ValueError: a precision that this model has not.
        """
        if precision != "float32":
            raise ValueError(f"{self.name} decodes in float32 only, not in {precision}")
        return self

    def log_prob(self, codes: Codes, context: Context = Context()) -> Tensor:
        """log p(codes | context) in nats, summed over positions: float (B,).

        Raises:
            ValueError: codes that do not fit `spec`, or a context that does not fit the model.
        """
        return sum(grid.flatten(1).sum(1) for grid in self.log_prob_grids(codes, context))

    def log_prob_grids(self, codes: Codes, context: Context = Context()) -> tuple[Tensor, ...]:
        """log p(c_t | c_<t, context) of every code in nats: one float (B, H, W, D) per grid."""
        self.spec.check(codes)
        self.check_context(context, codes[0].shape[0])
        return tuple(
            _float(logits).log_softmax(-1).gather(-1, grid.unsqueeze(-1)).squeeze(-1)
            for logits, grid in zip(self(codes, context), codes, strict=True)
        )

    def check_context(self, context: Context, batch_size: int) -> None:
        """Raises ValueError unless the context holds what this model is conditioned on, in range."""
        self.conditions.check(context, batch_size)

    def attach(self, vectors: tuple[Tensor, ...] | None) -> None:
        """Takes the tokenizer's vectors of the codes (`Tokenizer.vectors`) before training.

        A model that reads them keeps them in a buffer, and raises ValueError where they do not suit it; one that learns
        its own, as here, needs none.
        """


def _float(logits: Tensor) -> Tensor:
    """At least float32: likelihoods are not summed in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def select(state: StateT, index: Tensor) -> StateT:
    """The state of the images `index` (int64 (N,) batch positions), as new tensors.

    A part of the state whose batch is laid out otherwise brings a method `select` of its own.
    """
    if isinstance(state, Tensor):
        return state[index]
    if hasattr(state, "select"):
        return state.select(index)
    if is_dataclass(state):
        return type(state)(**{f.name: select(getattr(state, f.name), index) for f in fields(state)})
    if isinstance(state, (list, tuple)):
        return type(state)(select(value, index) for value in state)
    return state
