"""Inception-V3 (Szegedy et al., arXiv:1512.00567) as the Fréchet Inception Distance has it (Heusel et al.,
arXiv:1706.08500).

The network of 2015-12-05 in its PyTorch form, whose file of weights is public and names its tensors as this module
does.  It differs from other Inception-V3s: averages in branches leave out the padding, the last block takes a maximum
in the place of an average, and images are resized to 299x299 as the first TensorFlow did, with corners that do not
match.

Figures of papers use three outputs: `pooled` for FID, KID, precision and recall; `spatial` for sFID (Nash et al. 2021,
arXiv:2103.03841), the first 7 channels of the map of 17x17 that TensorFlow's graph calls mixed_6/conv and this file of
weights Mixed_6d.branch1x1, as in the evaluation of ADM (arXiv:2105.05233); and `logits`, without the bias, for the
Inception Score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import FeatureNetwork

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
FILE = "pt_inception-2015-12-05-6726825d.pth"
SIDE, SPATIAL_CHANNELS = 299, 7

Layer = tuple[str, int, tuple[int, int], int]
"""A convolution: its name, output channels, kernel and stride."""
ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
SHORT_ROW, SHORT_COLUMN = (1, 3), (3, 1)


def _same(pool_width: int) -> list[list[Layer]]:
    """Branches at 35x35; the last follows an average."""
    return [
        [("branch1x1", 64, ONE, 1)],
        [("branch5x5_1", 48, ONE, 1), ("branch5x5_2", 64, FIVE, 1)],
        [("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 1)],
        [("branch_pool", pool_width, ONE, 1)],
    ]


def _long(width: int) -> list[list[Layer]]:
    """Branches at 17x17, whose kernels are rows and columns; the last follows an average."""
    double = [("1", ONE), ("2", COLUMN), ("3", ROW), ("4", COLUMN), ("5", ROW)]
    return [
        [("branch1x1", 192, ONE, 1)],
        [("branch7x7_1", width, ONE, 1), ("branch7x7_2", width, ROW, 1), ("branch7x7_3", 192, COLUMN, 1)],
        [(f"branch7x7dbl_{index}", 192 if index == "5" else width, kernel, 1) for index, kernel in double],
        [("branch_pool", 192, ONE, 1)],
    ]


SMALLER = [
    [("branch3x3", 384, THREE, 2)],
    [("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 2)],
]
SMALLEST = [
    [("branch3x3_1", 192, ONE, 1), ("branch3x3_2", 320, THREE, 2)],
    [("branch7x7x3_1", 192, ONE, 1), ("branch7x7x3_2", 192, ROW, 1), ("branch7x7x3_3", 192, COLUMN, 1),
     ("branch7x7x3_4", 192, THREE, 2)],
]  # fmt: skip
WIDE = [
    [("branch1x1", 320, ONE, 1)],
    [("branch3x3_1", 384, ONE, 1), ("branch3x3_2a", 384, SHORT_ROW, 1), ("branch3x3_2b", 384, SHORT_COLUMN, 1)],
    [("branch3x3dbl_1", 448, ONE, 1), ("branch3x3dbl_2", 384, THREE, 1), ("branch3x3dbl_3a", 384, SHORT_ROW, 1),
     ("branch3x3dbl_3b", 384, SHORT_COLUMN, 1)],
    [("branch_pool", 192, ONE, 1)],
]  # fmt: skip
"""Branches at 8x8: convolutions "a" and "b" read the same map, and both are kept."""

BLOCKS = {
    "Mixed_5b": (192, _same(32)), "Mixed_5c": (256, _same(64)), "Mixed_5d": (288, _same(64)),
    "Mixed_6a": (288, SMALLER),
    "Mixed_6b": (768, _long(128)), "Mixed_6c": (768, _long(160)), "Mixed_6d": (768, _long(160)),
    "Mixed_6e": (768, _long(192)), "Mixed_7a": (768, SMALLEST), "Mixed_7b": (1280, WIDE), "Mixed_7c": (2048, WIDE),
}  # fmt: skip
"""Input channels and branches of each block."""


@dataclass(frozen=True)
class InceptionFeatures:
    """What the figures of N images are made of: float (N, 2048), (N, 2023) and (N, 1008)."""

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class NormedConvolution(nn.Module):
    """Convolution, batch norm, ReLU; padded where the stride is 1 and `padded`."""

    def __init__(self, in_channels: int, layer: Layer, padded: bool = True) -> None:
        super().__init__()
        _, out_channels, kernel, stride = layer
        padding = tuple(side // 2 for side in kernel) if stride == 1 and padded else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side.

    Args:
        in_channels: of the input.
        branches: their convolutions.
        maximum: whether the pooled branch takes the maximum in the place of an average.
    """

    def __init__(self, in_channels: int, branches: list[list[Layer]], maximum: bool) -> None:
        super().__init__()
        self.branches, self.maximum = branches, maximum
        for branch in branches:
            channels = in_channels
            for layer in branch:
                self.add_module(layer[0], NormedConvolution(channels, layer))
                channels = channels if layer[0].endswith("a") else layer[1]

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            y = x
            if branch[0][0] == "branch_pool":
                y = F.max_pool2d(x, 3, 1, 1) if self.maximum else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            for name, *_ in branch:
                z = self.get_submodule(name)(y)
                if name.endswith("a"):
                    found.append(z)
                else:
                    y = z
            found.append(y)
        if self.branches in (SMALLER, SMALLEST):
            found.append(F.max_pool2d(x, 3, 2))
        return torch.cat(found, 1)


