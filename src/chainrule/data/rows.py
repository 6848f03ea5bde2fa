"""Images one by one to the arrays of a split, with an account of what could not be used."""

from __future__ import annotations

import os
import unicodedata
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import cache, images
from .account import UNREADABLE, Account, Finding
from .captions import first_of
from .config import DataConfig
from .source import Source
from .tree import File

CHUNK, TASK = 1024, 16
"""Rows read at once, and rows decoded by a thread at once."""
MISSING = (None, "")
"""Labels that are none."""
SIZES = 10
"""Sizes of images that an account lists."""
REMARKS = {
    images.ANIMATED: ("read in part", "an animation; its first frame is used"),
    images.TURNED_GREY: (images.TURNED_GREY, "the first image is grey, and data.channels is not given; set it to 3"),
}


@dataclass(kw_only=True)
class Rows:
    """A split: N images, still encoded, and what is said of them.

    names:    N names, for messages
    cells:    N encoded images, or their paths; None where there is none
    labels:   N labels in 0..num_classes-1, with -1 where it is missing, or None
    texts:    N captions, or None; an image may have several, or none
    findings: about the source, so far
    """

    names: list[str]
    cells: Iterable[bytes | str | File | None]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    num_classes: int | None = None
    texts: list[list[str]] | None = None
    findings: list[Finding] = field(default_factory=list)


class RowSource(Source):
    """A source of encoded images, each decoded by itself so that one damaged file among thousands can be skipped."""

    @abstractmethod
    def origin(self) -> list[Any]:
        """What identifies the source and its version, a JSON value."""

    @abstractmethod
    def rows(self, split: str, scratch: Path) -> Rows:
        """A split; files are written below `scratch` only.

        Raises:
            ValueError: there is no such split, or its labels or captions cannot be read.
        """

    def key(self, split: str) -> Any:
        config = self.config
        transform = [split, config.height_width, config.channels, config.resize, config.captions]
        return [self.origin(), transform, [config.image_column, config.label_column, config.text_column]]

    def build(self, split: str, target: Path) -> dict[str, Any]:
        with cache.scratch() as scratch:
            rows = self.rows(split, scratch)
            if not rows.names:
                raise ValueError(f"the split {split} of {self.config.source} has no images")
            kept, skipped, account = _decode(self.config, _labelled(rows), target)
        if rows.labels is not None:
            cache.write_array(target / "labels.npy", rows.labels[kept])
        texts = None if rows.texts is None else [first_of(self.config, rows.texts[row]) for row in kept]
        if texts is not None:
            without = [rows.names[row] for row, text in zip(kept, texts, strict=True) if not text]
            account = account.adding(Finding.of(without, "image", "without a caption"))
        return {
            "count": len(kept),
            "texts": texts,
            "class_names": rows.class_names,
            "num_classes": rows.num_classes,
            "skipped": skipped,
            "account": account.plain(),
        }


def add_labels(
    config: DataConfig, rows: Rows, values: Sequence[Any], everywhere: Sequence[Any], names: Sequence[str] | None = None
) -> None:
    """Gives rows their labels as numbers, the names and the number of classes; or a finding, why there are none.

    Args:
        config: with a label_column, labels of another kind are an error; otherwise they mean that there are none.
        rows: N rows.
        values: N whole numbers or words, None where there is none.
        everywhere: values of all splits, which together make the classes.
        names: of the classes, if the values are numbers that have names.

    Raises:
        ValueError: values of another kind, or numbers that are no class.
    """
    known, source, chosen = [value for value in everywhere if value not in MISSING], config.source, config.label_column
    labelled = sum(value not in MISSING for value in values)
    if not known or not labelled or all(value == -1 for value in values):  # so the hub marks a split without labels
        return
    words, whole = (all(isinstance(value, kind) for value in known) for kind in (str, int))
    if chosen is None and (labelled < len(values) / 2 or not (words or whole)):
        why = f"only {labelled} of {len(values)} images have one" if words or whole else "not whole numbers, nor words"
        rows.findings += Finding.of([str(value) for value in known], "label", "ignored", f"{why}; set label_column")
        return
    if words:
        classes = class_order(known)
        index = {name: number for number, name in enumerate(classes)}
        numbers = [-1 if value in MISSING else index[composed(value)] for value in values]
    elif whole:
        classes, count = names and [composed(name) for name in names], len(names) if names else max(known) + 1
        numbers = [-1 if value in MISSING else value for value in values]
        wrong = [row for row, value in enumerate(values) if value not in MISSING and not 0 <= value < count]
        if wrong:
            raise ValueError(
                f"row {wrong[0]} of {source} has the label {values[wrong[0]]}, outside 0..{count - 1}; "
                "correct it, or set label_column to another column"
            )
    else:
        raise ValueError(f"the labels of {source} must be whole numbers or words; set label_column")
    rows.labels, rows.class_names = np.array(numbers, np.int64), classes
    rows.num_classes = len(classes) if words else count


