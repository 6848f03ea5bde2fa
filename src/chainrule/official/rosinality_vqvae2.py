"""The VQ-VAE-2 of rosinality/vq-vae-2-pytorch (github.com): `vqvae_560.pt` (FFHQ 256x256), and its priors if beside it.

The file is a state dict. There is no config: all sizes follow from the shapes, but for that of the images, which
follows from the grids of the priors (`rosinality_pixelsnail`) or else is taken as 256x256 (other multiples of 8 go,
too). Two levels: `enc_b` reads the image, `enc_t` what it gives, `quantize_t` is the coarse level. Codebooks lie there
as columns; `cluster_size` is the use of the codes, `embed_avg` a sum that is not needed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..tokenizers._grid import square
from ..tokenizers.vqvae2 import VQVAE2, VQVAE2Config
from . import Imported
from .reader import sha256
from .rosinality_pixelsnail import BOTTOM_MARK, load_prior
from .rosinality_pixelsnail import MARK as PIXELSNAIL_MARK
from .sources import has_mark, marked_files, the_only
from .weights import fitting, load_weights, read_weights

ORIGIN = "VQ-VAE-2 of rosinality/vq-vae-2-pytorch, https://github.com/rosinality/vq-vae-2-pytorch"
LICENCE = "MIT, parts Apache-2.0 (Sonnet)"
IMAGE_SIZE = 256
MARK = "quantize_conv_t.weight"  # a name that only this release has
UNFIT = "does not hold a two-level VQ-VAE-2 of rosinality's code"


def matches(source: Path) -> bool:
    """Whether `source` is such a file, or a folder with one."""
    return bool(marked_files(source, MARK))


def load(source: Path) -> Imported:
    """The tokenizer of a file, or of the only such file of a folder, with its priors if they are there, too.

    Raises:
        ValueError: none or several such files, one of another architecture, or a prior of one level without the other.
    """
    path = the_only(marked_files(source, MARK), source, "VQ-VAE-2 of rosinality")
    weights = read_weights(path, MARK)
    priors = _priors(source)
    prior = load_prior(*priors) if priors else None
    with fitting(path, UNFIT):
        config = _config(weights.tensors)
        if prior is not None:
            grid = prior.spec.grids[0]
            config = replace(config, image_height=8 * grid.height, image_width=8 * grid.width)
        tokenizer = VQVAE2(config)
        load_weights(tokenizer, _rename(weights.tensors, config), path, UNFIT)
    if prior is not None and prior.spec != tokenizer.spec:
        raise ValueError(f"the priors beside {path.name} do not model its codes: {prior.spec}, not {tokenizer.spec}")
    files = weights.files | {one.name: sha256(one) for one in priors}
    return Imported(tokenizer.eval(), ORIGIN, LICENCE, False, files, prior, notes=weights.notes)


def _priors(source: Path) -> tuple[Path, ...]:
    """The priors of top and bottom beside the tokenizer, or nothing."""
    found = marked_files(source, PIXELSNAIL_MARK)
    if not found or not Path(source).is_dir():
        return ()
    levels: tuple[list[Path], list[Path]] = [], []
    for path in found:
        levels[has_mark(path, BOTTOM_MARK)].append(path)
    if [len(level) for level in levels] != [1, 1]:
        names = [", ".join(path.name for path in level) or "none" for level in levels]
        raise ValueError(
            f"{source} should hold one PixelSNAIL prior per level, but there are, of the top level: {names[0]}; of the "
            f"bottom level: {names[1]}; name the file of the VQ-VAE-2 to import it alone"
        )
    return levels[0][0], levels[1][0]


def _config(tensors: dict[str, Tensor]) -> VQVAE2Config:
    """The sizes, from the shapes."""
    hidden = tensors["enc_b.blocks.4.weight"].shape[0]
    dim, codebook_size = tensors["quantize_t.embed"].shape
    blocks = [value for name, value in tensors.items() if name.startswith("enc_b.") and name.endswith("conv.1.weight")]
    sizes = {"residual_width": blocks[0].shape[0]} if blocks else {}
    return VQVAE2Config(
        **square(IMAGE_SIZE), image_channels=tensors["enc_b.blocks.0.weight"].shape[1], num_levels=2, downsampling=4,
        width=hidden, num_blocks=len(blocks), codebook_size=codebook_size, embedding_dim=dim, **sizes,
    )  # fmt: skip


def _rename(tensors: dict[str, Tensor], config: VQVAE2Config) -> dict[str, Tensor]:
    """Our names; what has no place in the model keeps its own, and is refused when loaded."""
    names = {"quantize_conv_t": "project.0", "quantize_conv_b": "project.1", "upsample_t": "upsample.0"}
    count = config.num_blocks
    for theirs, ours, strided in (("enc_t", "encoders.0", 1), ("enc_b", "encoders.1", 2)):
        names |= {f"{theirs}.blocks.{2 * i}": f"{ours}.down.{i}" for i in range(strided)}
        names[f"{theirs}.blocks.{2 * strided}"] = f"{ours}.mix"
        names |= _block_names(f"{theirs}.blocks", 2 * strided + 1, ours, count)
    for theirs, ours, strided in (("dec_t", "decoders.0", 1), ("dec", "decoders.1", 2)):
        names[f"{theirs}.blocks.0"] = f"{ours}.mix"
        names |= _block_names(f"{theirs}.blocks", 1, ours, count)
        names |= {f"{theirs}.blocks.{count + 2 + 2 * i}": f"{ours}.up.{i}" for i in range(strided)}
    found = {}
    for name, value in tensors.items():
        module, _, kind = name.rpartition(".")
        if module in ("quantize_t", "quantize_b"):
            codebook = f"quantizers.{int(module == 'quantize_b')}.codebook"
            if kind == "embed":
                found[f"{codebook}.weight"] = value.t()
            elif kind == "cluster_size":
                found |= {f"{codebook}.usage": value, f"{codebook}.recent": value}
        else:
            found[f"{names.get(module, module)}.{kind}"] = value
    return found


def _block_names(theirs: str, first: int, ours: str, count: int) -> dict[str, str]:
    names = {}
    for i in range(count):
        names[f"{theirs}.{first + i}.conv.1"] = f"{ours}.blocks.{i}.wide"
        names[f"{theirs}.{first + i}.conv.3"] = f"{ours}.blocks.{i}.narrow"
    return names
