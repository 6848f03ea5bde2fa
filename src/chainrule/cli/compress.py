"""`chainrule compress` and `decompress`: image files to one small file, by a model's probabilities, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .codes import ImagesOut, write_images
from .common import labels_for, open_model, read_image
from .options import Device, Force, Images, Json, Label, Model, NoMetadata, Resize
from .output import check_file, check_pictures, print_json

Out = Annotated[Path, typer.Option(help="The .crz file to write.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A .crz file.")]
Text = Annotated[str | None, typer.Option(help="What the images show, for a model that reads texts.")]
Lossy = Annotated[
    bool, typer.Option("--lossy", help="Allow images to change: keep them as chainrule reconstruct shows them.")
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Images at once; decompress needs memory for as many. One alone is slow.")
]
Anyway = Annotated[
    bool, typer.Option("--any-environment", help="Try it although versions or hardware differ; a checksum decides.")
]


def compress(
    model: Model, images: Images, out: Out, label: Label = None, text: Text = None, resize: Resize = False,
    lossy: Lossy = False, batch_size: BatchSize = 100, force: Force = False, json: Json = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Compress images into one file, without loss with a model of pixels.

    An image takes about as many bits as `chainrule score` gives it: the better the model expects it, the fewer.  Only
    the same model restores it, on the same kind of computer with the same versions; the file names them.

    \b
    Examples:
      chainrule compress mnist_row_lstm one.png two.png --out digits.crz
      chainrule compress runs/gpt photo.png --out photo.crz --lossy
    """
    check_file(out, ".crz", force)

    import torch

    from ..compression import compress as compress_images
    from ..files import write_file

    pipeline = open_model(model, device)
    labels = labels_for(pipeline, label, len(images))
    pixels = torch.stack([read_image(path, pipeline.tokenizer, resize) for path in images])
    names, options = [path.name for path in images], {"batch_size": batch_size, "lossy": lossy}
    data = compress_images(pipeline, pixels, labels, text, names=names, **options)
    write_file(out, data)
    exact = torch.equal(pipeline.reconstruct(pixels).cpu(), pixels) if lossy else True
    bits = 8 * len(data) / (len(pixels) * pixels.shape[2] * pixels.shape[3])
    if json:
        value = {"out": str(out), "images": len(images), "bytes": len(data), "bits_per_pixel": bits, "exact": exact}
        print_json(value)
        return
    count = f"{len(images)} {'image' if len(images) == 1 else 'images'}"
    kept = "exact" if exact else "not exact, kept as chainrule reconstruct shows them"
    print(f"{out}: {count} in {len(data):,} bytes, {bits:.3f} bits per pixel; {kept}")


def decompress(
    model: Model, file: File, out: ImagesOut, any_environment: Anyway = False, no_metadata: NoMetadata = False,
    force: Force = False, json: Json = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Restore the images of a compressed file.

    A damaged file, another model or another environment is an error, and never a wrong image.  In a folder, each image
    has the name of the file that was compressed.

    \b
    Examples:
      chainrule decompress mnist_row_lstm digits.crz --out digits
      chainrule decompress runs/gpt photo.crz --out photo.png
    """
    check_pictures(out, force)

    from ..compression import decompress as restore
    from ..drawing import Derived, text_chunks

    restored = restore(open_model(model, device), file.read_bytes(), any_environment=any_environment)
    names = restored.names or [f"{index:05d}" for index in range(len(restored.images))]
    chunks = text_chunks(None if no_metadata else Derived.of("a compressed image", model, [file]))
    files = write_images(out, restored.images, names, None, chunks)
    if json:
        print_json({"out": [str(path) for path in files], "images": len(names)})
    else:
        print(f"{out}: {len(names)} {'image' if len(names) == 1 else 'images'}")
