"""The transformer of VQGAN: Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis",
arXiv:2012.09841, section 3.2.

A decoder-only transformer in the manner of GPT-2 over the codes in the order of the factorisation, s_1 .. s_T, after
a prefix c of P tokens that says what is drawn:

    p(s | c) = prod_i p(s_i | s_<i, c)        logits of s_i = head(blocks(embed(c, s_<i) + positions))

The prefix is a class (P = 1), the codes of another image, such as its depth or segmentation (P = `prefix_length`) or,
by the same tokenizer, its edges (`image_prefix`, P = T), or nothing, that is, one learned start token.  Classes and
prefix codes share the rows of the code embedding: class 3 and code 3 are told apart by their positions alone, as in the
authors' code, which the parameter counts of the paper presuppose.

A grid larger than the trained one is drawn through a window of the trained size (section 3.3): `SlidingWindow`.

Deviation: the start token has a vector of its own; the authors take code 0 for it.  Codes of depth above 1 are
flattened like all others.

Shape letters: B batch, T codes, P prefix, E width, K vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from ..core import ClassLabels, Codes, CodeSpec, Context, ImagePrefix, Preset, Prior, Runner, register
from ..core.checks import MAX_SIZE, check_heads, check_range, check_shares, check_sizes
from ..kernels.transformer import Precision
from ..layers.transformer import STD, Block, BlockRunner, Head, KVCache, initialize


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ClassLabels):
    """Sizes.  With classes, the class of an image is the prefix of its codes.

    num_layers:           blocks
    width:                features of a token, a multiple of num_heads
    num_heads:            heads of attention
    num_classes:        a class as prefix
    prefix_length:      or this many codes of another image, of prefix_codebook_size values
    image_prefix:       or the codes, by the same tokenizer, of the grey, the edges or the low resolution of an image;
                        in training, of the image itself
    dropout:            of what every block adds
    embedding_dropout:  of the embedded tokens
    attention_dropout:  of attention weights
    """

    num_layers: int = 24
    width: int = 1024
    num_heads: int = 16
    prefix_length: int = 0
    prefix_codebook_size: int = 0
    image_prefix: ImagePrefix = "none"
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "num_layers")
        check_heads(self, "num_heads")
        check_range(self, 0, MAX_SIZE, "prefix_length", "prefix_codebook_size")
        check_shares(self, "dropout", "embedding_dropout", "attention_dropout")
        if (self.prefix_length > 0) != (self.prefix_codebook_size > 0):
            raise ValueError("prefix_length and prefix_codebook_size go together: give both or neither")
        if self.image_prefix not in get_args(ImagePrefix):
            raise ValueError(f"image_prefix must be one of {', '.join(get_args(ImagePrefix))}, got {self.image_prefix}")
        if (self.num_classes > 0) + (self.prefix_length > 0) + (self.image_prefix != "none") > 1:
            raise ValueError(
                "the prefix is one of a class, prefix_length codes and an image_prefix; leave the others out"
            )


def _paper(num_layers: int, width: int, codebook_size: int, **others: float) -> Preset:
    """A network of the paper over 16x16 codes."""
    config = GPTConfig(num_layers=num_layers, width=width, num_heads=16, **others)
    return Preset(config, CodeSpec.single(16, 16, 1, codebook_size))


MAP = {"prefix_length": 256, "prefix_codebook_size": 1024}
DROPOUT = {"dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1}
VIM = {"dropout": 0.1, "num_classes": 1000}
PRESETS = {
    "rin": _paper(12, 768, 768),
    "imagenet": _paper(24, 1024, 1024, num_classes=1000),
    "imagenet-big": _paper(48, 1536, 16384, num_classes=1000),
    "depth": _paper(24, 1024, 1024, **MAP),
    "faces": _paper(28, 1024, 1024),
    "faces-big": _paper(24, 1664, 1024),
    "coco": _paper(32, 1280, 8192, **MAP),
    "ade20k": _paper(28, 1024, 4096, **MAP, **DROPOUT),
    # The priors of ViT-VQGAN, arXiv:2110.04627.
    "vim-base": Preset(GPTConfig(num_layers=24, width=1536, num_heads=16, **VIM), CodeSpec.single(32, 32, 1, 8192)),
    "vim-large": Preset(GPTConfig(num_layers=36, width=2048, num_heads=32, **VIM), CodeSpec.single(32, 32, 1, 8192)),
}


@register("priors", "gpt", GPTConfig, PRESETS, small={"num_layers": 6, "width": 192, "num_heads": 4, "dropout": 0.1})
class GPT(Prior):
    """A decoder-only transformer over one grid of codes."""

    def __init__(self, spec: CodeSpec, config: GPTConfig) -> None:
        grid, own = spec.only, config.image_prefix != "none"
        length = spec.length if own else config.prefix_length
        size = grid.codebook_size if own else config.prefix_codebook_size
        conditions = {"prefix_length": length, "prefix_codebook_size": size, "image_prefix": config.image_prefix}
        super().__init__(spec, config.conditions(**conditions))
        self.config, self.prefix_length = config, length or 1
        rows = max(grid.codebook_size, config.num_labels, size)
        self.tokens = nn.Embedding(rows, config.width)
        self.positions = nn.Parameter(torch.zeros(self.prefix_length + grid.num_positions, config.width))
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.dropout, config.attention_dropout)
            for _ in range(config.num_layers)
        )
        self.head = Head(config.width, grid.codebook_size, bias=False)
        self.apply(initialize)
        conditional = config.num_classes or length
        self.beginning = None if conditional else nn.Parameter(nn.init.normal_(torch.empty(config.width), std=STD))

    def prefix(self, batch_size: int, context: Context) -> Tensor:
        """The tokens before the first code, embedded: (B, P, E)."""
        if self.beginning is not None:
            return self.beginning.expand(batch_size, 1, -1)
        return self.tokens(context.prefix if self.conditions.prefix_length else context.label[:, None])

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        flat = self.spec.flatten(codes)
        x = torch.cat([self.prefix(len(flat), context), self.tokens(flat[:, :-1])], dim=1)
        x = self.dropout(x + self.positions[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        logits = self.head(x[:, self.prefix_length - 1 :])
        return (logits.unflatten(1, self.spec.only.shape),)

    def sliding(self, height: int, width: int) -> SlidingWindow:
        return SlidingWindow(self, height, width)

    def runner(self, precision: Precision = "float32") -> GPTRunner:
        return GPTRunner(self, precision)


@dataclass
class GPTState:
    """What a `GPTRunner` remembers."""

    prefix: Tensor  # (B, E), the last token of the prefix, embedded
    cache: KVCache


class GPTRunner(Runner):
    """A GPT, one code at a time."""

    def __init__(self, prior: GPT, precision: Precision) -> None:
        super().__init__(prior)
        self.blocks = BlockRunner(prior.blocks, precision, prior.head)

    def start(self, batch_size: int, context: Context) -> GPTState:
        none = torch.empty(batch_size, 0, dtype=torch.int64, device=self.device)
        return self.resume(self.prior.prefix(batch_size, context), none)

    def resume(self, prefix: Tensor, known: Tensor) -> GPTState:
        """The state after the first n codes, int64 (B, n), which are read at once, but for the last: `step` reads it.

        Args:
            prefix: (B, P, E), embedded, see `GPT.prefix`.
        """
        prior = self.prior
        tokens = torch.cat([prefix, prior.tokens(known)], dim=1)
        tokens = tokens + prior.positions[: tokens.shape[1]]
        cache = self.blocks.init_cache(len(known), prior.prefix_length + prior.spec.length - 1)
        self.blocks.prefill(tokens[:, :-1], cache)
        return GPTState(tokens[:, prior.prefix_length - 1], cache)

    def advance(self, previous: Tensor, state: GPTState) -> tuple[Tensor, GPTState]:
        prior, lengths = self.prior, state.cache.lengths  # of all tokens, the prefix among them
        x = prior.tokens(previous) + prior.positions[lengths]
        x = torch.where((lengths == prior.prefix_length - 1)[:, None], state.prefix, x)
        return self.blocks.step(x, state.cache), state


class SlidingWindow(Prior):
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
        if prior.conditions.prefix_length:
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

    def runner(self, precision: Precision = "float32") -> SlidingRunner:
        return SlidingRunner(self, precision)


@dataclass
class SlidingState:
    """What a `SlidingRunner` remembers."""

    t: int
    codes: Tensor  # (B, T), those known so far
    prefix: Tensor  # (B, P, E)
    inner: GPTState  # of the window around the last code


class SlidingRunner(Runner):
    """A sliding window, one code at a time."""

    def __init__(self, prior: SlidingWindow, precision: Precision) -> None:
        super().__init__(prior)
        self.inner = prior.prior.runner(precision)

    def start(self, batch_size: int, context: Context) -> SlidingState:
        prefix = self.prior.prior.prefix(batch_size, context)
        codes = torch.zeros(batch_size, self.prior.spec.length, dtype=torch.int64, device=self.device)
        return SlidingState(0, codes, prefix, self.inner.resume(prefix, codes[:, :0]))

    def advance(self, previous: Tensor, state: SlidingState) -> tuple[Tensor, SlidingState]:
        prior, spec, t = self.prior, self.prior.spec, state.t
        state.t += 1
        if t > 0:
            state.codes[:, t - 1] = previous
            here, last = spec.position(t), spec.position(t - 1)
            top, left = prior.window(here.row, here.column)
            if (top, left) != prior.window(last.row, last.column):
                grid = prior.prior.spec.only
                count = ((here.row - top) * grid.width + here.column - left) * grid.depth + here.depth
                known = prior.crop(spec.unflatten(state.codes)[0], top, left).flatten(1)[:, :count]
                state.inner = self.inner.resume(state.prefix, known)
                previous = known[:, -1] if count else previous
        logits, state.inner = self.inner.advance(previous, state.inner)
        return logits, state
