"""The architecture of a model, read from the model itself."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from ..core import CodeSpec, LearnedTokenizer
from ..pipeline import Pipeline
from .results import Block

SIZES = (
    "num_layers", "encoder_layers", "decoder_layers", "depth_layers", "width", "embedding_dim", "num_heads",
    "kernel_size", "num_blocks", "downsampling", "multipliers", "num_groups",
)  # fmt: skip
"""Fields of configs that a drawing shows."""


def blocks(model: Pipeline) -> tuple[Block, ...]:
    """From the image to the codes, the prior, and back."""
    tokenizer, prior = model.tokenizer, model.prior
    channels, height, width = tokenizer.image_shape
    image = Block(title="image", detail=f"{height}x{width}, {'grey' if channels == 1 else 'colour'}")
    codes = Block(title="codes" if isinstance(tokenizer, LearnedTokenizer) else "pixels", detail=_codes(tokenizer.spec))
    network = Block(title=prior.name, detail=_sizes(prior.config), parameters=_count(prior))
    if not isinstance(tokenizer, LearnedTokenizer):
        return image, codes, network
    coder = Block(title=tokenizer.name, detail=_sizes(tokenizer.config), parameters=_count(tokenizer))
    return image, coder, codes, network


def conditions(model: Pipeline) -> str:
    """What the prior is conditioned on, in words."""
    needs, words = model.prior.conditions, []
    if model.num_classes:
        words.append(f"one of {model.num_classes} classes")
    if needs.joint_text:
        words.append("a caption, as the first tokens of the sequence")
    elif needs.reads_text:
        words.append("a caption, read by an encoder")
    return " and ".join(words) or "nothing"


def _codes(spec: CodeSpec) -> str:
    shapes = ["x".join(map(str, one.shape if one.depth > 1 else one.shape[:2])) for one in spec.grids]
    sizes = sorted({one.codebook_size for one in spec.grids})
    return f"{' and '.join(shapes)} of {' or '.join(map(str, sizes))} values"


def _sizes(config: Any) -> str:
    """The sizes in a config, those of the configs in it too."""
    words = []
    for one in fields(config):
        value = getattr(config, one.name)
        if is_dataclass(value):
            words.append(f"{one.name}: {_sizes(value)}")
        elif one.name in SIZES and value:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            words.append(f"{one.name.replace('_', ' ')} {shown}")
    return ", ".join(words)


def _count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())
