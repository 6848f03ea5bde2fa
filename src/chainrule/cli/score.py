"""`chainrule score`: the likelihood of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import labels_for, open_model, read_image
from .options import Device, Force, Images, Json, Label, Model, NoMetadata, Resize, Text
from .output import check_pictures, print_json, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.scoring import Scores

Map = Annotated[
    Path | None,
    typer.Option(help="Write the surprise at each pixel: a .png of all images, or a folder with one file each."),
]
Binarize = Annotated[
    bool, typer.Option("--binarize", help="Draw black and white pixels by their grey first (needs --seed).")
]
Seed = Annotated[int | None, typer.Option(help="Of --binarize.")]
Scale = Annotated[int | None, typer.Option(min=1, help="Zoom of --map.", show_default="about 128 pixels per image")]


def score(
    model: Model, images: Images, label: Label = None, text: Text = None, map: Map = None, resize: Resize = False,
    binarize: Binarize = False, seed: Seed = None, scale: Scale = None, no_metadata: NoMetadata = False,
    force: Force = False, json: Json = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Score images: -log p in nats; less is more probable.

    A model of pixels also gives bits per dimension, a model of codes the bits of an image's codes.  Pixels are rounded
    to the nearest level of the model: a binary model reads 128 and more as on, unless --binarize draws them.  A map is
    dark where the model expected the image, and light where it was surprised.

    \b
    Examples:
      chainrule score mnist_diagonal_bilstm digit.png
      chainrule score mnist_diagonal_bilstm one.png two.png --map surprise.png
      chainrule score mnist_diagonal_bilstm one.png two.png --binarize --seed 0 --json
      chainrule score shapes_gated_pixelcnn scene.png --label "red circle" --resize
      chainrule score runs/text scene.png --text "a small red circle at the top"
    """
    if map is None and scale is not None:
        raise ValueError("--scale would be ignored without --map; leave it out")
    if binarize != (seed is not None):
        raise ValueError("--binarize draws at random by --seed, and nothing else does: give both or neither")
    if map is not None:
        check_pictures(map, force, "--map")

    import torch

    from .. import data
    from ..drawing import Derived, text_chunks
    from ..evaluation.scoring import score as score_images

    pipeline = open_model(model, device)
    labels = labels_for(pipeline, label, len(images))
    pixels = torch.stack([read_image(path, pipeline.tokenizer, resize) for path in images])
    if binarize:
        pixels = data.binarize(pixels, "sample", torch.Generator().manual_seed(seed))
    scores = score_images(pipeline, pixels, labels, text, surprise=map is not None)
    if map is not None:
        chunks = text_chunks(None if no_metadata else Derived.of("a map of surprise", model, images))
        _write_maps(map, images, pixels, scores.surprise, scale, chunks)
    _print(images, scores, map, json)


def _print(paths: list[Path], scores: Scores, map: Path | None, json: bool) -> None:
    learned = scores.bits_per_dim is None
    bits = (scores.bits_of_codes if learned else scores.bits_per_dim).tolist()
    nats, key = scores.nats.tolist(), "bits_of_codes" if learned else "bits_per_dim"
    greatest = None if scores.surprise is None else scores.surprise.max().item()
    if json:
        figures = [{"image": str(path), "nats": a, key: b} for path, a, b in zip(paths, nats, bits, strict=True)]
        print_json({"images": figures} | ({} if map is None else {"map": str(map), "greatest_surprise": greatest}))
        return
    digits = 1 if learned else 4
    rows = [[str(path), f"{a:.2f}", f"{b:.{digits}f}"] for path, a, b in zip(paths, nats, bits, strict=True)]
    if len(paths) > 1:
        rows.append(["mean", f"{sum(nats) / len(nats):.2f}", f"{sum(bits) / len(bits):.{digits}f}"])
    print_table(["image", "nats", "bits of codes" if learned else "bits/dim"], rows)
    if map is not None:
        print(f"{map}: surprise per pixel, dark is 0 and the lightest {greatest:.2f} nats")


def _write_maps(
    map: Path, paths: list[Path], pixels: Tensor, surprise: Tensor, scale: int | None, chunks: dict[str, str]
) -> None:
    import torch

    from ..pictures import automatic_scale, enlarge, heat, stretch, write_each, write_grid

    height, width = pixels.shape[2:]
    colours = heat(stretch(surprise, height, width), surprise.max().item())
    if map.suffix.lower() == ".png":  # each image beside its map
        pairs = torch.stack([pixels.expand(-1, 3, -1, -1), colours], dim=1).flatten(0, 1)
        write_grid(map, pairs, scale, columns=2 * max(1, round((len(paths) / 2) ** 0.5)), chunks=chunks)
    else:
        write_each(map, [path.stem for path in paths], enlarge(colours, scale or automatic_scale(width)), chunks)
