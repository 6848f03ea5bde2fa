"""The discrete VAE of DALL-E that OpenAI released: `encoder.pkl` and `decoder.pkl`.

Each is a whole pickled module of the package `dall_e`, which is neither needed nor imported: the reader puts inert
stand-ins in its place.  Copies that hold only the tensors are read, too.  Every convolution has `w` and `b`.
There is no config: all sizes follow from the shapes, of the encoder and of the decoder, but for that of the images,
which is taken as 256x256, that of the release (other multiples of the factor go, too).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..tokenizers._grid import square
from ..tokenizers.dvae import DVAE, DVAEConfig
from . import Imported
from .pickles import Stub
from .sources import folder_of, has_mark, named, parts
from .weights import Weights, fitting, load_weights, read_weights

ORIGIN = "discrete VAE of DALL-E by OpenAI, https://github.com/openai/DALL-E (cdn.openai.com/dall-e)"
LICENCE = "modified MIT"
IMAGE_SIZE = 256
PARTS = ("encoder", "decoder")
MARK = "blocks.input.w"
FILE_MARK = "res_path"  # a name of a module, which stands in pickles and in names of tensors
UNFIT = "does not hold a discrete VAE of DALL-E"


def matches(source: Path) -> bool:
    """Whether `source` is a folder with both files, or one of them."""
    return any(path is not None and any(has_mark(one, FILE_MARK) for one in parts(path)) for path in _files(source))


def load(source: Path) -> Imported:
    """The tokenizer of both files, of which `source` is the folder or one.

    Raises:
        ValueError: one of them is missing, or of another architecture.
    """
    files = _files(source)
    if missing := [part for part, path in zip(PARTS, files, strict=True) if path is None]:
        raise ValueError(f"{missing[0]}.pkl is missing: encoder.pkl and decoder.pkl must lie in one folder")
    halves = [_half(path, part) for part, path in zip(PARTS, files, strict=True)]
    tensors = {
        f"{part}.{name}": one for part, half in zip(PARTS, halves, strict=True) for name, one in half.tensors.items()
    }
    with fitting(folder_of(source), UNFIT):
        encoder = DVAEConfig(**square(IMAGE_SIZE), **_sizes(tensors, "encoder"))
        decoder = replace(encoder, **_sizes(tensors, "decoder"))
        tokenizer = DVAE(encoder)
        if decoder != encoder:
            tokenizer = tokenizer.with_decoder(decoder)
        load_weights(tokenizer, {_rename(name): one for name, one in tensors.items()}, folder_of(source), UNFIT)
    for half, config in zip(halves, (encoder, decoder), strict=True):
        _check_gains(half.content, config)
    notes = (*halves[0].notes, *halves[1].notes)
    return Imported(tokenizer.eval(), ORIGIN, LICENCE, False, halves[0].files | halves[1].files, notes=notes)


def _files(source: Path) -> list[Path | None]:
    if source.is_file() and not source.name.startswith(tuple(f"{part}{end}" for part in PARTS for end in ".-")):
        return [None, None]
    return [named(folder_of(source), part) for part in PARTS]


def _half(path: Path, part: str) -> Weights:
    weights = read_weights(path, MARK)
    found = weights.content.type_name if isinstance(weights.content, Stub) else f"dall_e.{part}.{part.title()}"
    if found != f"dall_e.{part}.{part.title()}":
        raise ValueError(f"{path} should hold the pickled {part} of the package dall_e, but holds {found}")
    return weights


def _sizes(tensors: Mapping[str, Tensor], part: str) -> dict[str, int]:
    """The sizes of one half, from the shapes."""
    first, last = tensors[f"{part}.blocks.input.w"].shape[:2], tensors[f"{part}.blocks.output.conv.w"].shape[:2]
    places = [re.match(rf"{part}\.blocks\.group_(\d+)\.block_(\d+)\.", name) for name in tensors]
    found = [(int(place[1]), int(place[2])) for place in places if place]
    if not found:
        raise KeyError(f"{part}.blocks.group_1")
    sizes = {"num_groups": max(group for group, _ in found), "blocks_per_group": max(block for _, block in found)}
    if part == "encoder":
        return sizes | {"width": first[0], "image_channels": first[1], "codebook_size": last[0]}
    return sizes | {"width": last[1], "initial_width": first[0]}


def _rename(name: str) -> str:
    """ "encoder.blocks.group_1.block_2.res_path.conv_3.w" -> "encoder.groups.0.1.convolutions.2.weight"."""
    name = re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", name))
    name = name.replace("decoder.blocks.input", "embedding").replace(".blocks.input", ".input")
    name = name.replace(".blocks.output.conv", ".output").replace(".id_path", ".skip")
    name = re.sub(r"\.blocks\.group_(\d+)\.block_(\d+)", lambda m: f".groups.{int(m[1]) - 1}.{int(m[2]) - 1}", name)
    return re.sub(r"\.res_path\.conv_(\d+)", lambda m: f".convolutions.{int(m[1]) - 1}", name)


def _check_gains(module: Any, config: DVAEConfig) -> None:
    """Raises ValueError where a block weighs its convolutions otherwise than the published code does."""
    expected = (config.num_groups * config.blocks_per_group) ** -2
    for block in _walk(module):
        gain = block.attributes.get("post_gain", expected)
        if not isinstance(gain, float | int) or abs(gain - expected) > 1e-6 * expected:
            raise ValueError(f"a block of this discrete VAE has a gain of {gain}; {expected} is what is supported")


def _walk(module: Any) -> Iterator[Stub]:
    if isinstance(module, Stub):
        yield module
        for child in (module.attributes.get("_modules") or {}).values():
            yield from _walk(child)
