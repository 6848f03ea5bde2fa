"""A training step of a published size, for `plan`: no recipe and no data are needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core import Codes, Context, LearnedTokenizer, Prior
from ..core.building import shapes_only
from ..sizes import create
from ..training.engine.task import Task
from ..training.tasks.prior_task import code_loss
from ..training.tasks.tokenizer import TokenizerPass


class PresetTask(Task):
    """A prior with the mean of -log p over codes, or a tokenizer with its own loss; examples without content.

    Args:
        name, preset: as of `create`.

    Raises:
        ValueError: no such model or preset, or a tokenizer that has nothing to learn.
    """

    adversary = None
    num_examples = 1

    def __init__(self, name: str, preset: str) -> None:
        with shapes_only():
            model = create(name, preset)
        if not isinstance(model, (Prior, LearnedTokenizer)):
            raise ValueError(f"the tokenizer {name} has nothing to learn, so it costs nothing")
        self.model = model if isinstance(model, Prior) else TokenizerPass(model)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> tuple[Codes, Context] | Tensor:
        """Codes and their context, or images."""
        size = len(indices[part])
        if isinstance(self.model, TokenizerPass):
            return torch.zeros(size, *self.model.tokenizer.image_shape, dtype=torch.uint8)
        given = self.model.conditions
        height, width = self.model.spec.grids[0].shape[:2]

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(size, *shape, dtype=torch.int64)

        codes = tuple(numbers(*grid.shape) for grid in self.model.spec.grids)
        context = Context(
            label=numbers() if given.num_classes else None,
            text=numbers(given.text_length) if given.text_length else None,
            prefix=numbers(given.prefix_length) if given.prefix_length else None,
            spatial=torch.zeros(size, given.spatial_channels, height, width) if given.spatial_channels else None,
        )
        return codes, context

    def loss(self, model: nn.Module, batch: tuple[Codes, Context] | Tensor, progress: float) -> tuple[Tensor, dict]:
        """See the class."""
        if isinstance(batch, Tensor):
            return model(batch, progress)[1], {}
        codes, context = batch
        return code_loss(self.model, model(codes, context), codes)[0], {}
