"""`chainrule train`: from a recipe to a model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Json
from .output import print_json

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe that comes with chainrule, or a file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to replace in the recipe.")]
Out = Annotated[Path | None, typer.Option(help="The folder of the run.", show_default="runs/ and the recipe's name")]
Resume = Annotated[bool, typer.Option(help="Whether to resume a run that is in the folder.")]
Seed = Annotated[int | None, typer.Option(help="The same as training.seed=SEED.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Devices = Annotated[int | None, typer.Option(min=1, help="How many.", show_default="1, or what torchrun started")]
Strategy = Annotated[str, typer.Option(help="auto, ddp, or fsdp, which spreads the weights over processes.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing while training.")]


def train(
    recipe: RecipeName, overrides: Overrides = None, out: Out = None, resume: Resume = True, seed: Seed = None,
    accelerator: Accelerator = "auto", devices: Devices = None, strategy: Strategy = "auto", quiet: Quiet = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Train what a recipe says; the same command resumes a run that was stopped.

    Ctrl-C stops after the current step and saves.  Several processes: torchrun --nproc-per-node 2 -m chainrule train …

    \b
    Examples:
      chainrule train mnist_pixelcnn
      chainrule train mnist_pixelcnn --out runs/small prior.width=32 training.steps=2000
      chainrule train my_recipe.yaml --seed 1 --out runs/mine
      chainrule train shapes_gated_pixelcnn --accelerator cuda
    """
    from ..training import Hardware
    from ..training import train as train_recipe

    overrides = list(overrides or [])
    if seed is not None:
        overrides.append(f"training.seed={seed}")
    hardware = Hardware(accelerator, "auto" if devices is None else devices, strategy=strategy)
    out = out or Path("runs") / Path(recipe).stem
    result = train_recipe(recipe, out, overrides, resume=resume, hardware=hardware, quiet=quiet or json)
    first = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    if first and json:
        print_json({
            "steps": result.steps, "metrics": result.metrics, "model": str(result.folder / "model"),
            "minutes": result.seconds / 60, "interrupted": result.interrupted,
        })  # fmt: skip
    elif first and not result.interrupted:
        metrics = "".join(f", {name} {value:.4g}" for name, value in result.metrics.items())
        print(f"{result.folder / 'model'}: {result.steps} steps in {result.seconds / 60:.1f} minutes{metrics}")
    if result.interrupted:
        if first and quiet:
            print(f"Stopped after step {result.steps}; the same command goes on from here.", file=sys.stderr)
        raise typer.Exit(130)
