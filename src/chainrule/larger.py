"""Images larger than those that a model was trained on."""

from __future__ import annotations

from .core import LearnedTokenizer
from .pipeline import Pipeline


def at_size(model: Pipeline, height: int, width: int) -> Pipeline:
    """A model that draws images of another size with the same weights, through a window of the size it was trained on.

    Every code is drawn from what the window around it holds of the codes before it (`Prior.sliding`); what lies further
    away has no influence.

    Args:
        model: of a prior with such a window, as GPT, and a tokenizer that allows the size, as convolutional ones do.
        height, width: in pixels, at least those of the model's own images.

    Raises:
        ValueError: a model or a size that does not allow it.
    """
    if (height, width) == model.tokenizer.image_shape[1:]:
        return model
    if not isinstance(model.tokenizer, LearnedTokenizer):
        raise ValueError(f"a model of {model.tokenizer.name} draws images of its own size only")
    tokenizer = model.tokenizer.at_size(height, width)
    grid = tokenizer.spec.grids[-1]
    prior = model.prior.sliding(grid.height, grid.width)
    return Pipeline(tokenizer, prior, model.class_names, model.card, model.text_tokenizer)


def is_resizable(model: Pipeline) -> bool:
    """Whether a model draws images of other sizes than its own, see `at_size`; tries twice its height."""
    _, height, width = model.tokenizer.image_shape
    grid = model.tokenizer.spec.grids[-1]
    try:
        model.prior.sliding(grid.height, grid.width)  # before a tokenizer is made
        at_size(model, 2 * height, width)
    except ValueError:
        return False
    return True