class Inception(FeatureNetwork):
    """One map of one position: the 2048 pooled features whose Fréchet distance is FID.

    Images are rounded to the 256 levels of files, so features are not differentiable in them.
    """

    title = "Inception-V3 (FID)"
    resize = "bilinear to 299x299 by the network, without antialiasing"

    def __init__(self, side: int = 0) -> None:
        super().__init__(side)
        stem = [(3, 32, THREE, 2), (32, 32, THREE, 1), (32, 64, THREE, 1), (64, 80, ONE, 1), (80, 192, THREE, 1)]
        self.stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
        for name, (width, *layer) in zip(self.stem, stem, strict=True):
            self.add_module(name, NormedConvolution(width, (name, *layer), padded=name == "Conv2d_2b_3x3"))
        for name, (width, branches) in BLOCKS.items():
            self.add_module(name, Block(width, branches, maximum=name == "Mixed_7c"))
        self.fc = nn.Linear(2048, 1008)

    def maps(self, images: Tensor) -> list[Tensor]:
        return [self.features((images * 255).round().clamp(0, 255)).pooled[:, :, None, None]]

    def features(self, images: Tensor) -> InceptionFeatures:
        """The outputs for images (B, 1 or 3, H, W) of any type with values 0..255."""
        x = (_resize_299(images.float().expand(-1, 3, -1, -1)) - 128) / 128
        for name in self.stem:
            x = self.get_submodule(name)(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        for name in BLOCKS:
            block = self.get_submodule(name)
            if name == "Mixed_6d":
                spatial = block.branch1x1(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            x = block(x)
        pooled = x.mean((2, 3))
        return InceptionFeatures(pooled, spatial, pooled @ self.fc.weight.T)


def load_inception(path: str | Path | None = None, side: int = 0) -> Inception:
    """The network with its weights, frozen.

    Args:
        path: the file of weights (`FILE`); None downloads it to the cache of torch.hub.
        side: see `FeatureNetwork`.

    Raises:
        ValueError: no such file, other weights, or no download.
    """
    try:
        if path is None:
            tensors = torch.hub.load_state_dict_from_url(
                URL, map_location="cpu", weights_only=True, check_hash=True, file_name=FILE
            )
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        if path is not None:
            raise ValueError(f"{path} is no file of weights, or cannot be read") from error
        raise ValueError(
            f"the weights of inception cannot be downloaded ({type(error).__name__}); give a path to {FILE}, or take "
            "efficientnet_lite0, which needs no download"
        ) from error
    network = Inception(side)
    wanted = network.state_dict()
    tensors = {key: value for key, value in tensors.items() if not key.startswith("AuxLogits")}
    for key, value in wanted.items():
        if key.endswith("num_batches_tracked"):
            tensors.setdefault(key, value)
    if wrong := [key for key in wanted if key not in tensors or tensors[key].shape != wanted[key].shape]:
        raise ValueError(
            f"{path or URL} holds other weights than those of FID: {wrong[0]!r} is missing or of another shape"
        )
    network.load_state_dict(tensors, strict=False)
    return network.eval().requires_grad_(False)


def _resize_299(images: Tensor) -> Tensor:
    """Bilinear to 299x299, where output pixel i lies at i * size / 299."""
    rows, columns = (_weights(size).to(images.device) for size in images.shape[2:])
    return rows @ images @ columns.T


def _weights(size: int) -> Tensor:
    """The matrix (299, size) that resizes a column of pixels."""
    place = torch.arange(SIDE, dtype=torch.float32) * (size / SIDE)
    low = place.floor().long().clamp(max=size - 1)
    share = (place - low)[:, None]
    kinds = F.one_hot(low, size), F.one_hot((low + 1).clamp(max=size - 1), size)
    return (1 - share) * kinds[0] + share * kinds[1]
