"""`chainrule plan`: what a training will cost."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json
from .output import print_json, print_table
from .train import Overrides

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, or with --preset a tokenizer or a prior.")]
Preset = Annotated[str | None, typer.Option(help="A published size, see chainrule presets.")]
Devices = Annotated[int, typer.Option(min=1, help="How many devices share each batch.")]
Memory = Annotated[str | None, typer.Option(help="Of each device, such as 80GB.", show_default="that of this machine")]
Rate = Annotated[
    str | None, typer.Option(help="Peak rate of each device, such as 300TFLOPS.", show_default="steps are timed here")
]


def plan(
    recipe: Name, overrides: Overrides = None, preset: Preset = None, devices: Devices = 1, memory: Memory = None,
    rate: Rate = None, json: Json = False,
) -> None:  # fmt: skip
    """Say what a training will cost: memory, operations, time; and what to change where it does not fit.

    \b
    Examples:
      chainrule plan shapes_parti
      chainrule plan shapes_parti --memory 80GB --rate 300TFLOPS
      chainrule plan parti --preset 20b --devices 64 --memory 80GB --rate 300TFLOPS training.batch_size=512
    """
    from ..planning import Machine
    from ..planning import plan as make_plan

    if (memory is None) != (rate is None):
        raise ValueError("--memory and --rate describe a device: give both, or neither for this machine")
    if rate is None and devices > 1:
        raise ValueError("--devices would be ignored: only one device is measured here; give --memory and --rate")
    machine = None if memory is None or rate is None else Machine.described(devices, memory, rate)
    found = make_plan(recipe, overrides or (), preset=preset, machine=machine)
    print_json(found.plain()) if json else print_table(["what", "how much"], found.lines())
