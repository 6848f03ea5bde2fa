"""`chainrule sample`: draw images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import progress
from .common import labels_for, open_model, open_tokenizer, read_texts, seeds_for
from .options import (
    MAX_IMAGES,
    Device,
    Force,
    Label,
    Model,
    Negative,
    NoMetadata,
    Scale,
    Seed,
    Seeds,
    Text,
    Upscale,
    with_sampling,
)
from .output import check_file, check_folder, file_stem, free_name

if TYPE_CHECKING:
    from torch import Tensor

    from ..drawing import Drawing
    from ..pipeline import Pipeline

WATCH_FRAMES = 150

Number = Annotated[
    int | None,
    typer.Option("-n", min=1, max=MAX_IMAGES, help="Number of images.", show_default="16, with --texts one per text"),
]
Texts = Annotated[Path | None, typer.Option(help="A file of texts, one per line; captions are drawn under the images.")]
Best = Annotated[
    int | None,
    typer.Option(
        min=1, help="Of the -n images of each text or label, keep the K best, judged by the model or --reranker.",
        metavar="K",
    ),
]  # fmt: skip
BestOf = Annotated[
    int, typer.Option(min=1, help="Draw K candidates for each image and keep the best one.", metavar="K")
]
RerankerName = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="With --best or --best-of: judges images by their text (a reranker, or a public CLIP such as "
        "openai/clip-vit-base-patch32) or by their label (a classifier).",
    ),
]
DecoderName = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A tokenizer whose decoder was trained further on the model's codes."),
]
Out = Annotated[Path | None, typer.Option(help="A .png file, or with --separate a folder.", show_default="samples.png")]
Separate = Annotated[bool, typer.Option("--separate", help="One file per image, not enlarged.")]
Watch = Annotated[Path | None, typer.Option(help="A .gif file of the images as they grow.")]


@with_sampling
def sample(
    model: Model, n: Number = None, label: Label = None, text: Text = None, texts: Texts = None,
    negative: Negative = None, *, sampling: dict[str, Any], best: Best = None, best_of: BestOf = 1,
    reranker: RerankerName = None, decoder: DecoderName = None, upscaler: Upscale = None, seed: Seed = 0,
    seeds: Seeds = None, out: Out = None, separate: Separate = False, watch: Watch = None, scale: Scale = None,
    no_metadata: NoMetadata = False, force: Force = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Draw images and write them as one picture, or one by one; chainrule repeat draws a picture again.

    \b
    Examples:
      chainrule sample mnist_diagonal_bilstm -n 64 --seed 7 --out digits.png
      chainrule sample mnist_diagonal_bilstm -n 4 --watch growing.gif
      chainrule sample mnist_diagonal_bilstm --seeds 3,17,42 --separate --out three
      chainrule sample shapes_gated_pixelcnn --label "red circle,blue square" --best-of 4
      chainrule sample shapes_parti --text "a red circle" -n 16 --best 4 --reranker shapes_reranker --watch growing.gif
      chainrule sample runs/mine --label 3 --guidance 3 --best-of 4 --reranker runs/classifier
      chainrule sample runs/mine -n 100 --separate --out images --temperature 0.9
      chainrule sample runs/text --text "a violin, noto style" --guidance 3 --negative "a drum" --precision bfloat16
      chainrule sample runs/text --texts prompts.txt --decoder runs/larger --upscaler runs/double
    """
    if separate:
        out = check_folder(out or free_name(f"{file_stem(Path(model).name)}-samples"), force)
    else:
        out = check_file(out or free_name("samples", ".png"), ".png", force)
    if watch is not None:
        check_file(watch, ".gif", force, "--watch")
    _check_choice(best, best_of, wanted=bool(label is not None or text or texts), reranker=reranker, watch=watch)

    from ..decoding import Sampling
    from ..drawing import Drawing, Source, open_judge, open_upscalers

    captions = _captions(text, texts)
    numbers = seeds_for(seed, seeds, n, 16 if texts is None else len(captions))
    captions, n = _repeated(captions, len(numbers)), len(numbers)
    pipeline = open_model(model, device)
    if decoder is not None:
        pipeline = pipeline.with_tokenizer(open_tokenizer(decoder, device))
    labels, enlarged = labels_for(pipeline, label, n), open_upscalers(upscaler, pipeline, device)
    names = None if labels is None else pipeline.labels_by_name(labels.tolist())
    judge = None if reranker is None else open_judge(reranker, captions, names, device)
    drawing = Drawing(
        model=Source.of(model), seeds=tuple(numbers), labels=None if labels is None else tuple(labels.tolist()),
        texts=captions and tuple(captions), negative=negative, sampling=Sampling(**sampling), best_of=best_of,
        reranker=Source.of_reranker(reranker) if best_of > 1 and reranker else None,
        decoder=decoder and Source.of(decoder), upscalers=tuple(map(Source.of, upscaler or ())), device=device,
    )  # fmt: skip
    groups = None if best is None else images_per_wish(captions or drawing.labels, best)
    film, since = Film(pipeline, n, watch is not None), time.monotonic()
    with progress("Sampling", n * best_of * film.length, "codes") as done:
        images = drawing.draw(pipeline, None if best_of == 1 else judge, film.watching(done))
    film.frames.append(images)
    if groups is not None:
        scores = (judge or pipeline.judge(labels, captions))(images).tolist()
        kept = [i for group in groups for i in sorted(group, key=lambda i: -scores[i])[:best]]
        images, film.frames = images[kept], [frame[kept] for frame in film.frames]
        drawing = drawing.only(*kept)
    seconds = time.monotonic() - since
    drawing = _in_layout(drawing, images.shape[-1], scale, separate, captioned=texts is not None)
    _write(out, drawing, images, enlarged, no_metadata)
    count = f"{len(images)} image{'s' * (len(images) > 1)}" + (f" of {n}" if best is not None else "")
    print(f"{out}: {count} in {seconds:.1f} s ({n * best_of * film.length / seconds:,.0f} codes/s)")
    if watch is not None:
        film.write(watch, scale)


