"""A classifier whose probability of the wanted class says which samples to keep.

VQ-VAE-2 (Razavi et al. 2019, arXiv:1906.00446, section 3.4) draws more samples than are needed and rejects those to
which a classifier of real images gives their class c with low probability; keeping fewer buys quality with variety:

    score(x) = log p(c | x)

The paper takes a classifier of ImageNet and a threshold.  Here the classifier is small and trained on the data of the
prior, and the best of so many candidates for each image is kept (`decoding.keep_best`): with 1/n of the samples kept,
this is the same trade for every image, and no image waits for a threshold to be met.

The network is a residual one (He et al. 2016, arXiv:1603.05027: normalisation and activation before the convolutions)
at 1/2, 1/4, 1/8, … of the image's sides, with two deviations.  Group normalisation in place of batch normalisation: a
score does not depend on the images beside it.  And means over the cells of a grid of 4x4 in place of those over the
whole image: after group normalisation the latter differ little from image to image, and training is slow (the loss on
digits was 2.2 after 90 steps, and 0.9 with the grid).

Shape letters: B batch, C channels, H height, W width, N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import class_numbers
from ..core.checks import check_images, check_shares, check_sizes
from ..core.values import as_tensor

GROUP = 16
"""Channels of a group in the normalisation; fewer are slow on CPUs."""
CELLS = 4
"""Cells per side over which means are taken, where the last stage has as many positions."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Images, classes and sizes.

    image_shape: (C, H, W)
    num_classes: N
    class_names: of the classes, if they have any
    width:       channels of the first stage; each stage has twice as many
    num_stages:  stage s, from 1, computes at 1/2^s of the image's sides
    num_blocks:  residual blocks of each stage
    dropout:     before the last layer
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    width: int = 64
    num_stages: int = 3
    num_blocks: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_sizes(self, "num_classes", "width", "num_stages", "num_blocks")
        check_shares(self, "dropout")
        if min(self.image_shape[1:]) < 2**self.num_stages or self.image_shape[0] not in (1, 3):
            raise ValueError(
                f"image_shape must be (1 or 3, H, W) with sides of at least {2**self.num_stages}, as {self.num_stages} "
                f"stages need, got {self.image_shape}"
            )
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names must be {self.num_classes} names, got {len(self.class_names)}")


class Block(nn.Module):
    """x + f(x) with two 3x3 convolutions in f; where channels or sides change, a 1x1 convolution of the first
    activation stands for x."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(in_channels), _norm(channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = stride > 1 or in_channels != channels
        self.skip = nn.Conv2d(in_channels, channels, 1, bias=False) if changes else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        # With a stride of its own, a 1x1 convolution of fewer than 8 channels writes outside its memory in oneDNN's
        # gradient for AVX2, channels last.
        skip = x if self.skip is None else self.skip(y[:, :, :: self.stride, :: self.stride])
        return skip + self.conv2(F.relu(self.norm2(self.conv1(y))))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1 if channels % GROUP else channels // GROUP, channels)


class Classifier(nn.Module):
    """p(class | image)."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.width
        layers: list[nn.Module] = [nn.Conv2d(config.image_shape[0], channels, 5, 2, padding=2, bias=False)]
        for stage in range(config.num_stages):
            for block in range(config.num_blocks):
                layers.append(Block(channels, config.width * 2**stage, 2 if stage and not block else 1))
                channels = config.width * 2**stage
        self.layers = nn.Sequential(*layers)
        self.norm = _norm(channels)
        self.cells = tuple(min(CELLS, -(-side // 2**config.num_stages)) for side in config.image_shape[1:])
        self.output = nn.Linear(channels * self.cells[0] * self.cells[1], config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes, float (B, N).

        Args:
            images: uint8 (B, C, H, W).

        Raises:
            ValueError: images of another shape or type.
        """
        check_images(images, self.config.image_shape[:1], self.config.image_shape[1:])
        x = self.layers(images.float() / 127.5 - 1)
        x = F.adaptive_avg_pool2d(F.relu(self.norm(x)), self.cells).flatten(1)
        return self.output(F.dropout(x, self.config.dropout, self.training))

    def for_labels(self, labels: int | str | Sequence[int | str] | Tensor) -> Callable[[Tensor], Tensor]:
        """The scorer for `Pipeline.sample`: images uint8 (B, C, H, W) -> log p(wanted class | image), float (B,).

        Args:
            labels: class of all images, or one per image, by name or number (see `core.class_number`), or the numbers
                of a data set as int64 (B,).

        Raises:
            ValueError: no such class; from the scorer: more or fewer images than labels, or images of another shape.
        """
        names, count = self.config.class_names, self.config.num_classes
        numbers = class_numbers(labels, count, names, "classifier")

        @torch.no_grad()
        def score(images: Tensor) -> Tensor:
            images = as_tensor(images, "images")
            if numbers.ndim and len(images) != len(numbers):
                raise ValueError(f"{len(numbers)} labels are wanted of {len(images)} images")
            log_prob = self(images.to(self.output.weight.device)).float().log_softmax(1)
            return log_prob.gather(1, numbers.expand(len(images))[:, None].to(log_prob.device))[:, 0]

        return score
