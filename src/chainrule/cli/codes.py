"""`chainrule encode` and `decode`: images to a compact file of codes, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..progress import progress
from .common import (
    Device,
    Force,
    Json,
    Model,
    Resize,
    TokenizerPrecision,
    check_file,
    check_folder,
    open_tokenizer,
    print_json,
    read_any_image,
)  # fmt: skip

BATCH = 16


def encode(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, all of one size.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file of codes.")],
    resize: Resize = False,
    precision: TokenizerPrecision = "float32",
    force: Force = False,
    json: Json = False,
    device: Device = "cpu",
) -> None:
    """Turn images into codes, in a file of as many bits as these need.

    The file knows its tokenizer, and chainrule decode refuses another.

    \b
    Examples:
      chainrule encode runs/vqgan photo.png --out photo.safetensors
      chainrule encode runs/vqgan one.png two.png --out both.safetensors --resize --json
    """
    check_file(out, ".safetensors", force)

    import torch

    from ..evaluation import bits_per_image
    from ..saving.code_file import pack_codes
    from .pictures import write_bytes

    tokenizer = open_tokenizer(model, device)
    fast = tokenizer.packed(precision)
    pixels = [read_any_image(path, tokenizer, resize) for path in images]
    for path, image in zip(images, pixels, strict=True):
        if image.shape != pixels[0].shape:
            (_, h0, w0), (_, h1, w1) = pixels[0].shape, image.shape
            raise ValueError(
                f"the images differ in size: {images[0]} is {h0}x{w0} and {path} is {h1}x{w1} (height x width); "
                "add --resize, or encode them into files of their own"
            )
    parts = []
    with progress("Encoding", len(pixels), "images") as done, torch.no_grad():
        for start in range(0, len(pixels), BATCH):
            batch = torch.stack(pixels[start : start + BATCH])
            parts.append(fast.encode(batch.to(device)))
            done(start + len(batch))
    codes = tuple(torch.cat(grids) for grids in zip(*parts, strict=True))
    data = pack_codes(codes, [path.name for path in images], tokenizer)
    write_bytes(out, data)
    bits, shapes = bits_per_image(tokenizer.spec, codes), [list(grid.shape[1:]) for grid in codes]
    if json:
        value = {"out": str(out), "images": len(images), "grids": shapes}
        print_json(value | {"bits_per_image": bits, "bytes": len(data)})
        return
    grids = " and ".join("x".join(map(str, shape)) for shape in shapes)
    count = f"{len(images)} {'image' if len(images) == 1 else 'images'}"
    print(f"{out}: {count} as {grids} codes, {bits:,.0f} bits each, {len(data):,} bytes in all")


def decode(
    model: Model,
    codes: Annotated[Path, typer.Argument(metavar="FILE", help="A file of codes.")],
    out: Annotated[Path, typer.Option(help="A folder, one file per image; or a .png file with all of them.")],
    scale: Annotated[
        int | None,
        typer.Option(min=1, help="Zoom of a pixel in a .png file.", show_default="1, or 128 pixels per image of many"),
    ] = None,
    precision: TokenizerPrecision = "float32",
    force: Force = False,
    json: Json = False,
    device: Device = "cpu",
) -> None:
    """Turn a file of codes back into images.

    Into a folder they are written under the names of the images they are of.

    \b
    Examples:
      chainrule decode runs/vqgan photo.safetensors --out photo.png
      chainrule decode runs/vqgan both.safetensors --out decoded
    """
    as_file = out.suffix.lower() == ".png"
    if as_file:
        check_file(out, ".png", force)
    else:
        check_folder(out, force)
        if scale is not None:
            raise ValueError("--scale would be ignored: images in a folder are not enlarged; leave it out")

    import torch

    from ..images import grid, to_pil
    from ..saving.code_file import read_codes
    from .pictures import automatic_scale, enlarge, unique_stems, write_png

    tokenizer = open_tokenizer(model, device)
    grids, names = read_codes(codes, tokenizer)
    fast = tokenizer.packed(precision)
    parts = []
    with progress("Decoding", len(names), "images") as done, torch.no_grad():
        for start in range(0, len(names), BATCH):
            parts.append(fast.decode(tuple(each[start : start + BATCH].to(device) for each in grids)).cpu())
            done(start + len(parts[-1]))
    images = torch.cat(parts)
    if not as_file:
        files = [out / f"{stem}.png" for stem in unique_stems([Path(name).stem for name in names])]
        for path, picture in zip(files, to_pil(images), strict=True):
            write_png(path, picture)
    elif len(images) == 1:
        files = [out]
        write_png(out, to_pil(enlarge(images, scale or 1))[0])
    else:
        files = [out]
        write_png(out, grid(images, scale=scale or automatic_scale(images.shape[3])))
    if json:
        print_json({"out": [str(path) for path in files], "images": len(images)})
    else:
        print(f"{out}: {len(images)} {'image' if len(images) == 1 else 'images'}")