def _check_choice(best: int | None, best_of: int, *, wanted: bool, reranker: str | None, watch: Path | None) -> None:
    """Raises ValueError where the options for keeping the best images do not fit each other."""
    if best is not None and best_of > 1:
        raise ValueError("--best keeps some of the -n images, --best-of one for each of them: leave one of them out")
    choosing = best is not None or best_of > 1
    if choosing and not wanted:
        raise ValueError("the best images are those that fit their label or text best: give --label, --text or --texts")
    if reranker is not None and not choosing:
        raise ValueError(
            "--reranker would be ignored: it chooses among images; say how many to keep, as -n 16 --best 4"
        )
    if best_of > 1 and watch is not None:
        raise ValueError("--watch would show images that --best-of then rejects; leave one of them out")


def _captions(text: str | None, texts: Path | None) -> list[str] | None:
    """The text of all images, or those of a file; None if none was given."""
    if text is not None and texts is not None:
        raise ValueError("--text and --texts exclude each other: leave one of them out")
    return [text] if text is not None else None if texts is None else read_texts(texts)


def _repeated(captions: list[str] | None, n: int) -> list[str] | None:
    """One caption per image; raises ValueError where there are more captions than images."""
    if captions is None:
        return None
    if len(captions) > n:
        raise ValueError(f"{len(captions)} texts are too many for {n} images")
    return [captions[index % len(captions)] for index in range(n)]


def _in_layout(drawing: Drawing, width: int, scale: int | None, separate: bool, captioned: bool) -> Drawing:
    """The drawing in a layout for images of a width before they are upscaled."""
    from ..drawing import Layout
    from ..pictures import automatic_scale

    scale = scale or (1 if separate else automatic_scale(width << len(drawing.upscalers)))
    return replace(
        drawing, layout=Layout(kind="single" if separate else "captions" if captioned else "grid", scale=scale)
    )


def images_per_wish(wishes: list[str] | list[int], best: int) -> list[list[int]]:
    """Numbers of the images of each text or label; raises ValueError where they are fewer than are to be kept."""
    groups: dict[str | int, list[int]] = {}
    for index, wish in enumerate(wishes):
        groups.setdefault(wish, []).append(index)
    for wish, group in groups.items():
        if len(group) < best:
            raise ValueError(f"--best {best} is more than the images drawn of {wish!r}, {len(group)}: raise -n")
    return list(groups.values())


class Film:
    """Follows images as they are drawn: counts codes, and keeps frames if they are wanted."""

    def __init__(self, pipeline: Pipeline, count: int, wanted: bool) -> None:
        self.spec, self.count, self.wanted = pipeline.prior.spec, count, wanted
        self.size, self.length = pipeline.tokenizer.image_shape[1:], pipeline.prior.spec.length
        self.frames: list[Tensor] = []

    def watching(self, done: Callable[[int], None]) -> Callable[[int, Callable[[], Tensor]], None]:
        """The `on_image` of `Pipeline.sample`; `done` receives the number of codes drawn so far."""
        from ..pictures import drawn, hide

        every, num_drawn = -(-self.length // WATCH_FRAMES), 0

        def on_image(num_known: int, images: Callable[[], Tensor]) -> None:
            nonlocal num_drawn
            done(num_drawn := num_drawn + self.count)
            if self.wanted and num_known % every == 0:
                self.frames.append(hide(images(), drawn(self.spec, num_known, *self.size)))

        return on_image

    def write(self, path: Path, scale: int | None) -> None:
        from ..images import grid
        from ..pictures import automatic_scale, write_gif

        zoom = scale or automatic_scale(self.size[1])
        write_gif(path, [grid(frame, scale=zoom) for frame in self.frames])
        print(f"{path}: {len(self.frames)} frames")


def _write(out: Path, drawing: Drawing, images: Tensor, upscale: Callable[[Tensor], Tensor], no_metadata: bool) -> None:
    """Writes a picture of all images, or a folder of them."""
    from ..drawing import text_chunks
    from ..pictures import write_png

    files = {out: (drawing, images)}
    if drawing.layout.kind == "single":
        digits = len(str(len(images) - 1))
        each = range(len(images))
        files = {out / f"{i:0{digits}d}.png": (drawing.only(i), images[i : i + 1]) for i in each}
    for path, (one, pixels) in files.items():
        write_png(path, one.picture(pixels, upscale), text_chunks(None if no_metadata else one))
