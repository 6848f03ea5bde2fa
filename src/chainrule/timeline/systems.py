"""The eight systems: what each added, and the stages that train it.

A stage is a recipe without its section `data`.  The first stages of a system train its tokenizer, the last one its
prior; `TOKENIZER` stands for the folder of the stage before.  Systems that read captions share one reranker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TOKENIZER = "the stage before"
Stage = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class System:
    """One system of the timeline.

    key, title:      for folders and for people
    year:            of the first paper
    paper, arxiv:    its authors and its number
    idea:            what it added, in a few sentences
    wants:           what its prior is conditioned on, if the images have it
    pixels:          whether it models pixels, and so takes the smaller images
    bundled:         name of the bundled model, if there is one
    stages:          recipes that train it on the user's images, small enough for a CPU
    sampling:        fields of `decoding.Sampling`; guidance only where the images have labels or captions
    """

    key: str
    title: str
    year: int
    paper: str
    arxiv: str
    idea: str
    wants: Literal["nothing", "label", "caption"]
    stages: tuple[Stage, ...]
    pixels: bool = False
    bundled: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


def _training(steps: int, batch_size: int = 32, **others: Any) -> Stage:
    return {"steps": steps, "batch_size": batch_size, "save_every": 200, "log_every": 20, **others}


TEXT = {"length": 28, "text_vocab_size": 400}
BUNDLED_RERANKER = "emoji_reranker"
RERANKER: Stage = {
    "text": TEXT,
    "reranker": {"width": 64, "text_layers": 1},
    "training": _training(300, 128),
}

SYSTEMS = (
    System(
        key="pixelrnn",
        title="PixelRNN",
        year=2016,
        paper="van den Oord, Kalchbrenner, Kavukcuoglu",
        arxiv="1601.06759",
        idea=(
            "An image is a sequence of pixels, and a recurrent network gives the probability of each pixel given all "
            "pixels above it and to its left. The product of these probabilities is the exact likelihood of the image. "
            "The Row LSTM reads a whole row at once, so that only the rows follow each other in time."
        ),
        wants="nothing",
        pixels=True,
        bundled="emoji32_row_lstm",
        sampling={"temperature": 0.9, "guidance": 1.5},
        stages=(
            {"prior": {"name": "row_lstm", "num_layers": 3, "width": 16, "head_width": 32}, "training": _training(220)},
        ),
    ),
    System(
        key="pixelcnn",
        title="PixelCNN",
        year=2016,
        paper="van den Oord et al.",
        arxiv="1606.05328",
        idea=(
            "Masked convolutions take the place of the recurrence. All pixels of a training image are predicted in one "
            "pass, so training is fast, while sampling still goes pixel by pixel. Gated layers and a vertical stack "
            "remove the blind spot of the first version."
        ),
        wants="label",
        pixels=True,
        bundled="emoji32_gated_pixelcnn",
        sampling={"temperature": 0.9, "guidance": 1.5},
        stages=(
            {
                "prior": {"name": "gated_pixelcnn", "num_layers": 5, "width": 32, "kernel_size": 3, "head_width": 64},
                "training": _training(220),
            },
        ),
    ),
    System(
        key="vqvae",
        title="VQ-VAE",
        year=2017,
        paper="van den Oord, Vinyals, Kavukcuoglu",
        arxiv="1711.00937",
        idea=(
            "An encoder turns the image into a small grid of entries of a learned codebook, and a decoder turns the "
            "codes back into pixels. A PixelCNN then models the codes, which are far fewer than the pixels."
        ),
        wants="label",
        bundled="emoji_gated_pixelcnn",
        sampling={"temperature": 0.7, "guidance": 1.5},
        stages=(
            {
                "tokenizer": {
                    "name": "vqvae",
                    "width": 64,
                    "residual_width": 32,
                    "num_blocks": 2,
                    "downsampling": 4,
                    "codebook_size": 128,
                    "embedding_dim": 32,
                },
                "training": _training(250, channels_last=True),
            },
            {
                "tokenizer": {"path": TOKENIZER},
                "prior": {
                    "name": "gated_pixelcnn",
                    "num_layers": 5,
                    "width": 32,
                    "kernel_size": 3,
                    "head_width": 64,
                    "embedding_dim": 32,
                },
                "training": _training(300),
            },
        ),
    ),
    System(
        key="vqvae2",
        title="VQ-VAE-2",
        year=2019,
        paper="Razavi, van den Oord, Vinyals",
        arxiv="1906.00446",
        idea=(
            "Two grids of codes instead of one: a small one for the layout and a larger one for detail. The prior "
            "draws the small grid first, with attention, and the larger one given the small one."
        ),
        wants="label",
        bundled="emoji_pixelsnail",
        sampling={"temperature": 0.6, "guidance": 2.0},
        stages=(
            {
                "tokenizer": {
                    "name": "vqvae2",
                    "width": 64,
                    "residual_width": 32,
                    "num_blocks": 2,
                    "downsampling": 4,
                    "codebook_size": 128,
                    "embedding_dim": 32,
                },
                "training": _training(250, channels_last=True),
            },
            {
                "tokenizer": {"path": TOKENIZER},
                "prior": {
                    "name": "hierarchical_pixelsnail",
                    "top": {
                        "width": 32,
                        "residual_width": 32,
                        "num_blocks": 1,
                        "num_residual": 2,
                        "kernel_size": 3,
                        "num_heads": 2,
                    },
                    "bottom": {
                        "width": 32,
                        "residual_width": 32,
                        "num_blocks": 1,
                        "num_residual": 2,
                        "kernel_size": 3,
                    },
                    "condition_width": 32,
                    "num_condition_residual": 1,
                },
                "training": _training(300, compile=False),
            },
        ),
    ),
    System(
        key="vqgan",
        title="VQGAN",
        year=2021,
        paper="Esser, Rombach, Ommer",
        arxiv="2012.09841",
        idea=(
            "The tokenizer is trained with a perceptual loss and a discriminator, so that fewer codes suffice for a "
            "sharp image. A transformer (GPT) models the codes and sees all earlier ones at every step."
        ),
        wants="label",
        bundled="emoji_gpt",
        sampling={"temperature": 0.8, "guidance": 1.5, "precision": "bfloat16"},
        stages=(
            {
                "tokenizer": {
                    "name": "vqgan",
                    "width": 32,
                    "multipliers": [1, 1, 2],
                    "num_blocks": 1,
                    "attention_levels": [],
                    "latent_channels": 64,
                    "norm_groups": 16,
                    "codebook_size": 128,
                    "embedding_dim": 32,
                },
                "losses": {
                    "perceptual": {"network": "efficientnet_lite0", "weight": 1.0},
                    "adversarial": {"width": 32, "start": 0.4, "weight": 0.4},
                },
                "training": _training(250, 16, channels_last=True),
            },
            {
                "tokenizer": {"path": TOKENIZER},
                "prior": {"name": "gpt", "num_layers": 4, "width": 128, "num_heads": 4},
                "training": _training(400),
            },
        ),
    ),
    System(
        key="rq_transformer",
        title="RQ-Transformer",
        year=2022,
        paper="Lee et al.",
        arxiv="2203.01941",
        idea=(
            "Each position carries several codes, each of which corrects what the ones before it left over. The grid "
            "becomes smaller at equal fidelity. One transformer goes over the positions and a small one over the codes "
            "of a position."
        ),
        wants="label",
        bundled="emoji_rq_transformer",
        sampling={"temperature": 0.7, "guidance": 1.5, "precision": "bfloat16"},
        stages=(
            {
                "tokenizer": {
                    "name": "rqvae",
                    "width": 32,
                    "multipliers": [1, 1, 2, 2],
                    "num_blocks": 1,
                    "attention_levels": [],
                    "latent_channels": 64,
                    "norm_groups": 16,
                    "codebook_size": 128,
                    "embedding_dim": 32,
                    "depth": 4,
                },
                "training": _training(250, 16, channels_last=True),
            },
            {
                "tokenizer": {"path": TOKENIZER},
                "prior": {
                    "name": "rq_transformer",
                    "num_layers": 3,
                    "width": 128,
                    "num_heads": 4,
                    "depth_layers": 1,
                    "depth_heads": 4,
                    "embedding_dim": 32,
                },
                "training": _training(500),
            },
        ),
    ),
    System(
        key="dalle",
        title="DALL-E",
        year=2021,
        paper="Ramesh et al.",
        arxiv="2102.12092",
        idea=(
            "Caption and image are one sequence of tokens, and one transformer models both. A discrete VAE with a "
            "relaxed, differentiable choice of codes makes the image tokens. Samples are ranked by a model that "
            "compares image and text."
        ),
        wants="caption",
        bundled="emoji_dalle",
        sampling={"top_k": 200, "guidance": 2.0, "precision": "bfloat16"},
        stages=(
            {
                "tokenizer": {
                    "name": "dvae",
                    "codebook_size": 128,
                    "width": 32,
                    "num_groups": 3,
                    "blocks_per_group": 1,
                    "initial_width": 32,
                    "kl_weight": 0.1,
                    "kl_share": 0.1,
                    "temperature_share": 0.6,
                    "restart_below": 0.2,
                },
                "training": _training(300, 24, channels_last=True),
            },
            {
                "tokenizer": {"path": TOKENIZER},
                "text": TEXT,
                "prior": {"name": "dalle", "num_layers": 4, "width": 128, "num_heads": 4, "kernel_size": 5},
                "training": _training(400, caption_dropout=0.1),
            },
        ),
    ),
    System(
        key="parti",
        title="Parti",
        year=2022,
        paper="Yu et al.",
        arxiv="2206.10789",
        idea=(
            "Text to image is translation: an encoder reads the caption, a decoder writes the codes of the image. "
            "Guidance between the answers with and without the caption, a reranker and an upscaler improve the "
            "result, and size does the rest."
        ),
        wants="caption",
        bundled="emoji_parti",
        sampling={"temperature": 0.7, "guidance": 2.0, "precision": "bfloat16"},
        stages=(
            {
                "tokenizer": {
                    "name": "rqvae",
                    "width": 32,
                    "multipliers": [1, 1, 2],
                    "num_blocks": 1,
                    "attention_levels": [],
                    "latent_channels": 64,
                    "norm_groups": 16,
                    "codebook_size": 128,
                    "embedding_dim": 32,
                    "depth": 1,
                },
                "training": _training(250, 16, channels_last=True),
            },
            {
                "tokenizer": {"path": TOKENIZER},
                "text": TEXT,
                "prior": {"name": "parti", "encoder_layers": 2, "decoder_layers": 3, "width": 128, "num_heads": 4},
                "training": _training(500, caption_dropout=0.1),
            },
        ),
    ),
)
