"""The priors of rosinality/vq-vae-2-pytorch: `pixelsnail_top_*.pt` and `pixelsnail_bottom_*.pt`, beside the VQ-VAE-2.

Each file holds {"model": state dict, "args": the options of its training}.  Sizes follow from the shapes, but for the
8 heads that the code fixes; the grid is that of the stored coordinates (`background`).  Parts of the causal kernels
(`weight_v`) that the original zeroes before it normalises are kept, and masked alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ..core import CodeSpec, GridSpec
from ..priors._pixelsnail import PixelSNAILSizes
from ..priors.hierarchical_pixelsnail import BottomSizes, HierarchicalPixelSNAIL, HierarchicalPixelSNAILConfig
from .reader import Stub
from .weights import load_weights, read_weights

SizesT = TypeVar("SizesT", bound=PixelSNAILSizes)
MARK = "horizontal.conv.conv.weight_v"  # a name that only these files have
BOTTOM_MARK = "cond_resnet.blocks.0.conv.weight_v"  # and only that of the bottom level
NUM_HEADS = 8
DROPOUT = 0.1
WORDS = {  # theirs -> ours, word by word; "conv", which wraps every kernel, has no counterpart
    "horizontal": "above", "vertical": "left", "resblocks": "residual", "conv1": "first", "conv2": "second",
    "aux_conv": "auxiliary", "condition": "spatial", "causal_attention": "attention",
    "key_resblock": "attention.key_residual", "query_resblock": "attention.query_residual",
    "out_resblock": "attention.out_residual", "weight_v": "direction", "weight_g": "magnitude",
}  # fmt: skip


def load_prior(top: Path, bottom: Path) -> HierarchicalPixelSNAIL:
    """The prior that the two files make up.

    Raises:
        ValueError: files of another architecture, or of grids that do not belong together.
    """
    levels = [_read(top, PixelSNAILSizes), _read(bottom, BottomSizes)]
    (_, top_sizes, grid), (fine_tensors, bottom_sizes, fine) = levels
    if (fine.height, fine.width) != (2 * grid.height, 2 * grid.width):
        raise ValueError(
            f"the grid of {bottom.name} should be twice that of {top.name} along each side, but they are "
            f"{fine.height}x{fine.width} and {grid.height}x{grid.width}"
        )
    coarser = fine_tensors.get("cond_resnet.blocks.0.conv.weight_v")
    if coarser is None:
        raise ValueError(f"{bottom.name} does not hold a prior of the bottom level: it has no cond_resnet")
    config = HierarchicalPixelSNAILConfig(
        top=top_sizes,
        bottom=bottom_sizes,
        condition_width=coarser.shape[0],
        num_condition_residual=_count(fine_tensors, "cond_resnet.blocks.{}.conv1.conv.weight_v", 1),
    )
    prior = HierarchicalPixelSNAIL(CodeSpec((grid, fine)), config)
    conditioner = {}
    for index, (path, (level, sizes, _)) in enumerate(zip((top, bottom), levels, strict=True)):
        ours = _rename(level, sizes.num_output_residual)
        conditioner = {name: ours.pop(name) for name in list(ours) if name.startswith("conditioner.")}
        load_weights(prior.levels[index], ours, path)
    conditioner = {name.removeprefix("conditioner."): value for name, value in conditioner.items()}
    load_weights(prior.conditioners[0], conditioner, bottom)
    return prior.eval()


def _read(path: Path, kind: type[SizesT]) -> tuple[dict[str, Tensor], SizesT, GridSpec]:
    """Tensors but the coordinates, the sizes and the grid of a file."""
    weights = read_weights(path, MARK)
    tensors, content = weights.tensors, weights.content
    stored = content.get("args") if isinstance(content, Mapping) else None
    options = stored.attributes if isinstance(stored, Stub) else {}
    try:
        width, codebook_size = tensors["horizontal.conv.conv.weight_v"].shape[:2]
        kernel = tensors["blocks.0.resblocks.0.conv1.conv.conv.weight_v"]
        height, columns = tensors.pop("background").shape[-2:]
        dropout = options.get("dropout", DROPOUT)
        sizes = kind(
            width=width,
            residual_width=kernel.shape[0],
            num_blocks=_count(tensors, "blocks.{}.resblocks.0.conv1.conv.conv.weight_v"),
            num_residual=_count(tensors, "blocks.0.resblocks.{}.conv1.conv.conv.weight_v"),
            kernel_size=kernel.shape[-1],
            num_heads=NUM_HEADS if "blocks.0.causal_attention.query.weight_v" in tensors else 0,
            num_output_residual=_count(tensors, "out.{}.conv1.conv.weight_v"),
            dropout=float(dropout) if isinstance(dropout, (int, float)) else DROPOUT,
        )
        return tensors, sizes, GridSpec(height, columns, 1, codebook_size)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path.name} does not hold a PixelSNAIL of rosinality's code: {error}") from None


def _count(tensors: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """How many names there are of a pattern with a number, counted from `first` on."""
    index = first
    while pattern.format(index) in tensors:
        index += 1
    return index - first


def _rename(tensors: Mapping[str, Tensor], num_output_residual: int) -> dict[str, Tensor]:
    """Our names; those of the network over the coarser grid begin with "conditioner."."""
    found = {}
    for name, value in tensors.items():
        begin, _, rest = name.partition(".")
        if begin == "out":
            number, _, rest = rest.partition(".")
            begin = f"output_residual.{number}" if int(number) < num_output_residual else "out"
        elif begin == "cond_resnet":
            number, _, rest = rest.removeprefix("blocks.").partition(".")
            begin = "conditioner.input" if number == "0" else f"conditioner.residual.{int(number) - 1}"
        words = [WORDS.get(word, word) for word in [*begin.split("."), *rest.split(".")] if word != "conv"]
        kind = words[-1]
        if kind == "magnitude":
            value = value.flatten()
        elif kind == "direction" and value.ndim == 2:  # a linear map of features is a 1x1 convolution
            value = value[:, :, None, None]
        found[".".join(words)] = value
    return found
