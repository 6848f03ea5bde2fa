"""The PixelCNN++ of pclucas14/pixel-cnn-pp (github.com): `pcnn_lr:..._nr-resnet5_nr-filters160_889.pth` (CIFAR-10).

The file is a state dict. There is no config, and a file's name need not tell its sizes: all follow from the
shapes. The size of images does not; it is that of the data which that code trains on, CIFAR-10 for three channels and
MNIST for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..core import CodeSpec
from ..priors.pixelcnnpp import NUM_LEVELS, PixelCNNPP, PixelCNNPPConfig
from ..tokenizers._grid import square
from ..tokenizers.pixels import Pixels, PixelsConfig
from . import Imported
from .sources import marked_files, the_only
from .weights import load_weights, read_weights

ORIGIN = "PixelCNN++ of pclucas14/pixel-cnn-pp, https://github.com/pclucas14/pixel-cnn-pp"
LICENCE = "MIT"
IMAGE_SIDES = {1: 28, 3: 32}  # by channels
NUMBERS = {1: 3, 3: 10}  # per logistic, by channels
LEVELS = 256
MARK = "downsize_ul_stream.0.conv.weight_v"  # a name that only this release has
LAYERS = {"u_init": "input_u", "ul_init.0": "input_above", "ul_init.1": "input_left", "nin_out": "out"}
PARTS = {"conv_input": "first", "conv_out": "second", "nin_skip": "skip"}
KINDS = {"weight_v": "direction", "weight_g": "magnitude", "bias": "bias"}


def matches(source: Path) -> bool:
    """Whether `source` is such a file, or a folder with one."""
    return bool(marked_files(source, MARK))


def load(source: Path) -> Imported:
    """The model of a file, or of the only such file of a folder, as a prior over pixels.

    Raises:
        ValueError: none or several such files, or one of another architecture.
    """
    path = the_only(marked_files(source, MARK), source, "PixelCNN++ of pclucas14's code")
    weights = read_weights(path, MARK)
    tensors = weights.tensors
    try:
        channels, depth = tensors["u_init.conv.weight_v"].shape[0], tensors["u_init.conv.weight_v"].shape[1] - 1
        side = IMAGE_SIDES[depth]
        config = PixelCNNPPConfig(
            width=channels,
            num_residual=_num_residual(tensors),
            num_mixtures=tensors["nin_out.lin_a.weight_v"].shape[0] // NUMBERS[depth],
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path.name} holds no PixelCNN++ of grey or colour images: {error} is missing") from None
    prior = PixelCNNPP(CodeSpec.single(side, side, depth, LEVELS), config)
    load_weights(prior, dict(_rename(name, value) for name, value in tensors.items()), path)
    tokenizer = Pixels(PixelsConfig(**square(side), image_channels=depth, levels=LEVELS))
    return Imported(tokenizer.eval(), ORIGIN, LICENCE, False, weights.files, prior.eval(), notes=weights.notes)


def _num_residual(tensors: Mapping[str, Tensor]) -> int:
    count = 0
    while f"up_layers.0.u_stream.{count}.conv_out.conv.bias" in tensors:
        count += 1
    return count


def _rename(name: str, value: Tensor) -> tuple[str, Tensor]:
    """Our name, and the tensor in our shape.  What leads down in scale is `up_layers` there; `ul` is our stream v."""
    module, _, kind = name.rpartition(".")
    module = module.removesuffix(".conv").removesuffix(".deconv").removesuffix(".lin_a")
    if kind == "weight_g":
        value = value.flatten()
    elif kind == "weight_v" and value.ndim == 2:  # a linear map of features is a 1x1 convolution
        value = value[:, :, None, None]
    if layer := re.fullmatch(r"(up|down)_layers\.(\d+)\.(u|ul)_stream\.(\d+)\.(\w+)", module):
        way, number, stream, index, part = layer.groups()
        level = int(number) if way == "up" else NUM_LEVELS - 1 - int(number)
        way = "down" if way == "up" else "up"
        module = f"{_level(level)}.{way}_{stream.replace('ul', 'v')}.{index}.{PARTS.get(part, part)}"
    elif scale := re.fullmatch(r"(down|up)size_(u|ul)_stream\.(\d+)", module):
        way, stream, number = scale.groups()
        level = int(number) if way == "down" else NUM_LEVELS - 2 - int(number)
        module = f"{_level(level)}.{'shrink' if way == 'down' else 'enlarge'}_{stream.replace('ul', 'v')}"
    else:
        module = LAYERS.get(module, module)
    return f"{module}.{KINDS.get(kind, kind)}", value


def _level(number: int) -> str:
    return "level" + ".inner" * number
