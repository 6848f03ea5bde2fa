"""Sizes of priors that the benchmarks measure."""

from chainrule.core import CodeSpec, GridSpec, Preset
from chainrule.priors.dalle import DALLEConfig
from chainrule.priors.gated_pixelcnn import GatedPixelCNNConfig
from chainrule.priors.gpt import GPTConfig
from chainrule.priors.parti import PartiConfig
from chainrule.priors.rq_transformer import RQTransformerConfig

SIZES = {
    "dalle": Preset(
        DALLEConfig(
            num_layers=12, width=768, num_heads=12, attention="full", start_token=False, axial_positions=False
        ),
        CodeSpec((GridSpec(1, 64, 1, 16384), GridSpec(16, 16, 1, 16384))),
    ),
    "gated_pixelcnn": Preset(
        GatedPixelCNNConfig(num_layers=10, width=128, kernel_size=3, head_width=128),
        CodeSpec.single(28, 28, 1, 2),
    ),
    "gpt": Preset(GPTConfig(num_layers=12, width=768, num_heads=12), CodeSpec.single(16, 16, 1, 1024)),
    "parti": Preset(
        PartiConfig(
            encoder_layers=4, decoder_layers=8, width=320, num_heads=5, text_length=32, text_vocab_size=4096
        ),
        CodeSpec.single(16, 16, 1, 1024),
    ),
    "rq_transformer": Preset(
        RQTransformerConfig(width=768, num_layers=12, num_heads=12, depth_layers=4, depth_heads=12),
        CodeSpec.single(8, 8, 4, 1024),
    ),
}  # fmt: skip
