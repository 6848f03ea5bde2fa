"""`chainrule fit`: from a folder of pictures to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="A folder, zip or tar file of pictures, perhaps with captions.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to replace in the recipes.")]
Minutes = Annotated[float, typer.Option(help="Time for everything.")]
Out = Annotated[Path, typer.Option(help="The folder of the recipes, the runs and the model.")]
System = Annotated[
    str | None, typer.Option(help="Such as vqgan, rq_transformer or parti.", show_default="by the captions")
]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Stop after the plan; nothing is written.")]


def fit(
    folder: Folder, overrides: Overrides = None, minutes: Minutes = 60, out: Out = Path("mine"), system: System = None,
    plan: PlanOnly = False,
) -> None:  # fmt: skip
    """Look at a folder of pictures, plan, and train a tokenizer and a prior; the same command resumes.

    \b
    Examples:
      chainrule fit pictures/ --plan
      chainrule fit pictures/ --minutes 60 --out mine
      chainrule fit pictures/ --system vqgan data.size=32 prior.width=64
    """
    from ..fitting import fit as fit_folder

    model = fit_folder(folder, minutes, out, system=system, overrides=overrides or (), plan_only=plan)
    if model is not None:
        print(f"{model.parent / 'report.html'}: the report")
        print(f"{model}: the model; try chainrule sample {model}")
