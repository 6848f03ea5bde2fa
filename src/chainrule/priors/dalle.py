"""DALL-E: Ramesh, Pavlov, Goh, Gray, Voss, Radford, Chen, Sutskever, "Zero-Shot Text-to-Image Generation",
arXiv:2102.12092, section 2.2 and appendix B.1.

One decoder-only transformer over a single stream, the tokens y_1 .. y_L of a text and then the codes x_1 .. x_N of its
image in raster order:

    p(y, x) = prod_i p(y_i | y_<i) prod_j p(x_j | y, x_<j)

The codes are two grids, (1, L, 1) and (h, w, 1); a caption is a known first grid.  Code 0 of the text is padding: at
each of the L positions it has a learned vector of its own, and is attended to like any other token.  An image code is
embedded as itself + its row + its column.  Every image code attends to the whole text and, within the image, by the
pattern of the layer: of layers i = 1 .. n the last is convolutional, others are column where i - 2 is a multiple of 4
and else row.  The loss weighs the mean over text tokens by 1/8 and that over image codes by 7/8.

The kind of a token is known from its position, so that one softmax over both vocabularies, of which only one may
stand there, is the same as a softmax for each; here each has its embedding and its output layer.  A text token attends
in all patterns to all before it.

What the paper leaves open: positions of the text are learned vectors; a learned start token stands before the text, and
the last position of the text predicts the first code of the image, without a token between.  The outputs have no bias.
With `start_token` off, nothing predicts the first token of a text, which is then uniform: so in minDALL-E
(kakaobrain, 2021), whose image positions are learned one by one (`axial_positions` off).

Shape letters: B batch, L text tokens, N image codes, E width, V text vocabulary, K image vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Codes, CodeSpec, Conditions, Context, GridSpec, Preset, Prior, Runner, register
from ..core.building import constant
from ..core.checks import check_heads, check_odd, check_shares, check_sizes
from ..kernels.transformer import Precision, pack_linear
from ..layers.transformer import STD, Block, BlockRunner, KVCache, initialize, quick_gelu
from ._sparse_attention import Pattern, visible


@dataclass(frozen=True, kw_only=True)
class DALLEConfig:
    """Sizes and variants.

    num_layers:         blocks
    width:              features of a token, a multiple of num_heads
    num_heads:          heads of attention
    attention:          "paper", the order of patterns above, or one pattern for all layers
    kernel_size:        of the convolutional pattern
    text_weight:        what the text counts in the loss; the image counts the rest
    start_token:        before the text
    axial_positions:    rows and columns of the image, or a vector for each of its codes
    quick_gelu:         x sigmoid(1.702 x) in the MLP, or exact GELU
    dropout:            of what every block adds
    embedding_dropout:  of the embedded tokens
    attention_dropout:  of attention weights
    """

    num_layers: int = 64
    width: int = 3968
    num_heads: int = 62
    attention: Literal["paper", "full", "row", "column", "convolutional"] = "paper"
    kernel_size: int = 11
    text_weight: float = 0.125
    start_token: bool = True
    axial_positions: bool = True
    quick_gelu: bool = False
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "num_layers")
        check_heads(self, "num_heads")
        check_odd(self, "kernel_size", 1)
        if not 0 <= self.text_weight <= 1:
            raise ValueError(f"text_weight must lie in [0, 1], got {self.text_weight}")
        check_shares(self, "dropout", "embedding_dropout", "attention_dropout")

    def pattern(self, layer: int) -> Pattern:
        """The attention of a layer, counted from 1."""
        if self.attention != "paper":
            return self.attention
        if layer == self.num_layers:
            return "convolutional"
        return "column" if (layer - 2) % 4 == 0 else "row"


def stream(length: int, text_vocab_size: int, height: int, width: int, codebook_size: int) -> CodeSpec:
    """The codes of a text of `length` tokens and of its image."""
    return CodeSpec((GridSpec(1, length, 1, text_vocab_size), GridSpec(height, width, 1, codebook_size)))


@register(
    "priors",
    "dalle",
    DALLEConfig,
    {
        "dalle": Preset(DALLEConfig(), stream(256, 16385, 32, 32, 8192)),
        "mindalle": Preset(
            DALLEConfig(
                num_layers=42, width=1536, num_heads=24, attention="full", start_token=False, axial_positions=False
            ),
            stream(64, 16384, 16, 16, 16384),
        ),
    },
    small={"num_layers": 6, "width": 192, "num_heads": 4, "kernel_size": 5},
)
class DALLE(Prior):
    """A decoder-only transformer over a text and its image."""

    @classmethod
    def spec_of(cls, image: CodeSpec, text: GridSpec | None) -> CodeSpec:
        if text is None:
            raise ValueError(f"{cls.name} draws a text and its image; add the section 'text'")
        return CodeSpec((text, *image.grids))

    def __init__(self, spec: CodeSpec, config: DALLEConfig) -> None:
        super().__init__(spec, Conditions(joint_text=True))
        self.config = config
        if len(spec.grids) != 2 or spec.grids[0].shape[::2] != (1, 1) or spec.grids[1].depth != 1:
            shapes = ", ".join(str(grid.shape) for grid in spec.grids)
            raise ValueError(f"codes must be a text (1, L, 1) and an image (h, w, 1), got {shapes}")
        text, image = spec.grids
        self.tokens = nn.ModuleList(nn.Embedding(grid.codebook_size, config.width) for grid in spec.grids)
        self.padding = nn.Parameter(nn.init.normal_(torch.empty(text.num_positions, config.width), std=STD))
        self.beginning = None
        if config.start_token:
            self.beginning = nn.Parameter(nn.init.normal_(torch.empty(config.width), std=STD))
        self.text_positions = nn.Parameter(torch.zeros(text.num_positions, config.width))
        sides = (image.height, image.width) if config.axial_positions else (image.num_positions,)
        self.image_positions = nn.ParameterList(torch.zeros(side, config.width) for side in sides)
        self.dropout = nn.Dropout(config.embedding_dropout)
        num_before = text.num_positions + config.start_token
        patterns = [config.pattern(layer) for layer in range(1, config.num_layers + 1)]
        square = 2 * (num_before + image.num_positions,)
        size = image.height, image.width, config.kernel_size
        masks = {
            pattern: constant(square, lambda pattern=pattern: visible(pattern, num_before, *size), torch.bool)
            for pattern in {*patterns} - {"full"}
        }
        self.blocks = nn.ModuleList(
            Block(
                config.width, config.num_heads, config.dropout, config.attention_dropout, masks.get(pattern),
                quick_gelu if config.quick_gelu else F.gelu,
            )
            for pattern in patterns
        )  # fmt: skip
        self.norm = nn.LayerNorm(config.width)
        self.heads = nn.ModuleList(nn.Linear(config.width, grid.codebook_size, bias=False) for grid in spec.grids)
        self.apply(initialize)

    @property
    def grid_weights(self) -> tuple[float, ...]:
        return self.config.text_weight, 1 - self.config.text_weight

    def embed(self, codes: Codes) -> Tensor:
        """All tokens of the stream with their positions, without the start token: (B, L + N, E)."""
        text, image = (grid.flatten(1) for grid in codes)
        words = torch.where((text == 0).unsqueeze(-1), self.padding, self.tokens[0](text)) + self.text_positions
        return torch.cat([words, self.tokens[1](image) + self._places()], dim=1)

    def embed_one(self, code: Tensor, index: int) -> Tensor:
        """The token at `index` of the stream, 0 <= index < L + N, with its position: (B,) -> (B, E)."""
        length = len(self.text_positions)
        if index >= length:
            return self.tokens[1](code) + self._places()[index - length]
        word = torch.where((code == 0).unsqueeze(-1), self.padding[index], self.tokens[0](code))
        return word + self.text_positions[index]

    def _places(self) -> Tensor:
        """Positions of the image codes: (N, E)."""
        if not self.config.axial_positions:
            return self.image_positions[0]
        rows, columns = self.image_positions
        return (rows[:, None] + columns).flatten(0, 1)

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        x = self.embed(codes)[:, :-1]
        if self.beginning is not None:
            x = torch.cat([self.beginning.expand(len(x), 1, -1), x], dim=1)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        num_positions = self.spec.grids[1].num_positions
        text, image = self.norm(x).split([x.shape[1] - num_positions, num_positions], dim=1)
        text_logits = self.heads[0](text)
        if self.beginning is None:
            text_logits = F.pad(text_logits, (0, 0, 1, 0))
        logits = text_logits, self.heads[1](image)
        return tuple(one.unflatten(1, grid.shape) for one, grid in zip(logits, self.spec.grids, strict=True))

    def runner(self, precision: Precision = "float32") -> DALLERunner:
        return DALLERunner(self, precision)


@dataclass
class DALLEState:
    """What a `DALLERunner` remembers; all images are at the same code, as texts and images have other vocabularies."""

    t: int
    cache: KVCache


class DALLERunner(Runner):
    """A DALL-E, one code at a time."""

    def __init__(self, prior: DALLE, precision: Precision) -> None:
        super().__init__(prior)
        self.blocks = BlockRunner(prior.blocks, precision)
        self.outputs = [pack_linear(head, precision) for head in prior.heads]

    def start(self, batch_size: int, context: Context) -> DALLEState:
        num_tokens = self.prior.spec.length - 1 + self.prior.config.start_token
        return DALLEState(0, self.blocks.init_cache(batch_size, num_tokens))

    def advance(self, previous: Tensor, state: DALLEState) -> tuple[Tensor, DALLEState]:
        prior, t = self.prior, state.t
        state.t += 1
        if t > 0:
            x = prior.embed_one(previous, t - 1)
        elif prior.beginning is not None:
            x = prior.beginning.expand(len(previous), -1)
        else:
            return prior.padding.new_zeros(len(previous), prior.spec.grids[0].codebook_size), state
        x = prior.norm(self.blocks.step(x, state.cache))
        return self.outputs[prior.spec.position(t).grid](x), state
