"""The transformer of VQGAN: Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis",
arXiv:2012.09841, section 3.2.

A decoder-only transformer in the manner of GPT-2 over the codes in the order of the factorisation, s_1 .. s_T, after
a prefix c of P tokens that says what is drawn:

    p(s | c) = prod_i p(s_i | s_<i, c)        logits of s_i = head(blocks(embed(c, s_<i) + positions))

The prefix is a class (P = 1), the codes of another image, such as its depth or segmentation (P = `prefix_length`), or
nothing, that is, one learned start token.  Classes and prefix codes share the rows of the code embedding: class 3 and
code 3 are told apart by their positions alone, as in the authors' code, which the parameter counts of the paper
presuppose.

A grid larger than the trained one is drawn through a window of the trained size (section 3.3): `SlidingWindow`.

Deviation: the start token has a vector of its own; the authors take code 0 for it.  Codes of depth above 1 are
flattened like all others.

Shape letters: B batch, T codes, P prefix, E width, K vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import ClassLabels, Codes, CodeSpec, Context, Preset, register
from ..kernels.transformer import Precision
from ..layers.transformer import STD, Block, Decoder, Head, KVCache, TransformerPrior, initialize


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ClassLabels):
    """Sizes, beside the class labels, of which one is the prefix where there are any.

    num_layers:           blocks
    width:                features of a token, a multiple of num_heads
    num_heads:            heads of attention
    num_classes:        a class as prefix
    prefix_length:      or this many codes of another image, of prefix_codebook_size values
    dropout:            of what every block adds
    embedding_dropout:  of the embedded tokens
    attention_dropout:  of attention weights
    """

    num_layers: int = 24
    width: int = 1024
    num_heads: int = 16
    prefix_length: int = 0
    prefix_codebook_size: int = 0
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.num_layers, self.width, self.num_heads) < 1 or self.width % self.num_heads:
            raise ValueError(
                f"width must be a multiple of num_heads, and there must be a layer; got width {self.width}, num_heads "
                f"{self.num_heads}, num_layers {self.num_layers}"
            )
        if (self.prefix_length > 0) != (self.prefix_codebook_size > 0):
            raise ValueError("prefix_length and prefix_codebook_size go together: give both or neither")
        if self.num_classes and self.prefix_length:
            raise ValueError("the prefix is a class or the codes of another image, not both; leave one at 0")
        for name in ("dropout", "embedding_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


@dataclass
class GPTState:
    """What `GPT.step` remembers."""

    pending: Tensor  # (B, E), the last token known at the start, embedded: the first that is read
    first: int  # its position
    cache: KVCache
    decoder: Decoder


@register(
    "priors",
    "gpt",
    GPTConfig,
    {
        "rin": Preset(GPTConfig(num_layers=12, width=768, num_heads=16), CodeSpec.single(16, 16, 1, 768)),
        "imagenet": Preset(
            GPTConfig(num_layers=24, width=1024, num_heads=16, num_classes=1000), CodeSpec.single(16, 16, 1, 1024)
        ),
        "imagenet-big": Preset(
            GPTConfig(num_layers=48, width=1536, num_heads=16, num_classes=1000), CodeSpec.single(16, 16, 1, 16384)
        ),
        "depth": Preset(
            GPTConfig(num_layers=24, width=1024, num_heads=16, prefix_length=256, prefix_codebook_size=1024),
            CodeSpec.single(16, 16, 1, 1024),
        ),
        "faces": Preset(GPTConfig(num_layers=28, width=1024, num_heads=16), CodeSpec.single(16, 16, 1, 1024)),
        "faces-big": Preset(GPTConfig(num_layers=24, width=1664, num_heads=16), CodeSpec.single(16, 16, 1, 1024)),
        "coco": Preset(
            GPTConfig(num_layers=32, width=1280, num_heads=16, prefix_length=256, prefix_codebook_size=1024),
            CodeSpec.single(16, 16, 1, 8192),
        ),
        "ade20k": Preset(
            GPTConfig(
                num_layers=28,
                width=1024,
                num_heads=16,
                prefix_length=256,
                prefix_codebook_size=1024,
                dropout=0.1,
                embedding_dropout=0.1,
                attention_dropout=0.1,
            ),
            CodeSpec.single(16, 16, 1, 4096),
        ),
    },
)
class GPT(TransformerPrior):
    """A decoder-only transformer over one grid of codes."""

    def __init__(self, spec: CodeSpec, config: GPTConfig) -> None:
        prefix = {"prefix_length": config.prefix_length, "prefix_codebook_size": config.prefix_codebook_size}
        super().__init__(spec, config.conditions(**prefix))
        self.config, grid = config, spec.only
        self.prefix_length = config.prefix_length or 1
        rows = max(grid.codebook_size, config.num_labels, config.prefix_codebook_size)
        self.tokens = nn.Embedding(rows, config.width)
        self.positions = nn.Parameter(torch.zeros(self.prefix_length + grid.num_positions, config.width))
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.dropout, config.attention_dropout)
            for _ in range(config.num_layers)
        )
        self.head = Head(config.width, grid.codebook_size, bias=False)
        self.apply(initialize)
        conditional = config.num_classes or config.prefix_length
        self.beginning = None if conditional else nn.Parameter(torch.randn(config.width) * STD)

    def prefix(self, batch_size: int, context: Context) -> Tensor:
        """The tokens before the first code, embedded: (B, P, E)."""
        if self.beginning is not None:
            return self.beginning.expand(batch_size, 1, -1)
        return self.tokens(context.prefix if self.config.prefix_length else context.label[:, None])

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        flat = self.spec.flatten(codes)
        x = torch.cat([self.prefix(len(flat), context), self.tokens(flat[:, :-1])], dim=1)
        x = self.dropout(x + self.positions[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        logits = self.head(x[:, self.prefix_length - 1 :])
        return (logits.unflatten(1, self.spec.only.shape),)

    def pack(self, precision: Precision) -> Decoder:
        return Decoder(self.blocks, precision, self.head)

    def start(self, packed: Decoder, batch_size: int, context: Context) -> GPTState:
        self.check_context(context, batch_size)
        return self.resume(packed, context, torch.empty(batch_size, 0, dtype=torch.int64, device=self.positions.device))

    def resume(self, packed: Decoder, context: Context, known: Tensor) -> GPTState:
        """The state after the first n codes, int64 (B, n), which are read at once."""
        tokens = torch.cat([self.prefix(len(known), context), self.tokens(known)], dim=1)
        tokens = tokens + self.positions[: tokens.shape[1]]
        cache = packed.init_cache(len(known), self.prefix_length + self.spec.length - 1)
        packed.prefill(tokens[:, :-1], cache)
        return GPTState(tokens[:, -1], cache.length, cache, packed)

    def step(self, previous: Tensor, state: GPTState) -> tuple[Tensor, GPTState]:
        t = state.cache.length  # of all tokens, the prefix among them
        x = state.pending if t == state.first else self.tokens(previous) + self.positions[t]
        return state.decoder.step(x, state.cache), state


@dataclass
class SlidingState:
    """What `SlidingWindow.step` remembers."""

    t: int
    codes: Tensor  # (B, T), those known so far
    context: Context
    inner: GPTState  # of the window around the last code


class SlidingWindow(TransformerPrior):
    """A GPT over a grid of height x width, at least the one that it was trained on, h x w.

    Each code is drawn from what an h x w window around it holds of the codes before it; the window is centred on the
    code as far as the borders allow (its first row is row - h // 2, kept within 0 .. height - h; columns likewise).
    Where the window moves, its known codes are read anew, all at once; along borders it stands still.

    Raises:
        ValueError: a smaller grid, or a model whose prefix is another image, which would have to slide along.
    """

    def __init__(self, prior: GPT, height: int, width: int) -> None:
        grid = prior.spec.only
        if height < grid.height or width < grid.width:
            raise ValueError(
                f"the grid must be at least {grid.height}x{grid.width}, as in training; got {height}x{width}"
            )
        if prior.config.prefix_length:
            raise ValueError("a model whose prefix is the codes of another image has no sliding window")
        super().__init__(CodeSpec.single(height, width, grid.depth, grid.codebook_size), prior.conditions)
        self.prior = prior

    def window(self, row: int, column: int) -> tuple[int, int]:
        """The first row and column of the window in which a code is drawn."""
        trained, whole = self.prior.spec.only, self.spec.only
        return (
            min(max(row - trained.height // 2, 0), whole.height - trained.height),
            min(max(column - trained.width // 2, 0), whole.width - trained.width),
        )

    def crop(self, codes: Tensor, top: int, left: int) -> Tensor:
        """(B, H, W, D) -> the codes of a window, (B, h, w, D)."""
        trained = self.prior.spec.only
        return codes[:, top : top + trained.height, left : left + trained.width]

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        (grid,), whole = codes, self.spec.only
        places = [(row, column) for row in range(whole.height) for column in range(whole.width)]
        windows = {window: self.prior((self.crop(grid, *window),), context)[0]
                   for window in dict.fromkeys(self.window(*place) for place in places)}  # fmt: skip
        logits = []
        for row, column in places:
            top, left = self.window(row, column)
            logits.append(windows[top, left][:, row - top, column - left])
        return (torch.stack(logits, 1).unflatten(1, (whole.height, whole.width)),)

    def pack(self, precision: Precision) -> Decoder:
        return self.prior.pack(precision)

    def start(self, packed: Decoder, batch_size: int, context: Context) -> SlidingState:
        inner = self.prior.start(packed, batch_size, context)
        codes = torch.zeros(batch_size, self.spec.length, dtype=torch.int64, device=self.prior.positions.device)
        return SlidingState(0, codes, context, inner)

    def step(self, previous: Tensor, state: SlidingState) -> tuple[Tensor, SlidingState]:
        t, here = state.t, self.spec.position(state.t)
        top, left = self.window(here.row, here.column)
        if t > 0:
            state.codes[:, t - 1] = previous
            last = self.spec.position(t - 1)
            if (top, left) != self.window(last.row, last.column):
                crop = self.crop(self.spec.unflatten(state.codes)[0], top, left)
                grid = self.prior.spec.only
                known = ((here.row - top) * grid.width + here.column - left) * grid.depth + here.depth
                state.inner = self.prior.resume(state.inner.decoder, state.context, crop.flatten(1)[:, :known])
        logits, state.inner = self.prior.step(previous, state.inner)
        state.t += 1
        return logits, state
