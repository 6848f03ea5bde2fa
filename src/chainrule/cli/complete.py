"""`chainrule complete`: draw the unknown part of an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import progress
from .common import labels_for, open_model, read_image, seeds_for
from .options import (
    MAX_IMAGES,
    Device,
    Force,
    Json,
    Label,
    Model,
    Negative,
    NoMetadata,
    Png,
    Prefix,
    Resize,
    Scale,
    Seed,
    Seeds,
    Text,
    Upscale,
    with_sampling,
)
from .output import check_file, free_name, print_json, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from ..drawing import Drawing, Layout
    from ..pipeline import Pipeline

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to complete.")]
Mask = Annotated[Path | None, typer.Option(help="An image of the same size: its white pixels are kept.")]
Keep = Annotated[
    str | None, typer.Option(help="Keep a half (top, bottom, left, right) or a box x0,y0,x1,y1 (without x1, y1).")
]
Number = Annotated[
    int | None, typer.Option("-n", min=1, max=MAX_IMAGES, help="Number of completions.", show_default="6")
]
Particles = Annotated[
    int, typer.Option(min=1, help="Candidates per completion, to agree with what is kept further below.")
]
Paste = Annotated[
    bool, typer.Option("--paste", help="Keep known pixels exactly, not as the model's tokenizer sees them.")
]


@with_sampling
def complete(
    model: Model, image: Image, mask: Mask = None, keep: Keep = None, n: Number = None, particles: Particles = 1,
    label: Label = None, text: Text = None, negative: Negative = None, *, sampling: dict[str, Any],
    prefix: Prefix = None, paste: Paste = False, upscaler: Upscale = None, seed: Seed = 0, seeds: Seeds = None,
    resize: Resize = False, out: Png = None, scale: Scale = None, no_metadata: NoMetadata = False, force: Force = False,
    json: Json = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Complete an image: a picture of the image, of what is kept, and of completions.

    The table gives log p of each whole completion in nats; the largest is the most probable.

    \b
    Examples:
      chainrule complete mnist_diagonal_bilstm digit.png --keep top
      chainrule complete mnist_diagonal_bilstm digit.png --keep bottom --particles 16
      chainrule complete mnist_diagonal_bilstm digit.png --keep 0,0,28,10 -n 3 --out three.png
      chainrule complete mnist_diagonal_bilstm digit.png --mask known.png --json
      chainrule complete runs/mine photo.png --keep left --label 3 --guidance 3 --paste
      chainrule complete runs/text half.png --keep left --text "a violin, noto style" --guidance 3
      chainrule complete runs/colours photo.png --keep left --prefix photo.png
    """
    if (mask is None) == (keep is None):
        raise ValueError("say what to keep, by --mask or by --keep" + ("" if mask is None else ", not by both"))
    out = check_file(out or free_name("completions", ".png"), ".png", force)

    from ..data import load_mask
    from ..decoding import Sampling
    from ..drawing import Drawing, Known, Source, open_upscalers, to_base64

    numbers = seeds_for(seed, seeds, n, 6)
    n, pipeline = len(numbers), open_model(model, device)
    labels = labels_for(pipeline, label, n)
    known_image = read_image(image, pipeline.tokenizer, resize)
    _, height, width = pipeline.tokenizer.image_shape
    enlarged = open_upscalers(upscaler, pipeline, device)
    known = load_mask(mask, height, width) if mask is not None else kept(keep, height, width)
    whole = None if prefix is None else read_image(prefix, pipeline.tokenizer, resize=True)
    drawing = Drawing(
        model=Source.of(model), seeds=tuple(numbers), labels=None if labels is None else tuple(labels.tolist()),
        texts=None if text is None else (text,) * n, negative=negative, sampling=Sampling(**sampling),
        known=Known.of(known_image, known, particles, paste), upscalers=tuple(map(Source.of, upscaler or ())),
        prefix=None if whole is None else to_base64(whole), layout=layout_of(n, width, scale, upscaler), device=device,
    )  # fmt: skip
    completions = draw_with_progress("Completing", drawing, pipeline)
    nats = pipeline.log_prob(completions, labels, text=text, prefix=whole).tolist()
    write_drawing(out, drawing, completions, enlarged, not no_metadata)
    if json:
        print_json({"out": str(out), "completions": [{"log_prob": value} for value in nats]})
        return
    print_table(["completion", "log p (nats)"], [[str(i + 1), f"{value:.2f}"] for i, value in enumerate(nats)])
    print(f"{out}: the image, what is kept, {n} {'completion' if n == 1 else 'completions'}")


def layout_of(n: int, width: int, scale: int | None, upscalers: list[str] | None) -> Layout:
    """A picture of an image, of what is kept, and of n images that go with it, in one row if they are few."""
    from ..drawing import Layout
    from ..pictures import automatic_scale

    scale = scale or automatic_scale(width << len(upscalers or ()))
    return Layout(kind="completions", scale=scale, columns=n + 2 if n <= 8 else None)


def draw_with_progress(title: str, drawing: Drawing, pipeline: Pipeline) -> Tensor:
    """Draws all images of a drawing under a bar, uint8 (n, C, H, W)."""
    n = len(drawing.seeds)
    total = n * pipeline.prior.spec.length
    with progress(title, total, "codes") as done:
        images = drawing.draw(pipeline, on_image=lambda num_known, _: done(n * num_known))
        done(total)
    return images


def write_drawing(
    out: Path, drawing: Drawing, images: Tensor, enlarged: Callable[[Tensor], Tensor], metadata: bool
) -> None:  # fmt: skip
    """Writes the picture of a drawing, which says how it was drawn where `metadata` is true."""
    from ..drawing import text_chunks
    from ..pictures import write_png

    write_png(out, drawing.picture(images, enlarged), text_chunks(drawing if metadata else None))


def kept(text: str, height: int, width: int) -> Tensor:
    """The option --keep as bool (height, width)."""
    import torch

    halves = {
        "top": (0, 0, width, height // 2),
        "bottom": (0, height // 2, width, height),
        "left": (0, 0, width // 2, height),
        "right": (width // 2, 0, width, height),
    }
    try:
        x0, y0, x1, y1 = halves[text] if text in halves else map(int, text.split(","))
    except ValueError:
        raise ValueError(f"--keep must be top, bottom, left, right or x0,y0,x1,y1 in pixels, got {text!r}") from None
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"the box {text} must lie inside the image, with 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}"
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask
