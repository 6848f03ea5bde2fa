"""`chainrule timeline`: the eight systems on the same images, measured, on one page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="The folder of the page, the models and the figures.")]
Data = Annotated[str | None, typer.Option(help="Train all systems on these images: a folder or a hub data set.")]
Quick = Annotated[bool, typer.Option("--quick", help="Train all systems at a tiny scale, in about 20 minutes.")]
Size = Annotated[
    int | None, typer.Option(help="Height and width of the images; models of pixels take half.", show_default="32")
]
Effort = Annotated[float, typer.Option(help="Factor of all training steps.")]
System = Annotated[list[str] | None, typer.Option(help="Only this system, such as vqgan; may be repeated.")]


def timeline(
    out: Out = Path("timeline"), data: Data = None, quick: Quick = False, size: Size = None, effort: Effort = 1.0,
    system: System = None,
) -> None:  # fmt: skip
    """Measure PixelRNN to Parti on the same images, and write one page that needs no network.

    Without options, the bundled models of emoji are measured and what has none is trained, which takes hours.  With
    --data, all systems are trained on your images.  The same command resumes what was stopped.

    \b
    Examples:
      chainrule timeline --quick
      chainrule timeline --data pictures/ --effort 5 --out mine
      chainrule timeline --quick --system vqgan --system rq_transformer
    """
    from ..timeline import timeline as measure_all

    since = time.monotonic()
    page = measure_all(out, data, quick=quick, size=size, effort=effort, systems=system or ())
    print(f"{page}: the page, in {(time.monotonic() - since) / 60:.1f} minutes")
