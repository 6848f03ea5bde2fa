"""A tiny size of every registered model, for the contract tests and all others that build one.

A model without a size here gets the one that `STANDARD` makes of the fields of its config, so that a new model is held
to the contract as soon as it is registered.
"""

from __future__ import annotations

from dataclasses import fields

import pytest

from chainrule.core import CodeSpec, GridSpec, Preset, entries, entry
from chainrule.priors._pixelsnail import PixelSNAILSizes
from chainrule.priors.hierarchical_pixelsnail import BottomSizes
from chainrule.tokenizers.vit_vqgan import TransformerSize

PRIOR_STANDARD = {
    "width": 8, "num_layers": 2, "num_heads": 2, "kernel_size": 3, "head_width": 6, "residual_width": 4,
    "mlp_width": 6, "embedding_dim": 3, "text_length": 3, "text_vocab_size": 5, "dropout": 0.0,
}  # fmt: skip
TOKENIZER_STANDARD = {
    "image_height": 8, "image_width": 12, "codebook_size": 12, "embedding_dim": 3, "width": 8, "residual_width": 4,
}  # fmt: skip
STANDARD_SPEC = CodeSpec.single(2, 2, 1, 2)

TRANSFORMER = {"num_layers": 2, "width": 8, "num_heads": 2}
RQ = {**TRANSFORMER, "depth_layers": 2, "depth_heads": 4, "embedding_dim": 3}
PARTI = {"encoder_layers": 1, "decoder_layers": 2, "width": 8, "num_heads": 2, "text_length": 3, "text_vocab_size": 5}
PIXELS = {"num_layers": 2, "width": 4, "head_width": 6}
TOP = PixelSNAILSizes(width=4, residual_width=3, num_blocks=1, num_residual=1, kernel_size=3, num_heads=1)
RASTER = {
    "tiny": (PIXELS, CodeSpec.single(3, 4, 1, 2)),
    "tiny-rgb": ({**PIXELS, "num_classes": 3}, CodeSpec.single(2, 2, 3, 2)),
}


def stream(length: int, text_vocab_size: int, height: int, width: int) -> CodeSpec:
    """A text of `length` tokens and the codes, of 2 values, of its image."""
    return CodeSpec((GridSpec(1, length, 1, text_vocab_size), GridSpec(height, width, 1, 2)))


