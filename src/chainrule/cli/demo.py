"""`chainrule demo`: pictures by the bundled models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..progress import progress
from .common import Force, Seed, check_folder, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipeline import Pipeline

NUM_DIGITS = 8


def demo(
    out: Annotated[Path, typer.Option(help="A folder.")] = Path("demo"), seed: Seed = 0, force: Force = False
) -> None:
    """Draw with every bundled model: samples, completions of half-hidden digits, maps of surprise.

    \b
    Examples:
      chainrule demo
      chainrule demo --out pictures --seed 7
    """
    check_folder(out, force)

    import torch

    from ..images import grid
    from ..pipeline import load
    from ..pipeline import models as names
    from .pictures import enlarge, heat, hide, write_gif, write_png

    since = time.monotonic()
    pipelines = {name: load(name) for name in names()}
    if not pipelines:
        raise ValueError("no models are bundled with this installation; train one with: chainrule train RECIPE")
    rows = []

    def keep(name: str, picture: object, what: str) -> None:
        write_png(out / name, picture)
        rows.append([str(out / name), what])

    best, digits, origin = None, None, ""
    for name, pipeline in pipelines.items():
        frames: list[Tensor] = []
        images = _sample(name, pipeline, seed, frames)
        keep(f"{name}-samples.png", grid(images, scale=4), f"16 samples of {name}")
        write_gif(out / f"{name}-growing.gif", [grid(frame[:4], columns=4, scale=4) for frame in frames])
        rows.append([str(out / f"{name}-growing.gif"), "four of them as they grow"])
        if pipeline.tokenizer.image_shape == (1, 28, 28) and _nats(pipeline) <= _nats(best):
            best = pipeline
    if best is not None:
        digits, origin = _digits(best, seed)
        mask = torch.zeros(28, 28, dtype=torch.bool)
        for half, part in (("top", slice(0, 14)), ("bottom", slice(14, 28))):
            mask[:], mask[part] = False, True
            particles = 1 if half == "top" else 16
            with progress(f"Completing the {half}", NUM_DIGITS, "digits") as done:
                columns = []
                for index, digit in enumerate(digits):
                    completions = best.complete(digit, mask, n=4, particles=particles, seed=seed)
                    columns.append(torch.cat([digit[None], hide(digit[None], mask), completions]))
                    done(index + 1)
            by_row = torch.stack(columns, dim=1).flatten(0, 1)
            what = f"{origin}: the digit, its {half} half, four completions" + (
                f" with {particles} particles" if particles > 1 else ""
            )
            keep(f"completions-{half}.png", grid(by_row, columns=NUM_DIGITS, scale=4), what)
        surprise = best.surprise(digits)
        maps = torch.cat([digits.expand(-1, 3, -1, -1), heat(surprise, surprise.max().item())])
        picture = grid(enlarge(maps, 4), columns=NUM_DIGITS)
        keep("surprise.png", picture, "where the model is surprised (light: more nats in a pixel)")
    print_table(["file", "what it shows"], rows)
    print(f"{len(rows)} files in {time.monotonic() - since:.0f} s")


def _sample(name: str, pipeline: Pipeline, seed: int, frames: list[Tensor]) -> Tensor:
    total = pipeline.prior.spec.num_codes
    with progress(f"Sampling {name}", 16 * total, "codes") as done:

        def watching(num_known, images):
            done(16 * num_known)
            if num_known % (total // 50) == 0:
                frames.append(images())

        label = list(range(16)) if pipeline.num_classes >= 16 else None
        if pipeline.num_classes and label is None:
            label = [index % pipeline.num_classes for index in range(16)]
        images = pipeline.sample(16, label, seed=seed, on_image=watching)
    frames.append(images)
    return images


def _nats(pipeline: Pipeline | None) -> float:
    """The test likelihood on a model's card."""
    if pipeline is None:
        return float("inf")
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
