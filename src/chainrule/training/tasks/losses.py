"""Losses of reconstructions that need other networks, and how they are balanced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ..engine.task import Adversary
from .discriminators import AdversarialConfig, Discriminator, build_discriminator

if TYPE_CHECKING:
    from ...scorers.features import FeatureNetwork

DELTA = 1e-4
LARGEST_WEIGHT = 1e4


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """The distance of images in the features of a network, added to what a tokenizer or an upscaler minimises.

    weight:  of the distance
    network: efficientnet_lite0 (from packages, works offline) or vgg16_lpips (its weights are downloaded)
    side:    images whose shorter side is below it are enlarged to it, at a cost that grows with its square; 0 is
             never, and left out it is what the network was trained on
    """

    weight: float = 1.0
    network: Literal["efficientnet_lite0", "vgg16_lpips"] = "efficientnet_lite0"
    side: int | None = None

    def __post_init__(self) -> None:
        if self.side is not None and self.side < 0:
            raise ValueError(f"side must be at least 0, got {self.side}")
        if not self.weight > 0:
            raise ValueError(f"the weight of the perceptual loss must be above 0, got {self.weight}")


@dataclass(frozen=True, kw_only=True)
class LossesConfig:
    """What a tokenizer or an upscaler minimises besides its own loss; left out, nothing."""

    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None


class PerceptualLoss(nn.Module):
    """The mean distance of images in the features of a network that stays as it is."""

    def __init__(self, features: FeatureNetwork) -> None:
        super().__init__()
        self.features = features.eval().requires_grad_(False)

    def forward(self, target: Tensor, images: Tensor) -> Tensor:
        """Both float (B, 1 or 3, H, W) in about [0, 1] -> a scalar; only `images` may have a gradient."""
        from ...scorers.features import perceptual_distance

        with torch.autocast(images.device.type, enabled=False):  # depthwise convolutions are faster in float32 here
            with torch.no_grad():
                wanted = self.features(target)
            found = self.features(images.float())
            return perceptual_distance(wanted, found, self.features.weights).mean()


def load_perceptual_loss(config: PerceptualConfig) -> PerceptualLoss:
    """The perceptual loss of a recipe; raises ValueError where the network's weights cannot be had."""
    from ...scorers.features import load_features

    return PerceptualLoss(load_features(config.network, config.side))


def adaptive_weight(others: Tensor, adversarial: Tensor) -> Tensor:
    """||others|| / (||adversarial|| + 1e-4), at most 1e4: equation 7 of arXiv:2012.09841, as its code has it.

    Args:
        others: gradient of all other losses at the last layer of the decoder.
        adversarial: that of the adversarial loss, of the same shape.
    """
    return (others.norm() / (adversarial.norm() + DELTA)).clamp(0.0, LARGEST_WEIGHT)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, value, gradient):
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx, outer):
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None, None


def known_loss(images: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """The scalar `value` as a function of `images` whose gradient is known: of the shape of `images`."""
    return _Known.apply(images, value, gradient)


class ImageLosses:
    """What a model that makes images minimises besides its own loss: a perceptual and an adversarial loss, or neither.

    Both are differentiated up to the image once, and these gradients used twice: for the adaptive weight, and to train
    the model.

    Args:
        config: weights of the losses, and the adversary.
        perceptual: of target and images float (B, C, H, W) in about [0, 1], a scalar; needed if `config` has one.
        image_shape: (C, H, W) of the images.

    Attributes:
        adversary: what is to be trained against the model, or None.
    """

    def __init__(
        self, config: LossesConfig, perceptual: nn.Module | None, image_shape: tuple[int, int, int]
    ) -> None:  # fmt: skip
        assert (perceptual is None) == (config.perceptual is None)
        self.config, self.perceptual = config, perceptual
        self.adversary: Adversary | None = None
        if config.adversarial:
            given = config.adversarial
            discriminator = build_discriminator(given, image_shape)
            self.adversary = Adversary(discriminator, given.start, given.learning_rate, given.betas)
        self.made: Tensor | None = None  # by the model, of the last batch: what the adversary is to judge

    def to(self, device: torch.device) -> None:
        """Moves the networks of the losses to a device."""
        if self.perceptual is not None:
            self.perceptual.to(device)

    def add(
        self, loss: Tensor, metrics: dict[str, Tensor], images: Tensor, target: Tensor, last_layer: Tensor,
        progress: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """The whole loss, and what is to be logged.

        Args:
            loss: the model's own, with gradient.
            metrics: what it logs.
            images: float (B, C, H, W) in about [0, 1], with gradient.
            target: likewise, what they should be.
            last_layer: the weight of the layer that makes their values.
            progress: share of the steps taken, 0..1.
        """
        self.made = images.detach()
        judged = images.detach().requires_grad_()
        if self.perceptual is not None:
            distance = self.perceptual(target, judged)
            (gradient,) = torch.autograd.grad(distance, judged)
            weight = self.config.perceptual.weight
            loss = loss + known_loss(images, weight * distance.detach(), weight * gradient)
            metrics = {"perceptual": distance.detach()} | metrics
        if self.adversary is not None:
            more, figures = self._against_adversary(loss, images, judged, last_layer, progress)
            loss, metrics = loss + more, metrics | figures
        return loss, metrics

    def _against_adversary(
        self, others: Tensor, images: Tensor, judged: Tensor, last_layer: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted adversarial loss of `images`, whose detached copy is `judged`, and what is to be logged."""
        zero = torch.zeros((), device=images.device)
        if progress < self.adversary.start:
            return zero, {"adversarial": zero, "adversarial_weight": zero}
        discriminator = self.adversary.module
        assert isinstance(discriminator, Discriminator)
        wrong = -discriminator.score(judged).mean()
        (gradient,) = torch.autograd.grad(wrong, judged)
        weight = zero + self.config.adversarial.weight
        if self.config.adversarial.adaptive:
            (ours,) = torch.autograd.grad(others, last_layer, retain_graph=True)
            (theirs,) = torch.autograd.grad(images, last_layer, gradient, retain_graph=True)
            weight = weight * adaptive_weight(ours, theirs)
        loss = known_loss(images, weight * wrong.detach(), weight * gradient)
        return loss, {"adversarial": wrong.detach(), "adversarial_weight": weight}

    def adversary_loss(self, module: nn.Module, target: Tensor) -> Tensor:
        """What the adversary, perhaps wrapped, minimises on the last batch; `target` as in `add`."""
        return module(target, self.made)


def load_image_losses(config: LossesConfig, image_shape: tuple[int, int, int]) -> ImageLosses:
    """The losses of a recipe; raises ValueError where weights cannot be had or images are too small."""
    perceptual = load_perceptual_loss(config.perceptual) if config.perceptual else None
    return ImageLosses(config, perceptual, image_shape)