PRIORS = {
    "dalle": {
        "tiny": ({**TRANSFORMER, "num_layers": 3, "kernel_size": 3}, stream(2, 3, 3, 2)),
        "tiny-row": ({**TRANSFORMER, "num_layers": 1, "attention": "row"}, stream(2, 3, 3, 2)),
        "tiny-column": ({**TRANSFORMER, "attention": "column"}, stream(2, 3, 2, 3)),
        "tiny-convolutional": (
            {**TRANSFORMER, "num_layers": 1, "attention": "convolutional", "kernel_size": 3},
            stream(1, 3, 3, 3),
        ),
        "tiny-full": (
            {**TRANSFORMER, "attention": "full", "start_token": False, "axial_positions": False, "quick_gelu": True},
            stream(2, 3, 2, 3),
        ),
    },
    "dalle_bart": {
        "tiny": (
            {**TRANSFORMER, "mlp_width": 6, "num_rows": 4, "text_length": 3, "text_vocab_size": 5},
            CodeSpec.single(2, 3, 1, 3),
        )
    },
    "diagonal_bilstm": RASTER,
    "gated_pixelcnn": {
        "tiny": (
            {"num_layers": 2, "width": 4, "kernel_size": 3, "head_width": 6},
            CodeSpec.single(3, 4, 1, 2),
        ),
        "tiny-rgb": (
            {"num_layers": 3, "width": 3, "kernel_size": 5, "head_width": 6, "num_classes": 2},
            CodeSpec.single(2, 2, 3, 2),
        ),
        "tiny-codes": (
            {"num_layers": 2, "width": 8, "kernel_size": 3, "head_width": 8, "num_classes": 2, "embedding_dim": 4},
            CodeSpec.single(2, 2, 2, 3),
        ),
    },
    "gpt": {
        "tiny": (TRANSFORMER, CodeSpec.single(3, 3, 1, 2)),
        "tiny-class": ({**TRANSFORMER, "num_classes": 3}, CodeSpec.single(2, 2, 2, 2)),
        "tiny-prefix": ({**TRANSFORMER, "image_prefix": "edges"}, CodeSpec.single(2, 3, 1, 2)),
    },
    "hierarchical_pixelsnail": {
        "tiny": (
            {
                "top": TOP,
                "bottom": BottomSizes(width=3, residual_width=4, num_blocks=2, num_residual=1, kernel_size=3),
                "condition_width": 3,
                "num_condition_residual": 1,
                "num_classes": 2,
            },
            CodeSpec((GridSpec(1, 2, 1, 3), GridSpec(2, 4, 1, 2))),
        ),
        "tiny-three": (
            {
                "top": TOP,
                "bottom": BottomSizes(width=3, residual_width=4, num_blocks=1, num_residual=1, kernel_size=3),
                "condition_width": 3,
                "num_condition_residual": 1,
            },
            CodeSpec((GridSpec(1, 1, 1, 2), GridSpec(1, 2, 1, 2), GridSpec(2, 4, 1, 2))),
        ),
    },
    "multiscale_pixelrnn": {
        "tiny": ({**PIXELS, "condition_width": 3}, CodeSpec((GridSpec(1, 2, 1, 2), GridSpec(2, 4, 1, 2)))),
        "tiny-diagonal": (
            {**PIXELS, "num_layers": 1, "num_classes": 2, "variant": "diagonal_bilstm", "condition_width": 3},
            CodeSpec((GridSpec(1, 1, 2, 2), GridSpec(2, 2, 2, 2))),
        ),
    },
    "parti": {
        "tiny": (PARTI, CodeSpec.single(2, 2, 2, 2)),
        "tiny-sparse": ({**PARTI, "attention_radius": 1}, CodeSpec.single(2, 5, 1, 2)),
    },
    "pixelcnn": RASTER,
    "pixelcnnpp": {
        "tiny": (
            {"width": 4, "num_residual": 1, "num_mixtures": 2, "num_classes": 2, "dropout": 0.0},
            CodeSpec.single(2, 2, 3, 2),
        ),
        "tiny-grey": ({"width": 3, "num_residual": 2, "num_mixtures": 3}, CodeSpec.single(3, 3, 1, 3)),
    },
    "pixelsnail": {
        "tiny": (
            {
                "width": 4, "residual_width": 3, "num_blocks": 2, "num_residual": 2, "kernel_size": 3,
                "num_heads": 2, "num_output_residual": 1, "num_classes": 2,
            },
            CodeSpec.single(3, 3, 1, 3),
        ),
        "tiny-convolutional": (
            {"width": 4, "residual_width": 3, "num_blocks": 1, "num_residual": 2, "num_heads": 0},
            CodeSpec.single(3, 4, 1, 2),
        ),
    },
    "row_lstm": RASTER,
    "rq_transformer": {
        "tiny": (RQ, CodeSpec.single(2, 1, 3, 2)),
        "tiny-class": ({**RQ, "shared_codebook": False, "num_classes": 3}, CodeSpec.single(2, 2, 2, 2)),
        "tiny-text": ({**RQ, "text_length": 3, "text_vocab_size": 5}, CodeSpec.single(1, 3, 2, 2)),
    },
}  # fmt: skip
NETWORKS = {
    "width": 8, "multipliers": (1, 2, 2), "num_blocks": 1, "attention_levels": (2,), "latent_channels": 6,
    "norm_groups": 4, "codebook_size": 12, "embedding_dim": 5,
}  # fmt: skip
PIXEL_GRID = {"image_height": 4, "image_width": 6, "image_channels": 3, "levels": 5}
VQVAE = {"width": 8, "residual_width": 4, "codebook_size": 12, "embedding_dim": 3}
VQVAE2 = {
    "downsampling": 2, "width": 8, "residual_width": 4, "num_blocks": 1, "codebook_size": 8, "embedding_dim": 4,
}  # fmt: skip
VIT = {
    "image_height": 16, "image_width": 8, "patch_size": 4, "codebook_size": 16, "embedding_dim": 4, "head_width": 8,
    "encoder": TransformerSize(width=16, num_layers=1, num_heads=2, mlp_width=24),
    "decoder": TransformerSize(width=12, num_layers=2, num_heads=1, mlp_width=16),
}  # fmt: skip
TOKENIZERS = {
    "dvae": {
        "tiny": {
            "image_height": 16, "image_width": 8, "codebook_size": 12, "width": 8, "blocks_per_group": 1,
            "num_groups": 3, "initial_width": 6, "final_temperature": 0.5, "temperature_share": 0.5,
        }
    },
    "multiscale_pixels": {"tiny": {**PIXEL_GRID, "factor": 2}},
    "pixels": {"tiny": PIXEL_GRID},
    "rqvae": {
        "tiny": {**NETWORKS, "image_height": 8, "image_width": 16, "depth": 3},
        "tiny-separate": {**NETWORKS, "image_height": 8, "image_width": 16, "depth": 2, "shared": False},
    },
    "vit_vqgan": {
        "tiny": VIT,
        "tiny-enhancing": {
            **VIT, "variant": "enhancing", "output": "pixels", "logit_laplace_weight": 0.0, "legacy_beta": True
        },
    },
    "vqgan": {
        "tiny": {**NETWORKS, "image_height": 16, "image_width": 8},
        "tiny-ema": {**NETWORKS, "image_height": 16, "image_width": 8, "image_channels": 1, "learning": "ema"},
    },
    "vqgan_gumbel": {"tiny": {**NETWORKS, "image_height": 16, "image_width": 8}},
    "vqvae": {
        "tiny": {**VQVAE, "image_height": 8, "image_width": 12, "image_channels": 1},
        "tiny-loss": {**VQVAE, "image_height": 8, "image_width": 8, "learning": "loss"},
    },
    "vqvae2": {
        "tiny": {**VQVAE2, "image_height": 16, "image_width": 8},
        "tiny-three": {**VQVAE2, "image_height": 8, "image_width": 16, "image_channels": 1, "num_levels": 3},
    },
}  # fmt: skip


def sizes(kind: str, name: str) -> dict[str, Preset]:
    """The tiny sizes of a registered model by name, at least one."""
    config = entry(kind, name).config
    if kind == "priors":
        standard = {"tiny": (_known(config, PRIOR_STANDARD), STANDARD_SPEC)}
        return {size: Preset(config(**given), spec) for size, (given, spec) in PRIORS.get(name, standard).items()}
    standard = {"tiny": _known(config, TOKENIZER_STANDARD)}
    return {size: Preset(config(**given)) for size, given in TOKENIZERS.get(name, standard).items()}


def _known(config: type, values: dict) -> dict:
    """Of `values`, those of fields that a config has."""
    return {field.name: values[field.name] for field in fields(config) if field.name in values}


def tiny(kind: str, name: str, size: str = "tiny") -> Preset:
    """A tiny size of a model, or one of its presets."""
    return (sizes(kind, name) | entry(kind, name).presets)[size]


def cases(kind: str, base: type = object) -> list:
    """(entry, size) of every model of a kind that is a `base`, as parameters of a test."""
    return [
        pytest.param(found, preset, id=f"{found.name}-{size}")
        for found in entries(kind).values()
        if issubclass(found.model, base)
        for size, preset in sizes(kind, found.name).items()
    ]
