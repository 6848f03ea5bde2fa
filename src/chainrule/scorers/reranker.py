"""CLIP: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.

One network maps an image and another one a text to a vector of length 1: x_i and y_i for the i-th of B pairs.
The loss is InfoNCE in both directions (figure 3 of the paper), with a learned scale s, the exponential of a parameter
and at most 100:

    loss = (mean_i -log softmax_j(s x_i.y_j)_i + mean_i -log softmax_j(s x_j.y_i)_i) / 2

DALL-E (arXiv:2102.12092) draws many images for a text and keeps those with the largest x.y; `score` and `for_texts` do
the same.

Deviations, all because the data sets are small and the computer has few cores:

* The image network is a residual network of 3x3 convolutions without normalisation.  Each branch ends in a convolution
  that starts at zero.  The last map is small and is flattened instead of pooled by attention, because captions say
  where things are.
* Alternatively the image network is a frozen one of `scorers.features`, and only the text's is trained, as in LiT (Zhai
  et al. 2022, arXiv:2111.07991): general features of images need not be learned from few images.
* The text network attends in both directions and averages its tokens, instead of a causal transformer that reads the
  last token.  Without layers it averages vectors of tokens, as in fastText (Joulin et al. 2016, arXiv:1607.01759).
* Pairs with equal captions are not negatives of each other.

Shape letters: B images or texts, T tokens, E numbers in a vector.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import MAX_SIZE, check_heads, check_images, check_range, check_shares, check_sizes
from ..core.values import as_tensor
from ..layers.encoder_decoder import MLP, EncoderBlock
from ..layers.transformer import STD, initialize
from ..text.bpe import TextTokenizer
from .features import load_features

SMALLEST = 4
"""The side, in positions, to which images are halved."""
FIRST_SCALE, MAX_SCALE = 1 / 0.07, 100.0
PADDING = 0
BATCH = 100


@dataclass(frozen=True)
class RerankerConfig:
    """Sizes.

    image_height, image_width, image_channels: of the images, at least 8 pixels a side
    text_length:     T
    text_vocab_size: number of tokens; token 0 is the padding
    width:           of the text's network; E, unless there are features; maps of the image's network have half of it
                     after the first halving, then once, then twice as many channels
    num_blocks:      residual blocks of the image's network after each further halving
    features:        in place of the image's network, such as efficientnet_lite0: see `FeatureTower`
    text_layers, num_heads: of the text's transformer; without layers, its vectors of tokens are averaged
    dropout:         in the transformer, and of the map that the image's network makes its vector of
    """

    image_height: int
    image_width: int
    image_channels: int
    text_length: int
    text_vocab_size: int
    width: int = 128
    num_blocks: int = 1
    features: str | None = None
    text_layers: int = 2
    num_heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "image_channels", "text_length", "num_blocks")
        check_range(self, 0, MAX_SIZE, "text_layers")
        check_heads(self, "num_heads")
        check_shares(self, "dropout")
        if min(self.image_height, self.image_width) < 2 * SMALLEST:
            given = f"{self.image_height}x{self.image_width}"
            raise ValueError(f"images must have at least {2 * SMALLEST} pixels a side, got {given}")
        if self.text_vocab_size < 2:
            raise ValueError(f"text_vocab_size must be at least 2 (padding and a token), got {self.text_vocab_size}")
        if self.width % 2:
            raise ValueError(f"width must be even, got {self.width}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.image_channels, self.image_height, self.image_width


# ---------------------------------------------------------------- the two networks


class ResidualBlock(nn.Module):
    """x + conv relu conv relu x, both 3x3; the last begins at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(channels, channels), _convolution(channels, channels)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class ImageTower(nn.Module):
    """uint8 (B, C, H, W) -> (B, E), of any length."""

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        channels = config.width // 2
        layers: list[nn.Module] = [_convolution(config.image_channels, channels, stride=2)]
        sides = [_half(config.image_height), _half(config.image_width)]
        while min(sides) > SMALLEST:
            wider = min(2 * channels, 2 * config.width)
            layers += [nn.ReLU(), _convolution(channels, wider, stride=2)]
            layers += [ResidualBlock(wider) for _ in range(config.num_blocks)]
            channels, sides = wider, [_half(side) for side in sides]
        self.layers = nn.Sequential(*layers, nn.ReLU())
        inputs, self.size = channels * math.prod(sides), config.width
        self.norm, self.dropout = nn.LayerNorm(inputs), nn.Dropout(config.dropout)
        self.projection = nn.Linear(inputs, self.size, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(images.float() / 127.5 - 1)
        return self.projection(self.dropout(self.norm(x.flatten(1))))


class FeatureTower(nn.Module):
    """As `ImageTower`, without weights of its own: the pooled features of a frozen network, which is not saved."""

    uncompiled = ("features",)

    def __init__(self, config: RerankerConfig) -> None:
        super().__init__()
        with torch.device("cpu"):  # also where the weights are on the device "meta"; all sizes give as many features
            self.network = (load_features(config.features),)  # a tuple hides it from the weights
            self.size = self.features(torch.zeros(1, config.image_channels, 32, 32, dtype=torch.uint8)).shape[1]
        self.key = ["features", config.features]  # names these features in the cache

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, E)."""
        network = self.network[0].to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            return network.pooled(images.float() / 255)

    def forward(self, images: Tensor) -> Tensor:
        """Of images, or of `features` of images, which are given back."""
        return images if images.is_floating_point() else self.features(images)


def _half(side: int) -> int:
    """Positions after a convolution of stride 2."""
    return -(-side // 2)


class TextTower(nn.Module):
    """int64 (B, T) -> (B, E), E = `size`, of any length."""

    def __init__(self, config: RerankerConfig, size: int) -> None:
        super().__init__()
        width, norm = config.width, partial(nn.LayerNorm, elementwise_affine=False)
        self.words = nn.Embedding(config.text_vocab_size, width)
        self.positions = nn.Parameter(torch.empty(config.text_length, width))
        self.blocks = nn.ModuleList(
            EncoderBlock(width, config.num_heads, MLP(width, norm), norm, nn.Identity, config.dropout)
            for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, size, bias=False)
        self.apply(initialize)
        nn.init.normal_(self.positions, std=STD)

    def forward(self, text: Tensor) -> Tensor:
        seen = text != PADDING
        seen = torch.cat([seen[:, :1] | ~seen.any(1, keepdim=True), seen[:, 1:]], dim=1)  # of no text, one padding
        x = self.words(text) + self.positions
        for block in self.blocks:
            x = block(x, seen[:, None, None])
        counted = seen.unsqueeze(-1).to(x.dtype)
        return self.projection(self.norm((x * counted).sum(1) / counted.sum(1)))


# ---------------------------------------------------------------- the model


class TextScorer(ABC):
    """Judges how well images show what texts say: the cosine of their vectors, -1..1, more is better."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float (B, E), of length 1."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> float (B, E), of length 1."""

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosines of images and texts, one by one.

        Args:
            images: uint8 (B, C, H, W).
            texts: B texts, or one text for all images.

        Returns:
            float (B,), on the scorer's device.

        Raises:
            ValueError: another number of texts than of images, or images that it cannot read.
        """
        return self.for_texts(texts)(images)

    def for_texts(self, texts: str | Sequence[str]) -> Callable[[Tensor], Tensor]:
        """What `Pipeline.sample(best_of=..., scorer=...)` takes: images uint8 (B, C, H, W) -> scores (B,).

        Args:
            texts: one per image, or one for all.
        """
        vectors = self.encode_texts([texts] if isinstance(texts, str) else texts)

        def judge(images: Tensor) -> Tensor:
            if len(vectors) != len(images) and not isinstance(texts, str):
                raise ValueError(f"{len(vectors)} texts were given for {len(images)} images")
            return (self.encode_images(images) * vectors).sum(-1)

        return judge


