"""`chainrule vary`: draw a share of an image's codes again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .common import labels_for, open_model, read_image, seeds_for
from .complete import Particles, draw_with_progress, layout_of, write_drawing
from .options import (
    MAX_IMAGES,
    Device,
    Force,
    Label,
    Model,
    Negative,
    NoMetadata,
    Png,
    Resize,
    Scale,
    Seed,
    Seeds,
    Text,
    Upscale,
    with_sampling,
)
from .output import check_file, free_name

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to vary.")]
Strength = Annotated[float, typer.Option(help="The share of codes that is drawn again, above 0 and at most 1.")]
Number = Annotated[
    int | None, typer.Option("-n", min=1, max=MAX_IMAGES, help="Number of variations.", show_default="6")
]


@with_sampling
def vary(
    model: Model, image: Image, strength: Strength = 0.4, n: Number = None, particles: Particles = 1,
    label: Label = None, text: Text = None, negative: Negative = None, *, sampling: dict[str, Any],
    upscaler: Upscale = None, seed: Seed = 0, seeds: Seeds = None, resize: Resize = False, out: Png = None,
    scale: Scale = None, no_metadata: NoMetadata = False, force: Force = False, device: Device = "cpu",
) -> None:  # fmt: skip
    """Draw variations of an image: a picture of the image, of what is kept, and of the variations.

    \b
    Examples:
      chainrule vary emoji_parti frog.png --text "frog, twemoji style"
      chainrule vary emoji_parti frog.png --strength 0.7 -n 3 --particles 16 --out frogs.png
    """
    out = check_file(out or free_name("variations", ".png"), ".png", force)

    from ..decoding import Sampling
    from ..drawing import Drawing, Known, Source, open_upscalers
    from ..variation import kept

    numbers = seeds_for(seed, seeds, n, 6)
    n, pipeline = len(numbers), open_model(model, device)
    labels, enlarged = labels_for(pipeline, label, n), open_upscalers(upscaler, pipeline, device)
    mask = kept(pipeline, strength)
    drawing = Drawing(
        model=Source.of(model), seeds=tuple(numbers), labels=None if labels is None else tuple(labels.tolist()),
        texts=None if text is None else (text,) * n, negative=negative, sampling=Sampling(**sampling),
        known=Known.of(read_image(image, pipeline.tokenizer, resize), mask, particles, whole=True),
        upscalers=tuple(map(Source.of, upscaler or ())), device=device,
        layout=layout_of(n, mask.shape[1], scale, upscaler),
    )  # fmt: skip
    variations = draw_with_progress("Varying", drawing, pipeline)
    write_drawing(out, drawing, variations, enlarged, not no_metadata)
    print(f"{out}: the image, what is kept, {n} {'variation' if n == 1 else 'variations'}")
