"""The logit-Laplace distribution of pixels: Ramesh et al., "Zero-Shot Text-to-Image Generation", arXiv:2102.12092, A.3.

A Laplace variable with location mu and scale b, pushed through the sigmoid, has the bounded range of a pixel:

    f(x | mu, b) = 1 / (2 b x (1 - x)) . exp(-|logit(x) - mu| / b),    0 < x < 1

Pixels in [0, 1] are first mapped to [epsilon, 1 - epsilon], x = (1 - 2 epsilon) pixel + epsilon, which keeps
the logit finite; the picture of a location mu is the inverse of that map at sigmoid(mu).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = 0.1


def map_pixels(pixels: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Pixels in [0, 1] -> x in [epsilon, 1 - epsilon], any shape."""
    return (1 - 2 * epsilon) * pixels + epsilon


def unmap_pixels(x: Tensor, epsilon: float = EPSILON) -> Tensor:
    """The inverse of `map_pixels`; x outside [epsilon, 1 - epsilon] gives pixels outside [0, 1]."""
    return (x - epsilon) / (1 - 2 * epsilon)


def logit_laplace_log_prob(x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """ln f(x | mu, b) in nats, elementwise; a density, so it may be above 0.

    Args:
        x: mapped pixels, strictly between 0 and 1.
        location: mu, of the shape of x.
        log_scale: ln b, of the shape of x.
    """
    distance = (torch.logit(x) - location).abs()
    return -math.log(2) - log_scale - x.log() - (1 - x).log() - distance * torch.exp(-log_scale)


def logit_laplace_image(location: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Pixels, about [0, 1] (not clamped), at the median of the distribution: unmap(sigmoid(mu))."""
    return unmap_pixels(torch.sigmoid(location), epsilon)
