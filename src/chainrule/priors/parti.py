"""Parti: Yu et al., "Scaling Autoregressive Models for Content-Rich Text-to-Image Generation", arXiv:2206.10789.

An encoder reads the tokens w of a text, both ways; a decoder draws the codes s_1 .. s_T of one grid in the order of the
factorisation, and looks at the text by cross-attention in every block:

    y = encoder(embed(w) + positions)        p(s | w) = prod_i softmax(W decoder(start, s_1, ..., s_(i-1); y))_(s_i)

Both end in a LayerNorm.  The blocks have matrices only, 12 E^2 numbers in one of the encoder and 16 E^2 in one of the
decoder; these are the sizes by which the models are called.  Texts are padded with token 0 to `text_length`, and
padding is not seen.  The empty text is the condition of guidance: a text of padding alone is read as one token, the
padding, whose vector is thus the learned null condition.

With `attention_radius` r the decoder's self-attention is sparse in the shape of a convolution, as in DALL-E: a token
sees itself and those before it that stand at most r rows above and r columns to the left or right, columns counted
around the edges of the grid:

    token i sees token i - d        d >= 0, d = a W + b, 0 <= a <= r, -r <= b <= r

with W codes in a row, and token i that which reads code i - 1.

Deviations: the norms before the branches have no gain and no bias, as matrices follow them.  What the paper leaves
open: the activation (here GELU), the positions (here learned, one per token), the radius (here that of DALL-E, 5).

Shape letters: B batch, S tokens of the text, T codes, E width, K vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..core import Codes, CodeSpec, Conditions, Context, Preset, Prior, Runner, register
from ..core.checks import MAX_SIZE, check_heads, check_range, check_shares, check_sizes
from ..kernels.transformer import Precision
from ..layers.encoder_decoder import MLP, CrossRunner, CrossState, DecoderBlock, EncoderBlock
from ..layers.transformer import STD, Head, initialize

PADDING = 0


@dataclass(frozen=True, kw_only=True)
class PartiConfig:
    """Sizes; the MLPs have 4 `width` features.

    width, num_heads:                  of both halves
    encoder_layers, decoder_layers:    blocks
    text_length, text_vocab_size:      tokens of a padded text, each of so many values; 0 is padding
    attention_radius:                  r above; 0 for full attention
    dropout:                           share of features dropped from what attention and MLP add, and of the inputs
    """

    encoder_layers: int = 12
    decoder_layers: int = 12
    width: int = 1024
    num_heads: int = 16
    text_length: int = 128
    text_vocab_size: int = 16000
    attention_radius: int = 0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "encoder_layers", "decoder_layers", "text_length")
        check_heads(self, "num_heads")
        check_range(self, 0, MAX_SIZE, "attention_radius", "text_vocab_size")
        check_shares(self, "dropout")
        if self.text_vocab_size < 2:
            raise ValueError(f"text_vocab_size must be at least 2 (padding and a token), got {self.text_vocab_size}")


plain_norm = partial(nn.LayerNorm, elementwise_affine=False)
PAPER = {"attention_radius": 5}
PAPER_SPEC = CodeSpec.single(32, 32, 1, 8192)


@register(
    "priors",
    "parti",
    PartiConfig,
    {
        "350m": Preset(
            PartiConfig(encoder_layers=12, decoder_layers=12, width=1024, num_heads=16, **PAPER), PAPER_SPEC
        ),
        "750m": Preset(
            PartiConfig(encoder_layers=12, decoder_layers=36, width=1024, num_heads=16, **PAPER), PAPER_SPEC
        ),
        "3b": Preset(PartiConfig(encoder_layers=12, decoder_layers=36, width=2048, num_heads=32, **PAPER), PAPER_SPEC),
        "20b": Preset(PartiConfig(encoder_layers=16, decoder_layers=64, width=4096, num_heads=64, **PAPER), PAPER_SPEC),
    },
    small={"encoder_layers": 2, "decoder_layers": 4, "width": 192, "num_heads": 4},
)
class Parti(Prior):
    """An encoder of texts and a decoder over one grid of codes.

    Args:
        spec: one grid; codes of depth above 1 are flattened like all others.
        config: sizes.
    """

    def __init__(self, spec: CodeSpec, config: PartiConfig) -> None:
        super().__init__(spec, Conditions(text_length=config.text_length, text_vocab_size=config.text_vocab_size))
        self.config = config
        grid, width = spec.only, config.width
        block = {"norm": plain_norm, "out_norm": nn.Identity, "dropout": config.dropout}
        self.words = nn.Embedding(config.text_vocab_size, width)
        self.word_positions = nn.Parameter(torch.empty(config.text_length, width))
        self.encoder = nn.ModuleList(
            EncoderBlock(width, config.num_heads, MLP(width, plain_norm), **block) for _ in range(config.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.beginning = nn.Parameter(torch.empty(width))
        self.codes = nn.Embedding(grid.codebook_size, width)
        self.positions = nn.Parameter(torch.empty(grid.num_positions, width))
        self.decoder = nn.ModuleList(
            DecoderBlock(width, config.num_heads, MLP(width, plain_norm), **block) for _ in range(config.decoder_layers)
        )
        self.head = Head(width, grid.codebook_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        distances = attention_distances(grid.num_positions, grid.width * grid.depth, config.attention_radius)
        self.register_buffer("distances", torch.tensor(distances), persistent=False)
        self.apply(initialize)
        for parameter in (self.word_positions, self.beginning, self.positions):
            nn.init.normal_(parameter, std=STD)

    def encode(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (B, S) -> the encoder's output (B, S, E), and which of its tokens are seen, bool (B, 1, 1, S)."""
        seen = text != PADDING
        seen = torch.cat([seen[:, :1] | ~seen.any(1, keepdim=True), seen[:, 1:]], dim=1)[:, None, None]
        x = self.dropout(self.words(text) + self.word_positions)
        for block in self.encoder:
            x = block(x, seen)
        return self.encoder_norm(x), seen

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        memory, seen = self.encode(context.text)
        flat = self.spec.flatten(codes)
        x = torch.cat([self.beginning.expand(len(flat), 1, -1), self.codes(flat[:, :-1])], dim=1)
        x = self.dropout(x + self.positions)
        t = torch.arange(flat.shape[1], device=flat.device)
        mask = torch.isin(t[:, None] - t, self.distances)
        for block in self.decoder:
            x = block(x, mask, memory, seen)
        return (self.head(x).unflatten(1, self.spec.only.shape),)

    def runner(self, precision: Precision = "float32") -> PartiRunner:
        return PartiRunner(self, precision)


class PartiRunner(Runner):
    """A Parti, one code at a time."""

    def __init__(self, prior: Parti, precision: Precision) -> None:
        super().__init__(prior)
        self.decoder = CrossRunner(prior.decoder, precision, prior.head, prior.distances)

    def start(self, batch_size: int, context: Context) -> CrossState:
        return self.decoder.start(*self.prior.encode(context.text), self.prior.spec.length)

    def advance(self, previous: Tensor, state: CrossState) -> tuple[Tensor, CrossState]:
        prior, lengths = self.prior, state.cache.lengths
        x = torch.where((lengths == 0)[:, None], prior.beginning, prior.codes(previous))
        return self.decoder.step(x + prior.positions[lengths], state), state


def attention_distances(num_positions: int, row: int, radius: int) -> list[int]:
    """How far back the tokens stand that a token sees: ascending, in 0..num_positions-1.

    Args:
        num_positions: tokens in all.
        row: tokens in a row of the grid.
        radius: r above; 0 for all tokens.
    """
    if radius == 0:
        return list(range(num_positions))
    window = {a * row + b for a in range(radius + 1) for b in range(-radius, radius + 1)}
    return sorted(distance for distance in window if 0 <= distance < num_positions)
