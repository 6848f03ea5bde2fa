"""`chainrule sample`: draw images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import progress
from .common import labels_for, open_model, open_tokenizer, read_image, read_texts, seeds_for, size_of
from .complete import write_drawing
from .options import (
    MAX_IMAGES,
    Device,
    Force,
    Label,
    Model,
    Negative,
    NoMetadata,
    Prefix,
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

    from ..decoding import Scorer
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
Out = Annotated[
    Path | None,
    typer.Option(
        help="A .png file of all images, a .npz file of many (arr_0, uint8), or with --separate a folder.",
        show_default="samples.png",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="HxW",
        help="Height and width of larger images, drawn through a window (gpt).",
        show_default="the model's",
    ),
]
Separate = Annotated[bool, typer.Option("--separate", help="One file per image, not enlarged.")]
Watch = Annotated[Path | None, typer.Option(help="A .gif file of the images as they grow.")]


@with_sampling
def sample(
    model: Model, n: Number = None, label: Label = None, text: Text = None, texts: Texts = None,
    negative: Negative = None, *, sampling: dict[str, Any], best: Best = None, best_of: BestOf = 1,
    reranker: RerankerName = None, decoder: DecoderName = None, size: Size = None, upscaler: Upscale = None,
    prefix: Prefix = None, seed: Seed = 0, seeds: Seeds = None, out: Out = None, separate: Separate = False,
    watch: Watch = None, scale: Scale = None, no_metadata: NoMetadata = False, force: Force = False,
    device: Device = "cpu",
) -> None:  # fmt: skip
    """Draw images and write them as one picture, one by one, or as a .npz file; chainrule repeat draws a picture again.

    A .npz file and a folder are written batch by batch: memory does not grow with -n, the same command goes on after
    it was stopped, and under torchrun the processes share the work.

    \b
    Examples:
      chainrule sample mnist_diagonal_bilstm -n 64 --seed 7 --out digits.png --watch growing.gif
      chainrule sample mnist_diagonal_bilstm --seeds 3,17,42 --separate --out three
      chainrule sample shapes_gated_pixelcnn --label "red circle,blue square" --best-of 4
      chainrule sample shapes_parti --text "a red circle" -n 16 --best 4 --reranker shapes_reranker --watch growing.gif
      chainrule sample runs/mine --label 3 --guidance 3 --best-of 4 --reranker runs/classifier
      chainrule sample runs/mine -n 50000 --out samples.npz --temperature 0.9
      chainrule sample runs/text --text "a violin, noto style" --guidance 3 --negative "a drum" --precision bfloat16
      chainrule sample runs/gpt --size 64x128 --out wide.png
      chainrule sample runs/colours --prefix photo.png -n 8
      chainrule sample runs/text --texts prompts.txt --decoder runs/larger --upscaler runs/double
    """
    _check_choice(best, best_of, wanted=bool(label is not None or text or texts), reranker=reranker, watch=watch)
    if out is not None and out.suffix.lower() == ".npz":
        _check_alone(separate=separate, best=best is not None, watch=watch is not None, scale=scale is not None)
    out, files = _outputs(Path(model).name, out, separate, watch, force)

    from ..decoding import Sampling
    from ..drawing import Drawing, Source, open_judges, open_upscalers, to_base64
    from ..larger import at_size
    from ..processes import own_device

    device = own_device(device)
    captions = _captions(text, texts)
    numbers = seeds_for(seed, seeds, n, 16 if texts is None else len(captions))
    captions, n = _repeated(captions, len(numbers)), len(numbers)
    pipeline = open_model(model, device)
    if decoder is not None:
        pipeline = pipeline.with_tokenizer(open_tokenizer(decoder, device))
    if (larger := size_of(size)) is not None:
        pipeline = at_size(pipeline, *larger)
    labels, upscale = labels_for(pipeline, label, n), open_upscalers(upscaler, pipeline, device)
    drawing = Drawing(
        model=Source.of(model), seeds=tuple(numbers), labels=None if labels is None else tuple(labels.tolist()),
        texts=captions and tuple(captions), negative=negative, sampling=Sampling(**sampling), best_of=best_of,
        reranker=Source.of_reranker(reranker) if best_of > 1 and reranker else None,
        prefix=None if prefix is None else to_base64(read_image(prefix, pipeline.tokenizer, resize=True)),
        decoder=decoder and Source.of(decoder), upscalers=tuple(map(Source.of, upscaler or ())), size=larger,
        device=device,
    )  # fmt: skip
    drawing = _in_layout(drawing, pipeline.tokenizer.image_shape[-1], scale, files, captioned=texts is not None)
    judge = None if reranker is None else open_judges(reranker, pipeline, device)
    if judge is not None:
        judge(drawing.only(0))  # a model that does not judge by labels is refused at once
    work = Work(pipeline, drawing, judge, upscale, metadata=not no_metadata)
    work.files(out, force) if files and best is None and watch is None else work.picture(out, best, watch, scale)


@dataclass
class Work:
    """What is to be drawn, with all models open."""

    pipeline: Pipeline
    drawing: Drawing
    judge: Callable[[Drawing], Scorer] | None
    upscale: Callable[[Tensor], Tensor]
    metadata: bool

    @property
    def num_codes(self) -> int:
        """Codes of one image, of all its candidates."""
        return self.drawing.best_of * self.pipeline.prior.spec.length

    def files(self, out: Path, force: bool) -> None:
        """Writes a .npz file or a folder, batch by batch."""
        from ..bulk import Npz, Pictures, draw_many
        from ..processes import process

        n, since, codes = len(self.drawing.seeds), time.monotonic(), 0
        target = Npz(out) if out.suffix.lower() == ".npz" else Pictures(out, n, self.metadata)
        rank, world = process()
        with progress("Sampling", n * self.num_codes // world, "codes", quiet=rank > 0) as done:

            def on_codes(count: int) -> None:
                nonlocal codes
                done(codes := codes + count)

            judge = self.judge if self.drawing.best_of > 1 else None
            drawn = draw_many(
                self.drawing, self.pipeline, target, judge=judge, upscale=self.upscale, force=force, on_codes=on_codes
            )
        if rank == 0:
            before = f", {n - drawn:,} of them drawn before" if world == 1 and drawn < n else ""
            _say(out, n, n, codes, since, before)

    def picture(self, out: Path, best: int | None, watch: Path | None, scale: int | None) -> None:
        """Writes one picture of all images, or of the best; or a folder of those."""
        import torch

        from ..bulk import batches

        drawing, since = self.drawing, time.monotonic()
        n, images = len(drawing.seeds), []
        groups = None if best is None else images_per_wish(drawing.texts or drawing.labels, best)
        film = Film(self.pipeline, n, watch is not None)
        with progress("Sampling", n * self.num_codes, "codes") as done:
            for numbers in batches(n):
                part = drawing.only(*numbers)
                judge = self.judge(part) if self.judge is not None and drawing.best_of > 1 else None
                images.append(part.draw(self.pipeline, judge, film.watching(len(numbers), done)))
        images = torch.cat(images)
        film.frames.append(images)
        if groups is not None:
            judge = self.judge(drawing) if self.judge else self.pipeline.judge(drawing.labels, drawing.texts)
            scores = judge(images).tolist()
            kept = [i for group in groups for i in sorted(group, key=lambda i: -scores[i])[:best]]
            images, film.frames = images[kept], [frame[kept] for frame in film.frames]
            drawing = drawing.only(*kept)
        _write(out, drawing, images, self.upscale, self.metadata)
        _say(out, len(images), n, n * self.num_codes, since)
        if watch is not None:
            film.write(watch, scale)


def _say(out: Path, count: int, of: int, codes: int, since: float, before: str = "") -> None:
    """The line at the end."""
    seconds = time.monotonic() - since
    images = f"{count:,} image{'s' * (count > 1)}" + (f" of {of:,}" if of > count else "")
    print(f"{out}: {images} in {seconds:.1f} s ({codes / seconds:,.0f} codes/s{before})")


def _check_alone(**others: bool) -> None:
    """Raises ValueError where options do not go with a .npz file."""
    if wrong := [name for name, given in others.items() if given]:
        raise ValueError(f"--{wrong[0]} does not go with a .npz file, which is written batch by batch; leave it out")


def _outputs(model: str, out: Path | None, separate: bool, watch: Path | None, force: bool) -> tuple[Path, bool]:
    """Where to write, and whether it is batch by batch; raises ValueError where that cannot be."""
    from ..bulk import Npz, Pictures

    stack = out is not None and out.suffix.lower() == ".npz"
    if separate:
        out = out or free_name(f"{file_stem(model)}-samples")
        if not Pictures(out, 1).is_begun():
            check_folder(out, force)
    elif stack and not Npz(out).is_begun():
        check_file(out, ".npz", force)
    elif not stack:
        out = check_file(out or free_name("samples", ".png"), ".png", force)
    if watch is not None:
        check_file(watch, ".gif", force, "--watch")
    return out, stack or separate


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
        from ..pipeline import BATCH

        if wanted and count > BATCH:
            raise ValueError(f"--watch shows at most {BATCH} images, got {count}")
        self.spec, self.wanted, self.num_drawn = pipeline.prior.spec, wanted, 0
        self.size, self.length = pipeline.tokenizer.image_shape[1:], pipeline.prior.spec.length
        self.frames: list[Tensor] = []

    def watching(self, count: int, done: Callable[[int], None]) -> Callable[[int, Callable[[], Tensor]], None]:
        """The `on_image` for `count` images; `done` receives the number of codes drawn so far, of all images."""
        from ..pictures import drawn, hide

        every = -(-self.length // WATCH_FRAMES)

        def on_image(num_known: int, images: Callable[[], Tensor]) -> None:
            self.num_drawn += count
            done(self.num_drawn)
            if self.wanted and num_known % every == 0:
                self.frames.append(hide(images(), drawn(self.spec, num_known, *self.size)))

        return on_image

    def write(self, path: Path, scale: int | None) -> None:
        from ..images import grid
        from ..pictures import automatic_scale, write_gif

        zoom = scale or automatic_scale(self.size[1])
        write_gif(path, [grid(frame, scale=zoom) for frame in self.frames])
        print(f"{path}: {len(self.frames)} frames")


def _write(out: Path, drawing: Drawing, images: Tensor, upscale: Callable[[Tensor], Tensor], metadata: bool) -> None:
    """Writes a picture of all images, or a folder of them."""
    if drawing.layout.kind == "single":
        from ..bulk import Pictures

        Pictures(out, len(images), metadata).write(range(len(images)), drawing, upscale(images))
    else:
        write_drawing(out, drawing, images, upscale, metadata)
