"""`chainrule demo`: pictures by the bundled models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..progress import progress
from .complete import kept
from .options import Force, NoMetadata, Seed
from .output import check_folder, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from ..drawing import Drawing
    from ..pipeline import Pipeline

NUM_SAMPLES, NUM_DIGITS = 16, 8
GUIDANCE = 2.0
"""Of models that were trained with labels or captions dropped."""
EMOJI = (
    "sparkling heart, fluent style", "crying face, twemoji style", "flag: Switzerland, noto style",
    "tropical fish, openmoji style", "frog, twemoji style", "broccoli, openmoji style", "umbrella, openmoji style",
    "crown, noto style", "four leaf clover, noto style", "pig, twemoji style", "volleyball, noto style",
    "smiling face with sunglasses, openmoji style", "flag: Ireland, fluent style", "cowboy hat face, twemoji style",
    "yellow square, noto style", "brown heart, twemoji style",
)  # fmt: skip
"""Captions of the split test of emoji, each of a thing that the split train has in other styles."""


def demo(
    out: Annotated[Path, typer.Option(help="A folder.")] = Path("demo"), seed: Seed = 0,
    no_metadata: NoMetadata = False, force: Force = False,
) -> None:  # fmt: skip
    """Draw with every bundled model: samples, from captions too, completions of half-hidden digits, maps of surprise.

    \b
    Examples:
      chainrule demo
      chainrule demo --out pictures --seed 7
    """
    check_folder(out, force)

    import torch

    from ..drawing import Derived, Origin, text_chunks
    from ..images import grid
    from ..pictures import enlarge, heat, write_gif, write_png
    from ..saving.hub import models as names
    from ..zoo import kind_of, load

    since = time.monotonic()
    pipelines = {name: load(name) for name in names() if kind_of(name) == "pipeline"}
    if not pipelines:
        raise ValueError("no models are bundled with this installation; train one with: chainrule train RECIPE")
    rows = []

    def keep(name: str, picture: object, what: str, origin: Origin) -> None:
        write_png(out / name, picture, text_chunks(None if no_metadata else origin))
        rows.append([str(out / name), what])

    for name, pipeline in pipelines.items():
        frames: list[Tensor] = []
        drawing, images = _sample(name, pipeline, seed, frames)
        picture = drawing.picture(images, lambda images: images)
        keep(f"{name}-samples.png", picture, f"{NUM_SAMPLES} samples of {name}", drawing)
        scale = drawing.layout.scale
        write_gif(out / f"{name}-growing.gif", [grid(frame[:4], columns=4, scale=scale) for frame in frames])
        rows.append([str(out / f"{name}-growing.gif"), "four of them as they grow"])
    drawers = [name for name, pipeline in pipelines.items() if pipeline.tokenizer.image_shape == (1, 28, 28)]
    if drawers:
        name = min(drawers, key=lambda name: _nats(pipelines[name]))
        best = pipelines[name]
        digits, origin = _digits(best, seed)
        for half, particles in (("top", 1), ("bottom", 16)):
            completions = _completions(best, digits, half, particles, seed)
            particle = f" with {particles} particles" if particles > 1 else ""
            what = f"{origin}: the digit, its {half} half, four completions{particle}"
            picture = grid(completions, columns=NUM_DIGITS, scale=4)
            keep(f"completions-{half}.png", picture, what, Derived.of("completions of several images", name))
        surprise = best.surprise(digits)
        maps = torch.cat([digits.expand(-1, 3, -1, -1), heat(surprise, surprise.max().item())])
        picture = grid(enlarge(maps, 4), columns=NUM_DIGITS)
        what = "where the model is surprised (light: more nats in a pixel)"
        keep("surprise.png", picture, what, Derived.of("a map of surprise", name))
    print_table(["file", "what it shows"], rows)
    print(f"{len(rows)} files in {time.monotonic() - since:.0f} s")


def _sample(name: str, pipeline: Pipeline, seed: int, frames: list[Tensor]) -> tuple[Drawing, Tensor]:
    """Samples as they grow, and at the end."""
    from ..decoding import Sampling, image_seeds
    from ..drawing import Drawing, Layout, Source
    from ..pictures import automatic_scale

    captions = _captions(pipeline)
    total, classes = pipeline.prior.spec.length, pipeline.num_classes
    with progress(f"Sampling {name}", NUM_SAMPLES * total, "codes") as done:

        def watching(num_known, images):
            done(NUM_SAMPLES * num_known)
            if num_known % max(1, total // 50) == 0:
                frames.append(images())

        guidance = GUIDANCE if captions or pipeline.prior.conditions.null_label else 1.0
        scale = automatic_scale(pipeline.tokenizer.image_shape[-1])
        drawing = Drawing(
            model=Source.of(name), seeds=tuple(image_seeds(seed, NUM_SAMPLES)),
            labels=tuple(index % classes for index in range(NUM_SAMPLES)) if classes else None,
            texts=None if captions is None else tuple(captions), sampling=Sampling(guidance=guidance),
            layout=Layout(kind="grid" if captions is None else "captions", scale=scale),
        )  # fmt: skip
        images = drawing.draw(pipeline, on_image=watching)
    frames.append(images)
    return drawing, images


def _completions(pipeline: Pipeline, digits: Tensor, half: str, particles: int, seed: int) -> Tensor:
    """Rows of digits, of their known halves, and of four completions each: uint8 (6 N, 1, 28, 28)."""
    import torch

    from ..pictures import hide

    known, columns = kept(half, 28, 28), []
    with progress(f"Completing the {half}", len(digits), "digits") as done:
        for index, digit in enumerate(digits):
            completions = pipeline.complete(digit, known, n=4, particles=particles, seed=seed)
            columns.append(torch.cat([digit[None], hide(digit[None], known), completions]))
            done(index + 1)
    return torch.stack(columns, dim=1).flatten(0, 1)


def _captions(pipeline: Pipeline) -> list[str] | None:
    """Captions for a model that was trained on shapes or emoji, of combinations that it has not seen."""
    from ..data import shapes

    source = ((pipeline.card.get("recipe") or {}).get("data") or {}).get("source")
    if pipeline.text_tokenizer is None or source not in ("shapes", "emoji"):
        return None
    if source == "emoji":
        return list(EMOJI[:NUM_SAMPLES])
    scenes = (shapes.scene(index, "heldout") for index in range(1000))
    return [shapes.caption(scene) for scene in scenes if len(scene.objects) <= 2][:NUM_SAMPLES]


def _nats(pipeline: Pipeline) -> float:
    """The test likelihood on a model's card."""
    return pipeline.card.get("figures", {}).get("nats", {}).get("value", float("inf"))


def _digits(pipeline: Pipeline, seed: int) -> tuple[Tensor, str]:
    """Binary test digits, or where MNIST cannot be had, digits drawn by the model."""
    import torch

    from ..data import DataConfig, binarize, load

    try:
        images = load(DataConfig("ylecun/mnist", split="test")).batch(torch.arange(NUM_DIGITS)).images
    except (ValueError, OSError):
        return pipeline.sample(NUM_DIGITS, seed=seed + 1), "digits drawn by the model (MNIST is out of reach)"
    return binarize(images, "sample", torch.Generator().manual_seed(seed)), "test digits"
