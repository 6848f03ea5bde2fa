"""Discriminators of images and reconstructions.

    PatchDiscriminator  Isola et al. 2016 (arXiv:1611.07004), as VQGAN has it (arXiv:2012.09841): a convolutional
                        network whose every output sees a patch, with batch normalisation
    StyleDiscriminator  the residual one of StyleGAN2 (Karras et al. 2019, arXiv:1912.04958), as ViT-VQGAN has it
                        (arXiv:2110.04627): one output per image

Both minimise, and the model is trained against, the hinge loss (arXiv:1705.02894):

    adversary:  (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x'))) / 2        model:  -mean D(x')

Deviations of StyleDiscriminator: no equalised learning rates (weights start as in arXiv:1502.01852), the standard
deviation over the whole batch rather than groups of four, no gradient penalty.

Shape letters: B batch, C channels, H W image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """A discriminator of images and reconstructions, and the loss that the model has from it; the defaults are VQGAN's.

    weight:        of the tokenizer's adversarial loss
    adaptive:      whether the weight is multiplied by the ratio of the gradients of all other losses and of this one,
                   at the tokenizer's last layer
    start:         share of the steps after which it begins
    discriminator: patch (PatchGAN) or style (residual, as StyleGAN2's)
    width:         of the discriminator's first layer
    num_layers:    halvings of the patch discriminator, 3 if left out; the style one has as many as the image allows
    learning_rate, betas: of the discriminator's Adam; the rate follows the schedule of the section `training`
    """

    weight: float = 0.8
    adaptive: bool = True
    start: float = 0.25
    discriminator: Literal["patch", "style"] = "patch"
    width: int = 64
    num_layers: int | None = None
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"the weight of the adversarial loss must be above 0, got {self.weight}")
        if not 0 <= self.start < 1:
            raise ValueError(f"start must lie in 0..1, 1 excluded (a share of the steps), got {self.start}")
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
        if self.num_layers is not None and self.discriminator != "patch":
            raise ValueError("num_layers belongs to the patch discriminator and would be ignored")
        if self.num_layers is not None and self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in 0..1, 1 excluded, got {list(self.betas)}")


class Discriminator(nn.Module, ABC):
    """Judges images; above 0 is real."""

    @abstractmethod
    def judge(self, images: Tensor) -> Tensor:
        """Images float (B, C, H, W) in about [-1, 1] -> scores (B, 1, h, w)."""

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The hinge loss of examples and reconstructions, float (B, C, H, W) in about [0, 1]: a scalar."""
        return (F.relu(1 - self.score(real)).mean() + F.relu(1 + self.score(fake)).mean()) / 2

    def score(self, images: Tensor) -> Tensor:
        """As `judge`, of images in about [0, 1]; scores are float32."""
        return self.judge(2 * images - 1).float()


class PatchDiscriminator(Discriminator):
    """4x4 convolutions: `num_layers` of stride 2, of channels that double up to eightfold, and two of stride 1.

    Args:
        in_channels: of the images.
        channels: of the first layer.
        num_layers: halvings.
    """

    def __init__(self, in_channels: int, channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**index, 8) for index in range(num_layers + 1)]
        layers: list[nn.Module] = [_filter(in_channels, channels, stride=2), nn.LeakyReLU(0.2)]
        for index in range(num_layers):
            stride = 2 if index < num_layers - 1 else 1
            norm = nn.BatchNorm2d(widths[index + 1])
            nn.init.normal_(norm.weight, 1.0, 0.02)
            layers += [_filter(widths[index], widths[index + 1], stride, bias=False), norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, _filter(widths[-1], 1, stride=1))

    def judge(self, images: Tensor) -> Tensor:
        return self.layers(images)


def _filter(in_channels: int, out_channels: int, stride: int, bias: bool = True) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 4, stride, padding=1, bias=bias)
    nn.init.normal_(layer.weight, 0.0, 0.02)
    return layer


class StyleDiscriminator(Discriminator):
    """Residual blocks, each of which halves the sides, down to 4 or an odd number.

    Args:
        image_shape: (C, H, W).
        channels: at the image's size; each halving doubles them, up to 512.
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: int = 64) -> None:
        super().__init__()
        in_channels, height, width = image_shape
        self.input = nn.Conv2d(in_channels, channels, 1)
        blocks = []
        while min(height, width) > 4 and height % 2 == 0 and width % 2 == 0:
            height, width, wider = height // 2, width // 2, max(channels, min(2 * channels, 512))
            blocks.append(Halving(channels, wider))
            channels = wider
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.hidden = nn.Linear(channels * height * width, channels)
        self.output = nn.Linear(channels, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, a=0.2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def judge(self, images: Tensor) -> Tensor:
        x = self.blocks(F.leaky_relu(self.input(images), 0.2))
        deviation = (x.float().var(0, unbiased=False) + 1e-8).sqrt().mean().to(x.dtype)
        x = torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], 1)
        x = F.leaky_relu(self.last(x), 0.2).flatten(1)
        return self.output(F.leaky_relu(self.hidden(x), 0.2))[:, :, None, None]


class Halving(nn.Module):
    """(B, C, H, W) -> (B, C', H/2, W/2): two 3x3 convolutions and a 1x1 beside them, smoothed before each stride."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.halve = nn.Conv2d(channels, out_channels, 3, stride=2)
        self.skip = nn.Conv2d(channels, out_channels, 1, bias=False)
        kernel = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", (kernel[:, None] * kernel).expand(channels, 1, 4, 4).clone(), persistent=False)

    def smooth(self, x: Tensor, padding: int) -> Tensor:
        """Blurs the maps (B, C, H, W) before they are halved."""
        return F.conv2d(x, self.kernel.to(x.dtype), padding=padding, groups=x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv(x), 0.2)
        y = F.leaky_relu(self.halve(self.smooth(y, 2)), 0.2)
        # Not by a stride of the convolution: see `scorers.classifier.Block`.
        return (y + self.skip(self.smooth(x, 1)[:, :, ::2, ::2])) / 2**0.5


def build_discriminator(config: AdversarialConfig, image_shape: tuple[int, int, int]) -> Discriminator:
    """The discriminator of a recipe for images (C, H, W).

    Raises:
        ValueError: images too small for it.
    """
    if config.discriminator == "style":
        return StyleDiscriminator(image_shape, config.width)
    num_layers = 3 if config.num_layers is None else config.num_layers
    if min(image_shape[1:]) < 3 * 2**num_layers:
        raise ValueError(
            f"images of {image_shape[1]}x{image_shape[2]} are too small for a patch discriminator of {num_layers} "
            f"halvings, which needs {3 * 2**num_layers}; lower losses.adversarial.num_layers"
        )
    return PatchDiscriminator(image_shape[0], config.width, num_layers)
