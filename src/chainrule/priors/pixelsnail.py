"""PixelSNAIL: Chen, Mishra, Rohaninejad, Abbeel, "PixelSNAIL: An Improved Autoregressive Generative Model",
arXiv:1712.09763, over one grid of codes.

`_pixelsnail` has the equations, the network and its deviations.
"""

from __future__ import annotations

from ..core import CodeSpec, Preset, register
from ._pixelsnail import PixelSNAIL, PixelSNAILConfig

PRESETS = {"rosinality-top": Preset(PixelSNAILConfig(), CodeSpec.single(32, 32, 1, 512))}

FOR_A_CPU = {"width": 128, "residual_width": 128, "num_blocks": 2, "num_residual": 2, "kernel_size": 3, "num_heads": 4}

register("priors", "pixelsnail", PixelSNAILConfig, PRESETS, FOR_A_CPU)(PixelSNAIL)
