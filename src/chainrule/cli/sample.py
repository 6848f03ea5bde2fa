"""`chainrule sample`: draw images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..progress import progress
from .common import (
    Device,
    Force,
    Guidance,
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
)  # fmt: skip

WATCH_FRAMES = 150


def sample(
    model: Model,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of images.")] = 16,
    label: Label = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = 1.0,
    best_of: Annotated[
        int, typer.Option(min=1, help="Draw as many per image, keep the one whose label the model is surest of.")
    ] = 1,
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
      chainrule sample mnist_diagonal_bilstm
      chainrule sample mnist_diagonal_bilstm -n 64 --seed 7 --out digits.png
      chainrule sample mnist_diagonal_bilstm -n 4 --watch growing.gif
      chainrule sample shapes_gated_pixelcnn --label "red circle,blue square"
      chainrule sample shapes_gated_pixelcnn --label "red circle" --best-of 4
      chainrule sample runs/mine --label 3 --guidance 3
      chainrule sample runs/mine -n 100 --separate --out images --temperature 0.9
    """
    if separate:
        out = check_folder(out or free_name(f"{file_stem(Path(model).name)}-samples"), force)
    else:
        out = check_file(out or free_name("samples", ".png"), ".png", force)
    if watch is not None:
        check_file(watch, ".gif", force, "--watch")
    if best_of > 1 and label is None:
        raise ValueError("--best-of keeps the images whose label the model is surest of: give --label")
    if best_of > 1 and watch is not None:
        raise ValueError("--watch would show images that --best-of then rejects; leave one of them out")

    import torch

    from ..images import grid, to_pil
    from .pictures import automatic_scale, drawn, enlarge, hide, write_gif, write_png

    pipeline = open_model(model, device)
    labels = labels_for(pipeline, label, n)
    _, height, width = pipeline.tokenizer.image_shape
    spec = pipeline.prior.spec
    every = -(-spec.num_codes // WATCH_FRAMES)
    frames, num_drawn, scorer = [], 0, None
    if best_of > 1:

        def scorer(images):
            return pipeline.classify(images).cpu()[torch.arange(n), torch.tensor(labels)]

    since = time.monotonic()
    with progress("Sampling", n * best_of * spec.num_codes, "codes") as done:

        def watching(num_known, images):
            nonlocal num_drawn
            num_drawn += n
            done(num_drawn)
            if watch is not None and num_known % every == 0:
                frames.append(hide(images(), drawn(spec, num_known, height, width)))

        images = pipeline.sample(
            n, labels, temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance, best_of=best_of,
            scorer=scorer, seed=seed, on_image=watching,
        )  # fmt: skip
    seconds = time.monotonic() - since
    zoom = scale or automatic_scale(width)
    if separate:
        digits = len(str(n - 1))
        for index, picture in enumerate(to_pil(enlarge(images, scale or 1))):
            write_png(out / f"{index:0{digits}d}.png", picture)
    else:
        write_png(out, grid(images, scale=zoom))
    rate = n * best_of * spec.num_codes / seconds
    print(f"{out}: {n} {'image' if n == 1 else 'images'} in {seconds:.1f} s ({rate:,.0f} codes/s)")
    if watch is not None:
        write_gif(watch, [grid(each, scale=zoom) for each in [*frames, images]])
        print(f"{watch}: {len(frames) + 1} frames")