def class_order(values: Iterable[str]) -> list[str]:
    """Different names of classes, sorted: numbers by size, others by letters."""
    names = sorted({composed(value) for value in values})
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def composed(name: str) -> str:
    """A name with composed letters, as a keyboard writes it; a Mac decomposes the names of files."""
    return unicodedata.normalize("NFC", name)


def _labelled(rows: Rows) -> Rows:
    """The rows that have a label, if some have."""
    if rows.labels is None or (rows.labels >= 0).all():
        return rows
    kept = np.flatnonzero(rows.labels >= 0)
    without = [rows.names[row] for row in np.flatnonzero(rows.labels < 0)]
    chosen = set(kept.tolist())
    rows.cells = (cell for row, cell in enumerate(rows.cells) if row in chosen)
    rows.names = [rows.names[row] for row in kept]
    rows.texts = None if rows.texts is None else [rows.texts[row] for row in kept]
    rows.labels = rows.labels[kept]
    rows.findings += Finding.of(without, "image", "left out", "it has no label")
    return rows


def _decode(config: DataConfig, rows: Rows, target: Path) -> tuple[list[int], list[str], Account]:
    """Writes images.npy; returns the rows that could be read, the names of the others, and the account."""
    from datasets.utils import tqdm

    array = first = None
    kept, skipped, reasons, remarks, sizes = [], [], {}, {}, Counter()
    found = decoded(config, rows.cells)
    progress = tqdm(found, total=len(rows.names), delay=5, mininterval=1, desc=f"decoding {config.source}", leave=False)
    for row, picture in enumerate(progress):
        name = rows.names[row]
        if isinstance(picture, str):
            if config.strict:
                raise ValueError(
                    f"{name} of {config.source} cannot be read as an image ({picture}); "
                    "repair or remove it, or set strict to false"
                )
            skipped.append(name)
            reasons.setdefault(picture, []).append(name)
            continue
        if array is None:
            first, shape = picture.pixels, (len(rows.names), *picture.pixels.shape)
            array = cache.create_array(target / "images.npy", shape, np.uint8)
        images.check_equal(rows.names[kept[0] if kept else row], first, name, picture.pixels)
        array[len(kept)] = picture.pixels
        kept.append(row)
        sizes[picture.height_width] += 1
        for remark in picture.remarks:
            if remark != images.TURNED_GREY or config.channels is None:  # otherwise grey was asked for
                remarks.setdefault(remark, []).append(name)
    if array is None:
        raise ValueError(
            f"no image of {config.source} can be read; the first is {rows.names[0]} ({next(iter(reasons))})"
        )
    array.flush()
    findings = [found for reason, names in reasons.items() for found in Finding.of(names, "image", UNREADABLE, reason)]
    findings += [found for remark, names in remarks.items() for found in Finding.of(names, "image", *REMARKS[remark])]
    common = tuple((height, width, count) for (height, width), count in sizes.most_common(SIZES))
    return kept, skipped, Account(used=len(kept), findings=(*rows.findings, *findings), sizes=common)


def decoded(config: DataConfig, cells: Iterable[Any]) -> Iterator[images.Picture | str]:
    """Each image, or why it cannot be read."""
    channels = config.channels

    def attempt(cells: Sequence[Any]) -> list[images.Picture | str]:
        found: list[images.Picture | str] = []
        for cell in cells:
            source: Any = b""
            try:
                if cell is None:
                    raise ValueError("there is no image in the row")
                source = cell.source() if isinstance(cell, File) else cell
                found.append(images.decode(source, config.height_width, channels, config.resize))
            except Exception as error:  # PIL raises nearly anything on a damaged file
                found.append(str(error) if cell is None else images.why_unreadable(error, source))
        return found

    waiting = iter(cells)
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is an error
        while chunk := list(islice(waiting, CHUNK)):
            while chunk and channels is None:  # until the first image, one by one: it decides the channels
                (picture,) = attempt([chunk.pop(0)])
                channels = None if isinstance(picture, str) else len(picture.pixels)
                yield picture
            for found in pool.map(attempt, [chunk[start : start + TASK] for start in range(0, len(chunk), TASK)]):
                yield from found
