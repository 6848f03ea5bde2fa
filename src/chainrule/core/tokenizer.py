"""The contract of a tokenizer: images to codes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .checks import check_images
from .codes import Codes, CodeSpec


class Tokenizer(nn.Module, ABC):
    """image <-> codes.

    Images are uint8 (B, C, H, W) on both sides; a tokenizer scales to its own range inside.
    `image_shape` is the (C, H, W) it was made for and `spec` the codes of such an image.

    Attributes:
        config: that it was built by.
        encoder_config: that what encodes was built by, where `with_decoder` gave this tokenizer another one; else None.
    """

    name: str  # set by the registry
    spec: CodeSpec
    image_shape: tuple[int, int, int]
    config: Any
    encoder_config: Any = None

    @property
    def device(self) -> torch.device:
        """Where the weights are; a tokenizer without weights computes on the CPU."""
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @abstractmethod
    def encode(self, images: Tensor) -> Codes:
        """uint8 (B, C, H, W) -> codes of `spec`."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Codes of `spec` -> uint8 (B, C, H, W)."""

    @abstractmethod
    def known_codes(self, mask: Tensor) -> Tensor:
        """Which codes are certain where the pixels of `mask` are known: bool (H, W) -> bool (T,)."""

    def vectors(self) -> tuple[Tensor, ...] | None:
        """The learned vectors of the codes, without gradient, one float (D, K, C) per grid; None if there are none."""
        return None

    def packed(self, precision: str) -> Tokenizer:
        """This tokenizer with its weights packed once for `encode` and `decode`; as it is where none is offered.

        Args:
            precision: "float32", the tokenizer itself; one that has networks also offers "bfloat16", which is faster
                and gives a few other codes, and slightly other images.

        Raises:
            ValueError: a precision that this tokenizer has not.
        """
        if precision != "float32":
            raise ValueError(f"{self.name} encodes and decodes in float32 only, not in {precision}")
        return self

    def at_size(self, height: int, width: int) -> Tokenizer:
        """This tokenizer made for images of another size, with the same weights, for a prior at that size.

        Args:
            height, width: of the images, in pixels.

        Raises:
            ValueError: a size that its strides do not allow, or weights that belong to one size.
        """
        if (height, width) == self.image_shape[1:]:
            return self
        size = {"image_height": height, "image_width": width}
        other = type(self)(replace(self.encoder_config or self.config, **size))
        if self.encoder_config is not None:
            other = other.with_decoder(replace(self.config, **size))
        mine, new = self.state_dict(), other.state_dict()
        if any(value.shape != new[key].shape for key, value in mine.items()):
            raise ValueError(
                f"this {self.name} works on images of {self.image_shape[1]}x{self.image_shape[2]} only, since it has "
                f"weights for each of their places, and not on {height}x{width}"
            )
        other.load_state_dict(mine)
        return other.to(self.device).train(self.training)

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless `images` is uint8 (B, C, H, W) of this tokenizer's size."""
        check_images(images, self.image_shape[:1], self.image_shape[1:])


@runtime_checkable
class StochasticTokenizer(Protocol):
    """A tokenizer of one grid whose codes can also be drawn, for a prior that learns from soft targets."""

    def encode_soft(
        self, images: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> tuple[Codes, Tensor]:
        """Codes that are drawn, and the distribution each is drawn from, float (B, H, W, D, K).

        Args:
            images: uint8 (B, C, H, W).
            temperature: above 0; towards 0 the codes are those of `encode`.
            generator: of the draws, on the images' device.
        """


@dataclass(frozen=True)
class Reconstruction:
    """What a learned tokenizer makes of a batch while it is trained.

    images:  float (B, C, H, W) in about [0, 1], differentiable: perceptual and adversarial losses judge them
    codes:   codes of the batch
    loss:    scalar, what the tokenizer itself minimises: its reconstruction and codebook terms
    metrics: scalars worth logging, by name
    """

    images: Tensor
    codes: Codes
    loss: Tensor
    metrics: dict[str, Tensor]


class LearnedTokenizer(Tokenizer):
    """A tokenizer that is trained (stage one).

    Attributes:
        decoder_parts: names of the modules that have no part in encoding, with dots where they are inside of others; ()
            if that cannot be told apart.
        decoder_options: fields of the config that only they depend on.
    """

    decoder_parts: tuple[str, ...] = ()
    decoder_options: tuple[str, ...] = ()

    def is_decoding(self, key: str) -> bool:
        """Whether a weight of that name, as in `state_dict`, has no part in encoding."""
        return key.startswith(tuple(f"{part}." for part in self.decoder_parts))

    def with_decoder(self, config: Any) -> LearnedTokenizer:
        """A tokenizer of the same codes: what encodes is that of this one, what decodes is built by `config`.

        Weights of the new decoder begin as this one's of the same name where their shapes are the same.

        Args:
            config: that of this tokenizer but for its `decoder_options`.

        Raises:
            ValueError: a config for other codes or images.
        """
        other = type(self)(config)
        if other.spec != self.spec or other.image_shape != self.image_shape:
            raise ValueError(f"this decoder is for codes {other.spec}, the tokenizer gives {self.spec}")
        encoder_config = self.encoder_config or self.config
        other.encoder_config = encoder_config if encoder_config != config else None
        changing = {part.partition(".")[0] for part in self.decoder_parts}
        for name, part in self.named_children():
            if name not in changing:
                setattr(other, name, part)
        mine, new = self.state_dict(), other.state_dict()
        alike = {key: value for key, value in mine.items() if key in new and value.shape == new[key].shape}
        other.load_state_dict(alike, strict=False)
        return other

    def same_codes(self, other: Tokenizer) -> bool:
        """Whether another tokenizer encodes as this one does: by the same weights, bit for bit."""
        if type(other) is not type(self) or other.spec != self.spec:
            return False
        if (other.encoder_config or other.config) != (self.encoder_config or self.config):
            return False
        theirs = other.state_dict()
        return all(
            torch.equal(value.cpu(), theirs[key].cpu())
            for key, value in self.state_dict().items()
            if not self.is_decoding(key)
        )

    @abstractmethod
    def reconstruction(self, images: Tensor, progress: float) -> Reconstruction:
        """One training pass.

        Args:
            images: uint8 (B, C, H, W).
            progress: share of the training steps taken, 0..1, for schedules.
        """

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The weight of the linear layer that makes the values of the image, where losses are balanced."""
