"""RQ-Transformer: Lee et al., "Autoregressive Image Generation using Residual Quantization", arXiv:2203.01941.

An image is P = H W positions of D codes each, and the code at depth d of position p is a softmax of

    h_p  = spatial transformer(prefix, u_1, ..., u_(p-1))         u_p = A (e_p1 + ... + e_pD) + row of position p
    h_pd = depth transformer(v_p1, ..., v_pd)                     v_p1 = h_p + depth 1
                                                                  v_pd = B (e_p1 + ... + e_p(d-1)) + depth d

where e_pd is the tokenizer's vector of a code, not learned here, A and B are linear, and positions and depths are
learned vectors.  One classifier serves all depths.  The long sequence is thus P, not P D, and the D codes of a
position cost the small depth transformer only.  The prefix is a learned start vector, a class, or the L tokens of a
text; a model of texts has a second classifier that tells each token after the first from those before it.

The codebook is a buffer: `attach` takes it from the tokenizer, and it is saved with the model, but is no parameter and
not among the paper's counts.

Deviation: A is applied to the sum of the vectors, where the published code sums what A makes of each; the same
function, but for a bias D times as large.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import ClassLabels, Codes, CodeSpec, Context, Preset, Prior, Runner, register
from ..core.checks import MAX_SIZE, check_heads, check_range, check_shares, check_sizes
from ..kernels.rows import linear
from ..kernels.transformer import Precision
from ..layers.transformer import STD, Block, BlockRunner, Head, KVCache, initialize


@dataclass(frozen=True, kw_only=True)
class RQTransformerConfig(ClassLabels):
    """Sizes; one of classes, text or neither is the condition.

    width:                          features of both transformers
    num_layers, num_heads:          of the spatial transformer
    depth_layers, depth_heads:      of the depth transformer
    embedding_dim:                  C, of the tokenizer's vectors
    shared_codebook:                one codebook for all depths, or one each
    num_classes:                    0 for no classes
    text_length, text_vocab_size:   L tokens of a text, each of so many values; 0 for no text
    dropout:                        share of features dropped from what attention and MLP add
    """

    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    depth_layers: int = 4
    depth_heads: int = 16
    embedding_dim: int = 256
    shared_codebook: bool = True
    text_length: int = 0
    text_vocab_size: int = 0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "num_layers", "depth_layers", "embedding_dim")
        check_heads(self, "num_heads", "depth_heads")
        check_range(self, 0, MAX_SIZE, "text_length", "text_vocab_size")
        check_shares(self, "dropout")
        if self.num_classes and self.text_length:
            raise ValueError("num_classes and text_length exclude each other: set one of them to 0")
        if self.text_length == 1 or (self.text_length == 0) != (self.text_vocab_size == 0):
            raise ValueError(
                "a text needs text_length of at least 2 and text_vocab_size (both 0: no text), got "
                f"{self.text_length} and {self.text_vocab_size}"
            )


def _paper(width: int, num_layers: int, codebook_size: int, depth_layers: int = 4, **condition: int) -> Preset:
    """A network of the paper, with heads of 64 features, over 8x8 positions of 4 codes."""
    heads = {"num_heads": width // 64, "depth_heads": width // 64}
    config = RQTransformerConfig(width=width, num_layers=num_layers, depth_layers=depth_layers, **heads, **condition)
    return Preset(config, CodeSpec.single(8, 8, 4, codebook_size))


PRESETS = {
    "ffhq": _paper(1024, 24, 2048),
    "lsun-church": _paper(1024, 24, 16384),
    "lsun-cat": _paper(1280, 26, 16384),
    "lsun-bedroom": _paper(1280, 26, 16384),
    "imagenet-480m": _paper(1536, 12, 16384, num_classes=1000),
    "imagenet-821m": _paper(1536, 24, 16384, num_classes=1000),
    "imagenet-1.4b": _paper(1536, 42, 16384, 6, num_classes=1000),
    "imagenet-3.8b": _paper(2560, 42, 16384, 6, num_classes=1000),
    "cc3m": _paper(1280, 26, 16384, text_length=32, text_vocab_size=16384),
}


@register(
    "priors",
    "rq_transformer",
    RQTransformerConfig,
    PRESETS,
    small={"width": 192, "num_layers": 5, "num_heads": 4, "depth_layers": 2, "depth_heads": 4, "embedding_dim": 64},
)
class RQTransformer(Prior):
    """A spatial transformer over positions, a depth transformer over the codes of each.

    Args:
        spec: one grid of H x W x D codes.
        config: sizes.

    Attributes:
        codebook: (K, C), or (D, K, C) if not shared, the vectors of the codes; random until given.
    """

    def __init__(self, spec: CodeSpec, config: RQTransformerConfig) -> None:
        text = {"text_length": config.text_length, "text_vocab_size": config.text_vocab_size}
        super().__init__(spec, config.conditions(**text))
        self.config, self.grid = config, spec.only
        depth, width, codebook_size = self.grid.depth, config.width, self.grid.codebook_size
        self.prefix_length = max(config.text_length, 1)
        self.num_positions = self.grid.height * self.grid.width
        rows = () if config.shared_codebook else (depth,)
        self.register_buffer("codebook", torch.randn(*rows, codebook_size, config.embedding_dim))
        self.prefix = nn.Embedding(config.num_labels or config.text_vocab_size or 1, width)
        self.prefix_positions = nn.Parameter(torch.empty(self.prefix_length, width))
        self.positions = nn.Parameter(torch.empty(self.num_positions, width))  # the last is never read, but counted
        self.depths = nn.Parameter(torch.empty(depth, width))
        self.to_spatial = nn.Linear(config.embedding_dim, width)
        self.to_depth = nn.Linear(config.embedding_dim, width)
        self.spatial = nn.ModuleList(Block(width, config.num_heads, config.dropout) for _ in range(config.num_layers))
        self.depth = nn.ModuleList(Block(width, config.depth_heads, config.dropout) for _ in range(config.depth_layers))
        self.classifier = Head(width, codebook_size, bias=True)
        self.text_classifier = Head(width, config.text_vocab_size, bias=True) if config.text_length else None
        self.apply(initialize)
        for parameter in (self.prefix_positions, self.positions, self.depths):
            nn.init.normal_(parameter, std=STD)

    def attach(self, vectors: tuple[Tensor, ...] | None) -> None:
        """Takes the tokenizer's vectors of the codes; where it has none, the random ones stay."""
        if vectors is not None:
            self.set_codebook(vectors[0])

    @torch.no_grad()
    def set_codebook(self, weight: Tensor) -> None:
        """Takes the tokenizer's vectors of the codes: (K, C) for all depths, or (D, K, C) for each.

        Raises:
            ValueError: another shape, or vectors that differ between depths in a model with one codebook for all.
        """
        each = (self.grid.depth, self.grid.codebook_size, self.config.embedding_dim)
        if weight.shape not in (each, each[1:]):
            raise ValueError(
                f"the vectors of the codes must be {each}, or {each[1:]} for all depths, got {tuple(weight.shape)}; "
                "the last is embedding_dim"
            )
        weight = weight.expand(each)
        if self.config.shared_codebook:
            if not torch.equal(weight, weight[:1].expand(each)):
                raise ValueError("each depth has vectors of its own: set shared_codebook to false")
            weight = weight[0]
        self.codebook.copy_(weight)

    @property
    def untrained(self) -> tuple[nn.Module, ...]:
        return () if self.text_classifier is None else (self.text_classifier,)

    def forward(self, codes: Codes, context: Context) -> tuple[Tensor, ...]:
        sums, features = self._spatial_features(codes[0], context)
        return (self._image_logits(sums, features),)

    def forward_with_text(self, codes: Codes, context: Context) -> tuple[Tensor, Tensor]:
        """Both likelihoods of a captioned image in one pass; the paper's loss is 0.9 image + 0.1 text.

        Returns:
            logits of the codes (B, H, W, D, K), and of the text's tokens after the first (B, L - 1, V).
        """
        assert self.text_classifier is not None, "this model is not conditioned on texts"
        sums, features = self._spatial_features(codes[0], context)
        return self._image_logits(sums, features), self.text_classifier(features[:, : self.prefix_length - 1])

    def _spatial_features(self, codes: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Sums of the vectors of the codes up to each, (B, P, D, C), and features (B, L - 1 + P, width)."""
        sums = self._vectors(codes.flatten(1, 2)).cumsum(2)
        x = self.to_spatial(sums[:, :-1, -1]) + self.positions[:-1]
        x = torch.cat([self.embed_prefix(context, len(codes)), x], 1)
        for block in self.spatial:
            x = block(x)
        return sums, x

    def _image_logits(self, sums: Tensor, features: Tensor) -> Tensor:
        """(B, P, D, C), (B, L - 1 + P, width) -> (B, H, W, D, K)."""
        x = torch.cat([features[:, self.prefix_length - 1 :, None], self.to_depth(sums[:, :, :-1])], 2) + self.depths
        x = x.flatten(0, 1)
        for block in self.depth:
            x = block(x)
        return self.classifier(x).unflatten(0, (-1, self.grid.height, self.grid.width))

    def _vectors(self, codes: Tensor) -> Tensor:
        """The vectors of codes (..., D): (..., D, C)."""
        if not self.config.shared_codebook:
            codes = codes + self.grid.codebook_size * torch.arange(self.grid.depth, device=codes.device)
        return F.embedding(codes, self.codebook.flatten(0, -2))

    def embed_prefix(self, context: Context, batch_size: int) -> Tensor:
        """(B, L, width)."""
        if self.config.text_length:
            tokens = context.text
        elif self.config.num_classes:
            tokens = context.label[:, None]
        else:
            tokens = torch.zeros(batch_size, 1, dtype=torch.int64, device=self.positions.device)
        return self.prefix(tokens) + self.prefix_positions

    def runner(self, precision: Precision = "float32") -> RQTransformerRunner:
        return RQTransformerRunner(self, precision)


# ---------------------------------------------------------------- one code after the other


@dataclass
class RQTransformerState:
    """What a `RQTransformerRunner` remembers; all images are at the same depth."""

    depth: int  # of the next code
    prefix: Tensor  # (B, width), the last token of the prefix, embedded
    sum: Tensor  # (B, C), of the vectors of this position's codes so far
    spatial: KVCache
    codes: KVCache  # of the depth transformer


class RQTransformerRunner(Runner):
    """An RQ-Transformer, one code at a time."""

    def __init__(self, prior: RQTransformer, precision: Precision) -> None:
        super().__init__(prior)
        self.spatial = BlockRunner(prior.spatial, precision)
        self.depth = BlockRunner(prior.depth, precision, prior.classifier)

    def start(self, batch_size: int, context: Context) -> RQTransformerState:
        prior = self.prior
        prefix = prior.embed_prefix(context, batch_size)
        spatial = self.spatial.init_cache(batch_size, prior.prefix_length + prior.num_positions - 1)
        self.spatial.prefill(prefix[:, :-1], spatial)
        no_codes = prefix.new_zeros(batch_size, prior.config.embedding_dim)
        depth = self.depth.init_cache(batch_size, prior.grid.depth)
        return RQTransformerState(0, prefix[:, -1], no_codes, spatial, depth)

    def advance(self, previous: Tensor, state: RQTransformerState) -> tuple[Tensor, RQTransformerState]:
        prior, depth = self.prior, state.depth
        state.depth = (depth + 1) % prior.grid.depth
        codebook = prior.codebook if prior.config.shared_codebook else prior.codebook[depth - 1]
        state.sum = state.sum + codebook[previous]
        if depth > 0:
            x = linear(state.sum, prior.to_depth.weight, prior.to_depth.bias)
        else:
            new = state.spatial.lengths - prior.prefix_length  # -1 before the first position
            x = linear(state.sum, prior.to_spatial.weight, prior.to_spatial.bias) + prior.positions[new]
            x = torch.where((new < 0)[:, None], state.prefix, x)
            x = self.spatial.step(x, state.spatial)
            state.sum = torch.zeros_like(state.sum)
            state.codes.lengths.zero_()
        return self.depth.step(x + prior.depths[depth], state.codes), state
