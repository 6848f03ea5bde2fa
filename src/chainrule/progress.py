"""A bar for what takes a while and is not training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(what: str, total: int | None, unit: str, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal; gives a function that takes the number done so far."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f} {unit}/s")

    console = Console(file=sys.stderr)
    if quiet or not console.is_terminal:
        yield lambda done: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), Rate(), TimeRemainingColumn(), TextColumn("left")
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task(what, total=total)
        yield lambda done: bar.update(row, completed=done)
