"""What a run leaves to read: tables, and a line of progress."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Table:
    """A CSV file that grows by rows, and can be cut back to an earlier length.

    Rows hold no times: a run that was killed and resumed writes the bytes of an unbroken one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, row: dict[str, float]) -> None:
        """Adds a row; the first row names the columns."""
        text = "" if self.size() else ",".join(row) + "\n"
        text += ",".join(repr(value) for value in row.values()) + "\n"
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(text)

    def size(self) -> int:
        """Length in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Removes all after the first `size` bytes."""
        if self.size() > size:
            os.truncate(self.path, size)


class Progress:
    """A bar on a terminal; elsewhere one line whenever there is news.

    Args:
        steps: of the whole run.
        start: steps already taken.
        batch_size: images per step.
        enabled: whether to show anything.
    """

    def __init__(self, steps: int, start: int, batch_size: int, enabled: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(quiet=not enabled)
        self.steps, self.step, self.batch_size = steps, start, batch_size
        self.since, self.since_step = time.monotonic(), start
        self.bar = None
        if enabled and self.console.is_terminal:
            columns = BarColumn(16), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[news]}")
            self.bar = Bar(*columns, console=self.console)
            self.row = self.bar.add_task("training", total=steps, completed=start, news="")
            self.bar.start()

    def advance(self, step: int) -> None:
        """Shows that a step is done."""
        self.step = step
        if self.bar is not None:
            self.bar.update(self.row, completed=step)

    def images_per_second(self) -> float:
        """Since the last call, pauses apart."""
        now = time.monotonic()
        rate = (self.step - self.since_step) * self.batch_size / max(now - self.since, 1e-9)
        self.since, self.since_step = now, self.step
        return rate

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock of `images_per_second`."""
        before = time.monotonic()
        yield
        self.since += time.monotonic() - before

    def news(self, row: dict[str, float], rate: float) -> None:
        """Shows the metrics of the last steps."""
        text = f"{format_metrics(row)}  {rate:.0f} images/s"
        if self.bar is not None:
            self.bar.update(self.row, news=text)
        else:
            left = (self.steps - self.step) * self.batch_size / max(rate, 1e-9)
            self.say(f"step {self.step}/{self.steps}  {text}  {_duration(left)} left")

    def say(self, sentence: str) -> None:
        """Shows a sentence above the bar."""
        from rich.text import Text

        self.console.print(Text(sentence), soft_wrap=True)

    def close(self) -> None:
        """Stops; nothing is shown or written afterwards."""
        if self.bar is not None:
            self.bar.stop()


def format_metrics(row: dict[str, float]) -> str:
    """Metrics in one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