class Reranker(nn.Module, TextScorer):
    """Both networks, the scale of the products of their vectors, and the text tokenizer.

    Args:
        config: sizes.
        text_tokenizer: from texts to token ids.
        card: what is known of the model (data, licence, recipe, figures), any plain values.

    Raises:
        ValueError: a text tokenizer that does not fit the config.
    """

    def __init__(
        self, config: RerankerConfig, text_tokenizer: TextTokenizer, card: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        given = text_tokenizer
        if config.text_length != given.length or config.text_vocab_size < given.text_vocab_size or given.pad != PADDING:
            raise ValueError(
                f"the reranker reads texts of {config.text_length} tokens in 0..{config.text_vocab_size - 1}, padded "
                f"with {PADDING}; the text tokenizer gives {given.length} in 0..{given.text_vocab_size - 1}, padded "
                f"with {given.pad}"
            )
        self.config, self.text_tokenizer, self.card = config, text_tokenizer, dict(card or {})
        self.image = FeatureTower(config) if config.features else ImageTower(config)
        self.text = TextTower(config, self.image.size)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For training: the vectors of images uint8 (B, C, H, W) and of token ids int64 (B, T), and the scale.

        In place of images, the features of a `FeatureTower` may be given.
        """
        scale = self.log_scale.clamp(max=math.log(MAX_SCALE)).exp()
        return _unit(self.image(images)), _unit(self.text(text)), scale

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """As above; images of another size are resized, grey ones are grey in all channels."""
        channels, height, width = self.config.image_shape
        images = as_tensor(images, "images")
        check_images(images, sorted({1, channels}))
        images = images.to(self.log_scale.device).expand(-1, channels, -1, -1)
        if tuple(images.shape[2:]) != (height, width):
            resized = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
            images = resized.round().clamp(0, 255).to(torch.uint8)
        return torch.cat([_unit(self.image(part)) for part in images.split(BATCH)])

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        ids = self.text_tokenizer.encode(texts).to(self.log_scale.device)
        return torch.cat([_unit(self.text(part)) for part in ids.split(BATCH)])


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE both ways.

    Args:
        images, texts: float (B, E), of length 1; the i-th belong together.
        scale: scalar.
        same: bool (B, B), which texts are the same: of these only the image's own counts.

    Returns:
        The loss in nats, and the share of the images and the texts whose own counterpart is the nearest.
    """
    own = torch.arange(len(images), device=images.device)
    others = same & ~torch.eye(len(images), dtype=torch.bool, device=images.device)
    logits = (scale * images @ texts.mT).masked_fill(others, -math.inf)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.mT, own)) / 2
    right = (logits.argmax(1) == own).float().mean() + (logits.argmax(0) == own).float().mean()
    return loss, right.detach() / 2
