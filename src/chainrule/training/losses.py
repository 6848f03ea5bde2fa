"""Losses of reconstructions that need other networks, and how they are balanced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import PerceptualConfig

if TYPE_CHECKING:
    from ..metrics.features import FeatureNetwork

DELTA = 1e-4
LARGEST_WEIGHT = 1e4


class PerceptualLoss(nn.Module):
    """The mean distance of images in the features of a network that stays as it is."""

    def __init__(self, features: FeatureNetwork) -> None:
        super().__init__()
        self.features = features.eval().requires_grad_(False)

    def forward(self, target: Tensor, images: Tensor) -> Tensor:
        """Both float (B, 1 or 3, H, W) in about [0, 1] -> a scalar; only `images` may have a gradient."""
        from ..metrics.features import perceptual_distance

        with torch.autocast(images.device.type, enabled=False):  # depthwise convolutions are faster in float32 here
            with torch.no_grad():
                wanted = self.features(target)
            found = self.features(images.float())
            return perceptual_distance(wanted, found, self.features.weights).mean()


def load_perceptual_loss(config: PerceptualConfig) -> PerceptualLoss:
    """The perceptual loss of a recipe; raises ValueError where the network's weights cannot be had."""
    from ..metrics.features import load_features

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
