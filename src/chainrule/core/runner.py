"""Incremental decoding: a runner packs the weights of a prior once and then reads one code at a time.

Weights and batches are kept apart.  A runner holds weights and no tensor of a batch.  A state holds tensors of a batch
and no weights: it is a tensor, or a dataclass, list or tuple of states.  Every tensor has the batch first; a `Grouped`
state has several rows for each image.  The rest is None, or a counter (int) that all images share.  So states of any
prior can be reordered by `select`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .context import Context

if TYPE_CHECKING:
    from .prior import Prior

StateT = TypeVar("StateT")


class Runner(ABC):
    """A prior packed for decoding; made by `Prior.runner`.  It computes no gradients.

    Weights that change afterwards need a new runner.

    Args:
        prior: in evaluation mode.
    """

    def __init__(self, prior: Prior) -> None:
        self.prior = prior

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.prior.parameters()).device

    @torch.no_grad()
    def init_state(self, batch_size: int, context: Context) -> object:
        """The state before any code is known.

        Raises:
            ValueError: a context that does not fit the model.
        """
        self.prior.check_context(context, batch_size)
        return self.start(batch_size, context)

    @torch.no_grad()
    def step(self, previous: Tensor, state: StateT) -> tuple[Tensor, StateT]:
        """Logits (B, K) of code t given code t-1, where t counts the calls from 0.

        Args:
            previous: int64 (B,), the code at position t-1; ignored at t = 0.
            state: what the previous call returned.  It must not be used again: its tensors may be changed in place.
        """
        return self.advance(previous, state)

    @abstractmethod
    def start(self, batch_size: int, context: Context) -> object:
        """`init_state`, of a context that has been checked."""

    @abstractmethod
    def advance(self, previous: Tensor, state: StateT) -> tuple[Tensor, StateT]:
        """`step`."""


def check_float32(prior: Prior, precision: str) -> None:
    """For models that are packed in float32 only: raises ValueError for another precision."""
    if precision != "float32":
        raise ValueError(f"{prior.name} decodes in float32 only, not in {precision}")


@dataclass(frozen=True)
class Grouped:
    """A state of a batch that holds each image several times, as guidance does.

    state: its tensors have the rows of image i at i * rows and the places that follow
    rows:  for each image
    """

    state: Any
    rows: int


def map_state(function: Callable[[Tensor], Tensor], state: StateT) -> StateT:
    """The state with the function applied to every tensor (B, ...), in `Grouped` states as (B, rows, ...); None and
    counters stay."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, Grouped):
        rows = state.rows
        whole = map_state(lambda tensor: function(tensor.unflatten(0, (-1, rows))).flatten(0, 1), state.state)
        return Grouped(whole, rows)
    if state is None or isinstance(state, int):
        return state
    if isinstance(state, (list, tuple)):
        return type(state)([map_state(function, value) for value in state])
    assert is_dataclass(state), f"a state holds tensors, not a {type(state).__name__}"
    return type(state)(**{name: map_state(function, value) for name, value in vars(state).items()})


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, (B, ...), in the order of `map_state`; those of `Grouped` states as (B, rows, ...)."""
    found: list[Tensor] = []
    map_state(lambda tensor: found.append(tensor) or tensor, state)
    return found


def with_tensors(state: StateT, new: Iterable[Tensor]) -> StateT:
    """The state with other tensors, in the order of `tensors`."""
    following = iter(new)
    return map_state(lambda _: next(following), state)


def signature(state: Any) -> Hashable:
    """What two states of one runner must have in common to be parts of one batch: their counters, and the shapes of
    their tensors but for the batch."""
    if isinstance(state, Tensor):
        return tuple(state.shape[1:])
    if state is None or isinstance(state, int):
        return state
    values = state if isinstance(state, (list, tuple)) else vars(state).values()
    return tuple(map(signature, values))


def select(state: StateT, index: Tensor) -> StateT:
    """The state, or the context, of the images `index` (int64 (N,) batch positions), as new tensors."""
    return map_state(lambda tensor: tensor[index], state)
