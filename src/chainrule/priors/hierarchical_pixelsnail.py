"""The prior of VQ-VAE-2: Razavi, van den Oord, Vinyals, "Generating Diverse High-Fidelity Images with VQ-VAE-2",
arXiv:1906.00446, section 3.2.

Codes are modelled from coarse to fine by one PixelSNAIL per grid, the coarsest with attention, finer ones without:

    p(c) = prod_l p(c_l | R_l(c_1, ..., c_(l-1)))

where R_l, a residual network over the coarser codes, one-hot and enlarged to one size, conditions level l.

The architecture is exactly that of rosinality/vq-vae-2-pytorch, whose weights can be converted.  `_pixelsnail` says how
its network departs from the papers.

Shape letters: B batch, H height, W width, C channels, S channels of R_l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ClassLabels, Codes, CodeSpec, GridSpec, Preset, register
from ..core.checks import MAX_SIZE, check_range, check_sizes
from ..layers.weight_norm import WeightNormConv2d
from ._cascade import Cascade
from ._pixelsnail import GatedResidual, PixelSNAIL, PixelSNAILConfig, PixelSNAILSizes


@dataclass(frozen=True, kw_only=True)
class BottomSizes(PixelSNAILSizes):
    """As PixelSNAILSizes, without attention unless asked for."""

    num_heads: int = 0


@dataclass(frozen=True, kw_only=True)
class HierarchicalPixelSNAILConfig(ClassLabels):
    """Sizes, beside the class labels.

    top:                    the network of the coarsest grid
    bottom:                 the network of every finer grid
    condition_width:        features of the network that reads the coarser grids
    num_condition_residual: residual blocks of that network
    """

    top: PixelSNAILSizes = field(default_factory=PixelSNAILSizes)
    bottom: BottomSizes = field(default_factory=BottomSizes)
    condition_width: int = 256
    num_condition_residual: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "condition_width")
        check_range(self, 0, MAX_SIZE, "num_condition_residual")


class Conditioner(nn.Module):
    """A residual network over the coarser grids, one-hot at the size of the finest of them, enlarged to the next."""

    def __init__(self, grids: Sequence[GridSpec], target: GridSpec, config: HierarchicalPixelSNAILConfig) -> None:
        super().__init__()
        self.grids, self.target = tuple(grids), target
        channels = config.condition_width
        codebook_size = sum(grid.codebook_size for grid in grids)
        self.input = WeightNormConv2d(codebook_size, channels, (3, 3), (1, 1, 1, 1))
        self.residual = nn.ModuleList(
            GatedResidual(channels, channels, config.bottom.dropout, 3) for _ in range(config.num_condition_residual)
        )

    def forward(self, codes: Codes) -> Tensor:
        """Codes (B, h, w, 1) of the coarser grids -> (B, S, H, W)."""
        finest, weight = self.grids[-1], self.input.direction
        maps = [
            enlarge(F.one_hot(code[..., 0], grid.codebook_size).to(weight.dtype).permute(0, 3, 1, 2), finest)
            for code, grid in zip(codes, self.grids, strict=True)
        ]
        x = self.input(torch.cat(maps, 1))
        for residual in self.residual:
            x = residual(x)
        return enlarge(x, self.target)


def enlarge(x: Tensor, grid: GridSpec) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W) of a grid, by repetition."""
    return x.repeat_interleave(grid.height // x.shape[2], 2).repeat_interleave(grid.width // x.shape[3], 3)


VQVAE2_CODES = CodeSpec((GridSpec(32, 32, 1, 512), GridSpec(64, 64, 1, 512)))
PRESETS = {
    "rosinality": Preset(HierarchicalPixelSNAILConfig(), VQVAE2_CODES),
    "imagenet256": Preset(  # the sizes of the VQ-VAE-2 paper in this architecture
        HierarchicalPixelSNAILConfig(
            top=PixelSNAILSizes(width=512, residual_width=2048, num_residual=5, num_output_residual=20),
            bottom=BottomSizes(width=512, residual_width=1024, num_residual=5),
            condition_width=512,
            num_condition_residual=20,
            num_classes=1000,
        ),
        VQVAE2_CODES,
    ),
}


_CPU_LEVEL = {"width": 128, "num_blocks": 2, "num_residual": 2, "kernel_size": 3}
FOR_A_CPU = {
    "top": _CPU_LEVEL | {"residual_width": 128, "num_heads": 4},
    "bottom": _CPU_LEVEL | {"residual_width": 96},
    "condition_width": 96,
    "num_condition_residual": 2,
}


@register("priors", "hierarchical_pixelsnail", HierarchicalPixelSNAILConfig, PRESETS, small=FOR_A_CPU)
class HierarchicalPixelSNAIL(Cascade):
    """One PixelSNAIL per grid of VQ-VAE-2's codes, each given the coarser grids."""

    def __init__(self, spec: CodeSpec, config: HierarchicalPixelSNAILConfig) -> None:
        if len(spec.grids) < 2:
            raise ValueError("hierarchical_pixelsnail needs codes of two or more grids; over one, use pixelsnail")
        for coarse, fine in pairwise(spec.grids):
            if fine.height % coarse.height or fine.width % coarse.width:
                raise ValueError(f"each grid must be a whole multiple of the one before, got {coarse} and {fine}")
        levels, conditioners = [], []
        for index, grid in enumerate(spec.grids):
            sizes = config.bottom if index else config.top
            spatial_channels = config.condition_width if index else 0
            labels = {"num_classes": config.num_classes, "null_label": config.null_label}
            level = PixelSNAILConfig(**asdict(sizes), **labels, spatial_channels=spatial_channels)
            levels.append(PixelSNAIL(CodeSpec((grid,)), level))
            if index:
                conditioners.append(Conditioner(spec.grids[:index], grid, config))
        super().__init__(spec, levels, conditioners)
        self.config = config
