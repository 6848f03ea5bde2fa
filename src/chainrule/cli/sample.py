"""`chainrule sample`: draw images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    Device,
    Force,
    Label,
    Model,
    Scale,
    Seed,
    Temperature,
    TopK,
    TopP,
    check_file,
    check_folder,
    file_stem,
    free_name,
    labels_for,
    open_model,
    progress,
)  # fmt: skip

WATCH_FRAMES = 150


def sample(
    model: Model,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of images.")] = 16,
    label: Label = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="A .png file, or with --separate a folder.", show_default="samples.png")
    ] = None,
    separate: Annotated[bool, typer.Option("--separate", help="One file per image, not enlarged.")] = False,
    watch: Annotated[Path | None, typer.Option(help="A .gif file of the images as they grow.")] = None,
    scale: Scale = None,
    force: Force = False,
    device: Device = "cpu",
) -> None:
    """Draw images and write them as one picture, or one by one.

    \b
    Examples:
      chainrule sample mnist_gated_pixelcnn
      chainrule sample mnist_gated_pixelcnn -n 64 --seed 7 --out digits.png
      chainrule sample mnist_gated_pixelcnn -n 4 --watch growing.gif
      chainrule sample shapes_gated_pixelcnn --label "red circle,blue square"
      chainrule sample runs/mine -n 100 --separate --out images --temperature 0.9
    """
    if separate:
        out = check_folder(out or free_name(f"{file_stem(Path(model).name)}-samples"), force)
    else:
        out = check_file(out or free_name("samples", ".png"), ".png", force)
    if watch is not None:
        check_file(watch, ".gif", force, "--watch")

    from ..images import grid, to_pil
    from .pictures import automatic_scale, drawn, enlarge, hide, write_gif, write_png

    pipeline = open_model(model, device)
    labels = labels_for(pipeline, label, n)
    _, height, width = pipeline.tokenizer.image_shape
    spec = pipeline.prior.spec
    every = -(-spec.num_codes // WATCH_FRAMES)
    frames = []
    since = time.monotonic()
    with progress("Sampling", n * spec.num_codes, "codes") as done:

        def watching(num_known, images):
            done(n * num_known)
            if watch is not None and num_known % every == 0:
                frames.append(hide(images(), drawn(spec, num_known, height, width)))

        images = pipeline.sample(
            n, labels, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, on_image=watching
        )
    seconds = time.monotonic() - since
    zoom = scale or automatic_scale(width)
    if separate:
        digits = len(str(n - 1))
        for index, picture in enumerate(to_pil(enlarge(images, scale or 1))):
            write_png(out / f"{index:0{digits}d}.png", picture)
    else:
        write_png(out, grid(images, scale=zoom))
    rate = n * spec.num_codes / seconds
    print(f"{out}: {n} {'image' if n == 1 else 'images'} in {seconds:.1f} s ({rate:,.0f} codes/s)")
    if watch is not None:
        write_gif(watch, [grid(each, scale=zoom) for each in [*frames, images]])
        print(f"{watch}: {len(frames) + 1} frames")
