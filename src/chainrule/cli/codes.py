"""`chainrule encode` and `decode`: images to a compact file of codes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import open_tokenizer, read_image
from .options import MAX_SCALE, Device, Force, Images, Json, Model, NoMetadata, Resize, TokenizerPrecision
from .output import check_file, check_pictures, print_json

if TYPE_CHECKING:
    from torch import Tensor

CodesOut = Annotated[Path, typer.Option(help="The .safetensors file of codes.")]
CodesFile = Annotated[Path, typer.Argument(metavar="FILE", help="A file of codes.")]
ImagesOut = Annotated[Path, typer.Option(help="A folder, one file per image; or a .png file with all of them.")]
Zoom = Annotated[
    int | None,
    typer.Option(
        min=1, max=MAX_SCALE, help="Zoom of a pixel in a .png file.", show_default="1, or 128 pixels per image of many"
    ),
]


def encode(
    model: Model, images: Images, out: CodesOut, resize: Resize = False, precision: TokenizerPrecision = "float32",
    force: Force = False, json: Json = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Turn images of one size into codes, in a file of as few bits as they need.

    The file names its tokenizer, and chainrule decode refuses any other.

    \b
    Examples:
      chainrule encode runs/vqgan photo.png --out photo.safetensors
      chainrule encode runs/vqgan one.png two.png --out both.safetensors --resize --json
    """
    check_file(out, ".safetensors", force)

    import torch

    from ..evaluation import bits_per_image
    from ..files import write_file
    from ..saving import code_file

    tokenizer = open_tokenizer(model, device)
    pixels = [read_image(path, tokenizer, resize, any_size=True) for path in images]
    for path, image in zip(images, pixels, strict=True):
        if image.shape != pixels[0].shape:
            (_, h0, w0), (_, h1, w1) = pixels[0].shape, image.shape
            raise ValueError(
                f"the images differ in size: {images[0]} is {h0}x{w0} and {path} is {h1}x{w1} (height x width); "
                "add --resize, or encode them into files of their own"
            )
    codes = code_file.encode(tokenizer, torch.stack(pixels), precision)
    data = code_file.pack_codes(codes, [path.name for path in images], tokenizer)
    write_file(out, data)
    bits, shapes = bits_per_image(tokenizer.spec, codes), [list(grid.shape[1:]) for grid in codes]
    if json:
        value = {"out": str(out), "images": len(images), "grids": shapes}
        print_json(value | {"bits_per_image": bits, "bytes": len(data)})
        return
    grids = " and ".join("x".join(map(str, shape)) for shape in shapes)
    count = f"{len(images)} {'image' if len(images) == 1 else 'images'}"
    print(f"{out}: {count} as {grids} codes, {bits:,.0f} bits each, {len(data):,} bytes in all")


def decode(
    model: Model, codes: CodesFile, out: ImagesOut, scale: Zoom = None, precision: TokenizerPrecision = "float32",
    no_metadata: NoMetadata = False, force: Force = False, json: Json = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Turn a file of codes back into images.

    In a folder, each image has the name of the file that was encoded.

    \b
    Examples:
      chainrule decode runs/vqgan photo.safetensors --out photo.png
      chainrule decode runs/vqgan both.safetensors --out decoded
    """
    if not check_pictures(out, force) and scale is not None:
        raise ValueError("--scale would be ignored: images in a folder are not enlarged; leave it out")

    from ..drawing import Derived, text_chunks
    from ..saving import code_file

    tokenizer = open_tokenizer(model, device)
    grids, names = code_file.read_codes(codes, tokenizer)
    chunks = text_chunks(None if no_metadata else Derived.of("decoded codes", model, [codes]))
    files = write_images(out, code_file.decode(tokenizer, grids, precision), names, scale, chunks)
    if json:
        print_json({"out": [str(path) for path in files], "images": len(names)})
    else:
        print(f"{out}: {len(names)} {'image' if len(names) == 1 else 'images'}")


def write_images(
    out: Path, images: Tensor, names: Sequence[str], scale: int | None, chunks: dict[str, str]
) -> list[Path]:
    """Writes images as one picture or into a folder; returns the files."""
    from ..images import to_pil
    from ..pictures import enlarge, write_each, write_grid, write_png

    if out.suffix.lower() != ".png":
        return write_each(out, [Path(name).stem for name in names], images, chunks)
    if len(images) == 1:
        write_png(out, to_pil(enlarge(images, scale or 1))[0], chunks)
    else:
        write_grid(out, images, scale, chunks=chunks)
    return [out]
