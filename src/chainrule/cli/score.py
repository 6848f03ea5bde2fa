"""`chainrule score`: the likelihood of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..progress import progress
from .common import (
    Device,
    Force,
    Json,
    Label,
    Model,
    Resize,
    Text,
    check_file,
    check_folder,
    labels_for,
    open_model,
    print_json,
    print_table,
    read_image,
)  # fmt: skip

BATCH = 32


def score(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    label: Label = None,
    text: Text = None,
    map: Annotated[
        Path | None,
        typer.Option(help="Write the surprise at each pixel: a .png of all images, or a folder with one file each."),
    ] = None,
    resize: Resize = False,
    binarize: Annotated[
        bool, typer.Option("--binarize", help="Draw black and white pixels by their grey first (needs --seed).")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of --binarize.")] = None,
    scale: Annotated[
        int | None, typer.Option(min=1, help="Zoom of --map.", show_default="about 128 pixels per image")
    ] = None,
    force: Force = False,
    json: Json = False,
    device: Device = "cpu",
) -> None:
    """Score images: -log p in nats and in bits per dimension, less is more probable.

    Pixels are read to the nearest level of the model: a binary model takes 128 and more as on, if --binarize does not
    draw them.  A map is dark where the model expected what it saw, and light where it was surprised.

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
    as_file = map is not None and map.suffix.lower() == ".png"
    if map is not None:
        check_file(map, ".png", force, "--map") if as_file else check_folder(map, force, "--map")

    import torch

    pipeline = open_model(model, device)
    labels = labels_for(pipeline, label, len(images))
    pixels = torch.stack([read_image(path, pipeline, resize) for path in images])
    if binarize:
        from .. import data

        pixels = data.binarize(pixels, "sample", torch.Generator().manual_seed(seed))
    nats, surprises = [], []
    with progress("Scoring", len(images), "images") as done:
        for start in range(0, len(images), BATCH):
            batch = pixels[start : start + BATCH]
            chosen = None if labels is None else labels[start : start + BATCH]
            nats += (-pipeline.log_prob(batch, chosen, text=text)).tolist()
            if map is not None:
                surprises.append(pipeline.surprise(batch, chosen, text=text).cpu())
            done(start + len(batch))
    bits = [pipeline.bits_per_dim(value) for value in nats]
    greatest = 0.0
    if map is not None:
        maps = torch.cat(surprises)
        greatest = maps.max().item()
        _write_maps(map, as_file, images, pixels, maps, greatest, scale)
    if json:
        rows = zip(images, nats, bits, strict=True)
        figures = [{"image": str(path), "nats": a, "bits_per_dim": b} for path, a, b in rows]
        print_json({"images": figures} | ({} if map is None else {"map": str(map), "greatest_surprise": greatest}))
        return
    rows = [[str(path), f"{a:.2f}", f"{b:.4f}"] for path, a, b in zip(images, nats, bits, strict=True)]
    if len(images) > 1:
        rows.append(["mean", f"{sum(nats) / len(nats):.2f}", f"{sum(bits) / len(bits):.4f}"])
    print_table(["image", "nats", "bits/dim"], rows)
    if map is not None:
        print(f"{map}: surprise per pixel, dark is 0 and the lightest {greatest:.2f} nats")


def _write_maps(map, as_file, paths, pixels, maps, greatest, scale) -> None:
    import torch

    from ..images import grid, to_pil
    from .pictures import automatic_scale, enlarge, heat, stretch, unique_stems, write_png

    height, width = pixels.shape[2:]
    scale = scale or automatic_scale(width)
    colours = heat(stretch(maps, height, width), greatest)
    if as_file:  # each image beside its map
        pairs = torch.stack([pixels.expand(-1, 3, -1, -1), colours], dim=1).flatten(0, 1)
        write_png(map, grid(pairs, columns=2 * max(1, round((len(paths) / 2) ** 0.5)), scale=scale))
        return
    stems = unique_stems([path.stem for path in paths])
    for stem, picture in zip(stems, to_pil(enlarge(colours, scale)), strict=True):
        write_png(map / f"{stem}.png", picture)
