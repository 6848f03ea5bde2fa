"""The contract of a prior: p(codes | context) = prod_t p(c_t | c_<t, context).

A prior answers in two ways that must agree.  `forward` reads whole images of codes and gives all
conditionals at once (training, scoring).  `runner` packs the weights, and the runner gives the conditionals one by one
(sampling).  Nothing here samples: the loop lives in `chainrule.decoding`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .codes import Codes, CodeSpec, GridSpec
from .conditions import Conditions
from .context import Context
from .runner import Runner


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

    @property
    def untrained(self) -> tuple[nn.Module, ...]:
        """Modules that do not change the logits, so that the loss gives them no gradient; they are not trained."""
        return ()

    @abstractmethod
    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        """Logits of every code given those before it: one float (B, H, W, D, K) per grid of `spec`."""

    @abstractmethod
    def runner(self, precision: str = "float32") -> Runner:
        """The weights packed once, for one code at a time.

        Args:
            precision: "float32", the model itself; transformers also have "bfloat16" and "int8", which are faster and
                give a slightly different distribution.

        Raises:
            ValueError: a precision that this model does not have.
        """

    def sliding(self, height: int, width: int) -> Prior:
        """This prior over a grid of another size, each code drawn within a window of the size of the prior's own.

        Raises:
            ValueError: a prior without such a window, as here, or a size that it does not allow.
        """
        raise ValueError(f"{self.name} draws images of the size it was trained on only; gpt draws larger ones, too")

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
