"""Reading one split of images, labels and captions through `datasets`, which is imported only inside functions.

Rows are decoded by `images`, not by `datasets`, so that one damaged file among thousands can be skipped.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from . import cache, images
from .config import DataConfig
from .source import Source

IMAGE_COLUMNS = ("image", "img", "images", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "description")
CHUNK, TASK = 1024, 64
"""Rows read at once, and rows decoded by a thread at once."""


class TableSource(Source):
    """A source that `datasets` reads as one table per split."""

    @abstractmethod
    def origin(self) -> list[Any]:
        """What identifies the source and its version, a JSON value."""

    @abstractmethod
    def tables(self, scratch: Path) -> dict[str, Any]:
        """Split -> `datasets.Dataset`; files are written below `scratch` only."""

    def splits(self, tables: dict[str, Any]) -> dict[str, Any]:
        """Split -> the table that holds its images."""
        return tables

    def rows(self, split: str, table: Any, image_column: str) -> tuple[list[str], list[int]]:
        """Names of all rows of a table, and the rows of a split in their order."""
        return [f"row {row}" for row in range(len(table))], list(range(len(table)))

    def captions(self, names: list[str]) -> list[str] | None:
        """Captions of the rows of these names from outside the table, if there are any."""
        return None

    def key(self, split: str) -> Any:
        config = self.config
        transform = [split, config.height_width, config.channels]
        return [self.origin(), transform, [config.image_column, config.label_column, config.text_column]]

    def build(self, split: str, target: Path) -> dict[str, Any]:
        import datasets

        config = self.config
        with cache.scratch() as scratch:
            tables = self.tables(scratch)
            splits = self.splits(tables)
            if split not in splits:
                raise ValueError(f"{config.source} has no split {split!r}; it has {', '.join(splits)}")
            table = splits[split]
            image_column = _image_column(config, table)
            label_column = _column(config.label_column, "label_column", LABEL_COLUMNS, table)
            text_column = _column(config.text_column, "text_column", TEXT_COLUMNS, table)
            table = table.cast_column(image_column, datasets.Image(decode=False))
            labels, class_names, num_classes = _labels(tables, table, label_column, config)
            names, rows = self.rows(split, table, image_column)
            texts = self.captions(names) if text_column is None else [_text(value) for value in table[text_column]]
            if not rows:
                raise ValueError(f"the split {split} of {config.source} has no images")
            cells = table.select_columns([image_column]).select(rows)
            kept, skipped = _decode_rows(config, cells, image_column, [names[row] for row in rows], target)
            rows = [rows[index] for index in kept]
            if labels is not None:
                np.save(target / "labels.npy", labels[rows])
            return {
                "count": len(rows),
                "texts": None if texts is None else [texts[row] for row in rows],
                "class_names": class_names,
                "num_classes": num_classes,
                "skipped": skipped,
            }


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of `datasets` inside."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def reason(error: Exception) -> str:
    """An error's class and first line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _decode_rows(
    config: DataConfig, table: Any, column: str, names: list[str], target: Path
) -> tuple[list[int], list[str]]:
    """Writes images.npy; returns the rows that could be read, and the names of those that could not."""
    from datasets.utils import tqdm

    array = first = None
    channels, kept, skipped = config.channels, [], []

    def attempt(cells: list[dict[str, Any]]) -> list[np.ndarray | Exception]:
        found = []
        for cell in cells:
            try:
                found.append(images.decode(cell["bytes"] or cell["path"], config.height_width, channels))
            except Exception as error:  # PIL raises nearly anything on a damaged file
                found.append(error)
        return found

    def decoded() -> Iterator[np.ndarray | Exception]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for chunk in table.iter(batch_size=CHUNK):
                cells = chunk[column]
                while cells and channels is None:  # until the first image, one by one: it decides the channels
                    yield attempt([cells.pop(0)])[0]
                tasks = [cells[start : start + TASK] for start in range(0, len(cells), TASK)]
                for found in pool.map(attempt, tasks):
                    yield from found

    rows = tqdm(decoded(), total=len(names), delay=5, mininterval=1, desc=f"decoding {config.source}", leave=False)
    for row, image in enumerate(rows):
        if isinstance(image, Exception):
            if config.strict:
                raise ValueError(
                    f"{names[row]} of {config.source} cannot be read as an image ({reason(image)}); "
                    "repair or remove it, or set strict to false"
                ) from image
            skipped.append(names[row])
            continue
        if array is None:
            array = np.lib.format.open_memmap(target / "images.npy", "w+", np.uint8, (len(names), *image.shape))
            first, channels = image, len(image)
        images.check_equal(names[kept[0] if kept else row], first, names[row], image)
        array[len(kept)] = image
        kept.append(row)
    if array is None:
        raise ValueError(f"no image of {config.source} can be read; the first is {names[0]}")
    array.flush()
    return kept, skipped


def _column(name: str | None, option: str, guesses: tuple[str, ...], table: Any) -> str | None:
    """The column of a name, or the first of the guesses that is there."""
    if name is not None and name not in table.column_names:
        raise ValueError(f"{option} is {name!r}, but the columns are {', '.join(table.column_names)}")
    return name or next((guess for guess in guesses if guess in table.column_names), None)


def _image_column(config: DataConfig, table: Any) -> str:
    import datasets

    typed = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    found = _column(config.image_column, "image_column", (*typed, *IMAGE_COLUMNS), table)
    if found is None:
        raise ValueError(
            f"{config.source} has no column of images among {', '.join(table.column_names)}; set image_column"
        )
    return found


def _labels(
    tables: dict[str, Any], table: Any, column: str | None, config: DataConfig
) -> tuple[np.ndarray | None, list[str] | None, int | None]:
    """Labels int64 (N,), names and number of classes; numbers and names are those of all splits together."""
    if column is None:
        return None, None, None
    everywhere = [value for other in tables.values() if column in other.column_names for value in other.unique(column)]
    if all(isinstance(value, str) for value in everywhere):
        class_names = sorted(set(everywhere))
        index = {name: number for number, name in enumerate(class_names)}
        return np.array([index[value] for value in table[column]], np.int64), class_names, len(class_names)
    class_names = getattr(table.features[column], "names", None)
    if not all(isinstance(value, int) for value in everywhere):
        if config.label_column is None:  # a guess that was wrong
            return None, None, None
        raise ValueError(f"the column {column} of {config.source} must hold whole numbers or words; set label_column")
    labels = np.array(table[column], np.int64)
    if len(labels) and (labels == -1).all():  # how the hub marks a split without labels
        return None, None, None
    num_classes = len(class_names) if class_names else max(everywhere) + 1
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} of {config.source} has the label {labels[wrong[0]]}, outside 0..{num_classes - 1}; "
            "correct it, or set label_column to another column"
        )
    return labels, class_names, num_classes


def _text(value: Any) -> str:
    """A caption; the first where there are several, empty where there is none."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else "" if not value else str(value)
