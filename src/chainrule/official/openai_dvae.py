"""The discrete VAE of DALL-E that OpenAI released: `encoder.pkl` and `decoder.pkl`.

Each is a whole pickled module of the package `dall_e`, which is neither needed nor imported: the reader puts inert
stand-ins in its place, and here their tensors are collected by name.  Every convolution has `w` and `b`.
There is no config: all sizes follow from the shapes, but for that of the images, which is taken as 256x256, that of
the release (other multiples of the factor go, too).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ..tokenizers._grid import square
from ..tokenizers.dvae import DVAE, DVAEConfig
from . import Imported
from .pickles import Stub
from .reader import module_tensors, read_checkpoint, sha256
from .sources import has_mark

ORIGIN = "discrete VAE of DALL-E by OpenAI, https://github.com/openai/DALL-E (cdn.openai.com/dall-e)"
LICENCE = "modified MIT"
IMAGE_SIZE = 256
FILES = {"encoder": "encoder.pkl", "decoder": "decoder.pkl"}
MARK = b"dall_e"  # the package whose classes the pickles name


def matches(source: Path) -> bool:
    """Whether `source` is a folder with both files, or one of them."""
    return any(path.is_file() and has_mark(path, MARK) for path in _files(Path(source)).values())


def load(source: Path) -> Imported:
    """The tokenizer of both files, of which `source` is the folder or one.

    Raises:
        ValueError: one of them is missing, or of another architecture.
    """
    files = _files(Path(source))
    modules = {part: _module(path, part) for part, path in files.items() if path.is_file()}
    missing = [path.name for part, path in files.items() if part not in modules]
    if missing:
        raise ValueError(f"{missing[0]} is missing: encoder.pkl and decoder.pkl must lie in one folder")
    tensors = {}
    for part, module in modules.items():
        tensors |= module_tensors(module, f"{part}.")
    try:
        config = _config(tensors)
        tokenizer = DVAE(config)
        tokenizer.load_state_dict({_rename(name): value for name, value in tensors.items()})
    except (KeyError, RuntimeError, AttributeError, IndexError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{files['encoder'].parent} does not hold a discrete VAE of DALL-E: {reason}") from None
    _check_gains(modules, config)
    hashes = {path.name: sha256(path) for path in files.values()}
    return Imported(tokenizer.eval(), ORIGIN, LICENCE, False, hashes)


def _files(source: Path) -> dict[str, Path]:
    folder = source if source.is_dir() else source.parent
    if not source.is_dir() and source.name not in FILES.values():
        return {}
    return {part: folder / name for part, name in FILES.items()}


def _module(path: Path, part: str) -> Stub:
    module = read_checkpoint(path)
    if not isinstance(module, Stub) or module.type_name != f"dall_e.{part}.{part.title()}":
        found = module.type_name if isinstance(module, Stub) else type(module).__name__
        raise ValueError(f"{path} should hold the pickled {part} of the package dall_e, but holds {found}")
    return module


def _config(tensors: dict[str, Tensor]) -> DVAEConfig:
    """The sizes, from the shapes."""
    hidden, channels = tensors["encoder.blocks.input.w"].shape[:2]
    initial, codebook_size = tensors["decoder.blocks.input.w"].shape[:2]
    places = [re.match(r"encoder\.blocks\.group_(\d+)\.block_(\d+)\.", name) for name in tensors]
    groups, blocks = zip(*(map(int, place.groups()) for place in places if place), strict=True)
    return DVAEConfig(
        **square(IMAGE_SIZE), image_channels=channels, codebook_size=codebook_size, width=hidden,
        blocks_per_group=max(blocks), num_groups=max(groups), initial_width=initial,
    )  # fmt: skip


def _rename(name: str) -> str:
    """ "encoder.blocks.group_1.block_2.res_path.conv_3.w" -> "encoder.groups.0.1.convolutions.2.weight"."""
    name = re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", name))
    name = name.replace("decoder.blocks.input", "embedding").replace(".blocks.input", ".input")
    name = name.replace(".blocks.output.conv", ".output").replace(".id_path", ".skip")
    name = re.sub(r"\.blocks\.group_(\d+)\.block_(\d+)", lambda m: f".groups.{int(m[1]) - 1}.{int(m[2]) - 1}", name)
    return re.sub(r"\.res_path\.conv_(\d+)", lambda m: f".convolutions.{int(m[1]) - 1}", name)


def _check_gains(modules: dict[str, Stub], config: DVAEConfig) -> None:
    """Raises ValueError where a block weighs its convolutions otherwise than the published code does."""
    expected = (config.num_groups * config.blocks_per_group) ** -2
    for module in modules.values():
        for block in _walk(module):
            gain = block.attributes.get("post_gain", expected)
            if not isinstance(gain, float | int) or abs(gain - expected) > 1e-6 * expected:
                raise ValueError(f"a block of this discrete VAE has a gain of {gain}; {expected} is what is supported")


def _walk(module: Stub) -> Iterator[Stub]:
    yield module
    for child in (module.attributes.get("_modules") or {}).values():
        if isinstance(child, Stub):
            yield from _walk(child)
