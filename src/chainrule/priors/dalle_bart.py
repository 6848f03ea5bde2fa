"""DALL-E Mini and Mega: Dayma et al. 2021, https://github.com/borisdayma/dalle-mini, as kuprel/min-dalle runs them.

A BART (Lewis et al. 2019, arXiv:1910.13461) from texts w to the codes s_1 .. s_T of one grid:

    y = N encoder(N(embed(w) + positions))
    p(s | w) = prod_i softmax(W N decoder(N(embed(start, s_1, ..., s_(i-1)) + positions); y))_(s_i)

with a LayerNorm N on the embeddings and another at the end.  In the blocks, as in NormFormer (Shleifer et al. 2021,
arXiv:2110.09456), attention has a LayerNorm before and one after it, inside the branch, and the MLP is gated,

    x <- x + W_2 N(gelu(W_0 N x) * W_1 N x)

There are no biases but those of the norms.  Padding has id 1 and is not seen.  The start token is the row of the last
code; embedding and classifier may have rows beyond the codes of the tokenizer, which are never drawn.

Deviation: W_0 and W_1, and queries, keys and values, are one matrix each.

Shape letters: B batch, S tokens of the text, T codes, E width, K vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Codes, CodeSpec, Conditions, Context, Preset, Prior, Runner, register
from ..core.checks import MAX_SIZE, check_heads, check_range, check_sizes
from ..kernels.transformer import Precision
from ..layers.encoder_decoder import CrossRunner, CrossState, DecoderBlock, EncoderBlock, GatedMLP
from ..layers.transformer import STD, Head, initialize

PADDING = 1


@dataclass(frozen=True, kw_only=True)
class DalleBartConfig:
    """Sizes.

    num_layers, width, num_heads:      of encoder and decoder alike
    mlp_width:                         features inside the MLPs
    num_rows:                          of the code embedding and of the classifier, at least the codes
    text_length, text_vocab_size:      tokens of a padded text, each of so many values; 1 is padding
    """

    num_layers: int = 12
    width: int = 1024
    num_heads: int = 16
    mlp_width: int = 2730
    num_rows: int = 16385
    text_length: int = 64
    text_vocab_size: int = 50264

    def __post_init__(self) -> None:
        check_sizes(self, "num_layers", "mlp_width", "num_rows", "text_length")
        check_heads(self, "num_heads")
        check_range(self, 0, MAX_SIZE, "text_vocab_size")
        if self.text_vocab_size < 3:
            raise ValueError(
                f"text_vocab_size must be at least 3 (start, padding and a token), got {self.text_vocab_size}"
            )


@register(
    "priors",
    "dalle_bart",
    DalleBartConfig,
    {
        "mini": Preset(DalleBartConfig(), CodeSpec.single(16, 16, 1, 16384)),
        "mega": Preset(
            DalleBartConfig(
                num_layers=24,
                width=2048,
                num_heads=32,
                mlp_width=4096,
                num_rows=16416,
                text_length=64,
                text_vocab_size=50272,
            ),
            CodeSpec.single(16, 16, 1, 16384),
        ),
    },
    small={"num_layers": 3, "width": 192, "num_heads": 4, "mlp_width": 512},
)
class DalleBart(Prior):
    """An encoder of texts and a decoder over one grid of codes.

    Args:
        spec: one grid; codes of depth above 1 are flattened like all others.
        config: sizes.

    Raises:
        ValueError: fewer rows than codes.
    """

    def __init__(self, spec: CodeSpec, config: DalleBartConfig) -> None:
        super().__init__(spec, Conditions(text_length=config.text_length, text_vocab_size=config.text_vocab_size))
        self.config = config
        grid, width = spec.only, config.width
        if config.num_rows < grid.codebook_size:
            raise ValueError(f"num_rows ({config.num_rows}) must be at least the number of codes, {grid.codebook_size}")
        norms = {"norm": nn.LayerNorm, "out_norm": nn.LayerNorm, "dropout": 0.0}
        self.words = nn.Embedding(config.text_vocab_size, width)
        self.word_positions = nn.Parameter(torch.empty(config.text_length, width))
        self.words_norm = nn.LayerNorm(width)
        self.encoder = nn.ModuleList(
            EncoderBlock(width, config.num_heads, GatedMLP(width, config.mlp_width, nn.LayerNorm), **norms)
            for _ in range(config.num_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.codes = nn.Embedding(config.num_rows, width)
        self.positions = nn.Parameter(torch.empty(grid.num_positions, width))
        self.codes_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            DecoderBlock(width, config.num_heads, GatedMLP(width, config.mlp_width, nn.LayerNorm), **norms)
            for _ in range(config.num_layers)
        )
        self.head = Head(width, config.num_rows, bias=False)
        self.apply(initialize)
        for parameter in (self.word_positions, self.positions):
            nn.init.normal_(parameter, std=STD)

    def check_context(self, context: Context, batch_size: int) -> None:
        super().check_context(context, batch_size)
        if bool((context.text == PADDING).all(1).any()):
            raise ValueError("a text must have a token beside the padding; the empty text is <s> </s>")

    def encode(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (B, S) -> the encoder's output (B, S, E), and which of its tokens are seen, bool (B, 1, 1, S)."""
        seen = (text != PADDING)[:, None, None]
        x = self.words_norm(self.words(text) + self.word_positions)
        for block in self.encoder:
            x = block(x, seen)
        return self.encoder_norm(x), seen

    def rows(self, flat: Tensor, context: Context) -> Tensor:
        """Codes in order, int64 (B, T) -> logits of all rows of the classifier, (B, T, num_rows)."""
        memory, seen = self.encode(context.text)
        start = torch.full_like(flat[:, :1], self.spec.only.codebook_size - 1)
        x = self.codes(torch.cat([start, flat[:, :-1]], dim=1)) + self.positions
        x, length = self.codes_norm(x), flat.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=flat.device).tril()
        for block in self.decoder:
            x = block(x, mask, memory, seen)
        return self.head(x)

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        grid = self.spec.only
        logits = self.rows(self.spec.flatten(codes), context)[..., : grid.codebook_size]
        return (logits.unflatten(1, grid.shape),)

    def runner(self, precision: Precision = "float32") -> DalleBartRunner:
        return DalleBartRunner(self, precision)


class DalleBartRunner(Runner):
    """A DALL-E mini, one code at a time."""

    def __init__(self, prior: DalleBart, precision: Precision) -> None:
        super().__init__(prior)
        distances = torch.arange(prior.spec.length, device=self.device)
        self.decoder = CrossRunner(prior.decoder, precision, prior.head, distances)

    def start(self, batch_size: int, context: Context) -> CrossState:
        return self.decoder.start(*self.prior.encode(context.text), self.prior.spec.length)

    def advance(self, previous: Tensor, state: CrossState) -> tuple[Tensor, CrossState]:
        prior, lengths, codebook_size = self.prior, state.cache.lengths, self.prior.spec.only.codebook_size
        token = torch.where(lengths == 0, codebook_size - 1, previous)
        x = prior.codes_norm(prior.codes(token) + prior.positions[lengths])
        return self.decoder.step(x, state)[:, :codebook_size], state
