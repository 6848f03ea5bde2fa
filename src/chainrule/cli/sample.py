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
    Negative,
    Precision,
    Scale,
    Seed,
    Temperature,
    Text,
    TopK,
    TopP,
    Upscalers,
    check_file,
    check_folder,
    file_stem,
    free_name,
    labels_for,
    open_model,
    open_tokenizer,
    open_upscalers,
    read_texts,
)  # fmt: skip

WATCH_FRAMES = 150


def sample(
    model: Model,
    n: Annotated[
        int | None,
        typer.Option("-n", min=1, help="Number of images.", show_default="16, with --texts one per text"),
    ] = None,
    label: Label = None,
    text: Text = None,
    texts: Annotated[
        Path | None, typer.Option(help="A file of texts, one per line; captions are drawn under the images.")
    ] = None,
    negative: Negative = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    guidance: Guidance = 1.0,
    precision: Precision = "float32",
    best: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of the -n images of each text or label keep as many, those the model, or --reranker, is surest of.",
        ),
    ] = None,
    best_of: Annotated[int, typer.Option(min=1, help="Draw as many for each of the -n images, keep the best.")] = 1,
    reranker: Annotated[
        str | None,
        typer.Option(
            metavar="SCORER",
            help="For --best or --best-of: a trained reranker, or a public CLIP of the hub, that chooses by the text; "
            "or a classifier, that chooses by the label.",
        ),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A tokenizer whose decoder was trained further on the model's codes."),
    ] = None,
    upscaler: Upscalers = None,
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
      chainrule sample runs/text --text "a violin, noto style" -n 16 --best 4 --guidance 3 --negative "a drum"
      chainrule sample shapes_parti --text "a red circle" -n 16 --best 4 --reranker shapes_reranker --watch growing.gif
      chainrule sample runs/mine --label 3 --best-of 4 --reranker runs/classifier
      chainrule sample runs/text --texts prompts.txt --guidance 3 --precision bfloat16
      chainrule sample runs/mine -n 100 --separate --out images --temperature 0.9
      chainrule sample runs/text --text "a violin, noto style" --decoder runs/larger --upscaler runs/double
    """
    if separate:
        out = check_folder(out or free_name(f"{file_stem(Path(model).name)}-samples"), force)
    else:
        out = check_file(out or free_name("samples", ".png"), ".png", force)
    if watch is not None:
        check_file(watch, ".gif", force, "--watch")
    if text is not None and texts is not None:
        raise ValueError("--text and --texts exclude each other: leave one of them out")
    if best is not None and best_of > 1:
        raise ValueError("--best keeps some of the -n images, --best-of one for each of them: leave one of them out")
    choosing = best is not None or best_of > 1
    if choosing and label is None and not text and texts is None:
        raise ValueError("the images whose label or text the model is surest of are to be kept: give --label, --text")
    if reranker is not None and not choosing:
        raise ValueError(
            "--reranker would be ignored: it chooses among images; say how many to keep, as -n 16 --best 4"
        )
    if best_of > 1 and watch is not None:
        raise ValueError("--watch would show images that --best-of then rejects; leave one of them out")

    import torch

    from ..images import grid, to_pil
    from ..scorers import load_scorer
    from .pictures import automatic_scale, captioned, drawn, enlarge, hide, write_gif, write_png

    captions = [text] if text is not None else None
    if texts is not None:
        captions = read_texts(texts)
    n = n or (16 if texts is None else len(captions))
    if captions is not None:
        if len(captions) > n:
            raise ValueError(f"{len(captions)} texts are too many for {n} images")
        captions = [captions[index % len(captions)] for index in range(n)]
    pipeline = open_model(model, device)
    if decoder is not None:
        pipeline = pipeline.with_tokenizer(open_tokenizer(decoder, device))
    labels = labels_for(pipeline, label, n)
    channels, height, width = pipeline.tokenizer.image_shape
    enlarged = open_upscalers(upscaler, channels, device)
    spec = pipeline.prior.spec
    every = -(-spec.length // WATCH_FRAMES)
    groups = images_per_wish(captions or labels, best) if best is not None else []
    frames, num_drawn, judge = [], 0, None
    if reranker is not None:
        judges = load_scorer(reranker, device)
        kind, wanted = ("labels", labels) if captions is None else ("texts", captions)
        if not hasattr(judges, f"for_{kind}"):
            raise ValueError(f"the scorer {reranker} does not choose by {kind}")
        judge = getattr(judges, f"for_{kind}")(wanted)
    elif choosing:

        def judge(images):
            if captions is not None:
                return pipeline.agreement(images, captions, labels).cpu()
            return pipeline.classify(images).cpu()[torch.arange(n), torch.tensor(labels)]

    since = time.monotonic()
    with progress("Sampling", n * best_of * spec.length, "codes") as done:

        def watching(num_known, images):
            nonlocal num_drawn
            num_drawn += n
            done(num_drawn)
            if watch is not None and num_known % every == 0:
                frames.append(hide(images(), drawn(spec, num_known, height, width)))

        images = pipeline.sample(
            n, labels, text=captions, temperature=temperature, top_k=top_k, top_p=top_p, precision=precision,
            guidance=guidance, negative=negative, best_of=best_of, scorer=judge if best_of > 1 else None,
            seed=seed, on_image=watching,
        )  # fmt: skip
    if best is not None:
        scores = judge(images).tolist()
        kept = [i for group in groups for i in sorted(group, key=lambda i: -scores[i])[:best]]
        images, frames = images[kept], [frame[kept] for frame in frames]
        captions = [captions[index] for index in kept] if captions is not None else None
    seconds = time.monotonic() - since
    pictures = enlarged(images)
    zoom = scale or automatic_scale(pictures.shape[-1])
    if separate:
        digits = len(str(len(pictures) - 1))
        for index, picture in enumerate(to_pil(enlarge(pictures, scale or 1))):
            write_png(out / f"{index:0{digits}d}.png", picture)
    elif texts is not None:
        write_png(out, captioned(pictures.cpu(), captions, zoom))
    else:
        write_png(out, grid(pictures, scale=zoom))
    rate = n * best_of * spec.length / seconds
    what = "1 image" if len(images) == 1 else f"{len(images)} images"
    print(f"{out}: {what}{f' of {n}' if best is not None else ''} in {seconds:.1f} s ({rate:,.0f} codes/s)")
    if watch is not None:
        zoom = scale or automatic_scale(width)
        write_gif(watch, [grid(each, scale=zoom) for each in [*frames, images]])
        print(f"{watch}: {len(frames) + 1} frames")


def images_per_wish(wishes: list[str] | list[int], best: int) -> list[list[int]]:
    """Numbers of the images of each text or label; raises ValueError where they are fewer than are to be kept."""
    groups = {}
    for index, wish in enumerate(wishes):
        groups.setdefault(wish, []).append(index)
    for wish, group in groups.items():
        if len(group) < best:
            raise ValueError(f"--best {best} is more than the images drawn of {wish!r}, {len(group)}: raise -n")
    return list(groups.values())
