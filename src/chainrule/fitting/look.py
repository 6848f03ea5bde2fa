"""What a folder of pictures holds, found from the starts of its files: nothing is decoded, so that it is quick."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import DataConfig, cache
from ..data.images import GREY_MODES, heic_is_readable
from ..data.rows import Rows, RowSource
from ..data.sources import find_source
from ..data.tree import File

LARGEST = 64
"""Pixels of the shorter side that are planned for at most."""
THREADS = 8
LISTED = 4


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was found.

    source:     the folder, its whole path
    split:      images for training, as `data.split` of a recipe names them
    held_out:   images for evaluation, likewise
    count:      pictures for training
    held:       pictures for evaluation; some of those for training, where there are too few
    size:       a multiple of 8 that nineteen in twenty pictures fill, at most `LARGEST`
    channels:   1 if all pictures are grey, otherwise 3
    sizes:      "height x width" and how many have it, the most frequent first
    side:       median of the shorter side of the pictures
    aspect:     smallest, median and largest ratio of width to height
    modes:      Pillow's mode, such as RGB, and how many have it
    classes:    names of classes, or their number as words
    captions:   pictures with a caption
    scripts:    writing system of the captions, such as LATIN, and how many have it
    duplicates: files whose bytes are those of another file
    damaged:    names of files whose start is not that of a picture
    findings:   sentences about what is left out or read in part
    """

    source: str
    split: str
    held_out: str
    count: int
    held: int
    size: int
    channels: int
    sizes: tuple[tuple[str, int], ...]
    side: int
    aspect: tuple[float, float, float]
    modes: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]
    captions: int
    scripts: tuple[tuple[str, int], ...]
    duplicates: int
    damaged: tuple[str, ...]
    findings: tuple[str, ...]

    def lines(self) -> list[tuple[str, str]]:
        """What was found, as pairs of a title and a description."""
        low, middle, high = self.aspect
        classes = f"{len(self.classes)}: {_some(self.classes)}" if self.classes else "none"
        captions = f"{self.captions:,} ({_counted(self.scripts)})" if self.captions else "none"
        found = [
            ("pictures", f"{self.count:,} for training, {self.held:,} held out"),
            ("sizes", _counted(self.sizes)),
            ("width / height", f"{low:.2f} to {high:.2f}, median {middle:.2f}"),
            ("modes", _counted(self.modes)),
            ("classes", classes),
            ("captions", captions),
            ("copies", f"{self.duplicates:,}, by their bytes"),
            (
                "damaged",
                f"{len(self.damaged):,}: {_some(self.damaged)}" if self.damaged else "none by their first bytes",
            ),
        ]
        return found + [("note", sentence) for sentence in self.findings]


@dataclass(frozen=True)
class Example:
    """A picture, still encoded, with its class and caption where it has them."""

    source: bytes | Path
    label: int | None
    text: str | None


def look(folder: str | Path) -> tuple[Look, list[Example]]:
    """Looks at a folder, zip or tar file of pictures, or a folder of tables of them.

    Returns:
        What was found, and up to 64 examples at equal distances, for measuring.

    Raises:
        ValueError: there is no such folder, or no picture in it.
    """
    path = Path(folder).expanduser().resolve()
    if not path.exists():
        raise ValueError(f"there is no folder {folder}")
    source = find_source(DataConfig(source=str(path)))
    if not isinstance(source, RowSource):
        raise ValueError(f"{folder} is not a folder of pictures")
    with cache.scratch() as scratch:
        train = source.rows("train", scratch)
        split, held_out, held = _held_out(source, scratch, len(train.names))
        cells = [_encoded(cell) for cell in train.cells]
        with ThreadPoolExecutor(THREADS) as pool:
            headers = list(pool.map(_header, cells))
        if not any(headers):
            raise ValueError(f"no file of {folder} can be read as a picture")
        good = [row for row, header in enumerate(headers) if header]
        chosen = [good[index * len(good) // min(64, len(good))] for index in range(min(64, len(good)))]
        examples = [_example(train, cells, row) for row in chosen]
        return _describe(path, train, (split, held_out, held), headers, _copies(cells)), examples


def _held_out(source: RowSource, scratch: Path, count: int) -> tuple[str, str, int]:
    """The names of the splits for training and evaluation, and the number of pictures for evaluation."""
    for name in ("test", "validation"):
        try:
            return "train", name, len(source.rows(name, scratch).names)
        except ValueError:  # there is no such split
            continue
    held = max(1, count // 20)
    if count < 2:
        return "train", "train", count
    return f"train[:-{held}]", f"train[-{held}:]", held


def _describe(
    path: Path, rows: Rows, splits: tuple[str, str, int], headers: Sequence[tuple | None], copies: int
) -> Look:  # fmt: skip
    sizes = [header[:2] for header in headers if header]
    modes = Counter(header[2] for header in headers if header)
    sides = sorted(min(size) for size in sizes)
    ratios = sorted(width / height for width, height in sizes)
    texts = [found[0] for found in rows.texts or () if found and found[0].strip()]
    split, held_out, held = splits
    return Look(
        source=str(path), split=split, held_out=held_out, held=held,
        count=len(rows.names) - (held if split != "train" else 0),
        size=min(LARGEST, max(16, sides[len(sides) // 20] // 8 * 8)),
        channels=1 if all(mode in GREY_MODES for mode in modes) else 3,
        sizes=tuple(Counter(f"{height}x{width}" for width, height in sizes).most_common()),
        side=sides[len(sides) // 2], aspect=(ratios[0], ratios[len(ratios) // 2], ratios[-1]),
        modes=tuple(modes.most_common()),
        classes=tuple(rows.class_names or map(str, range(rows.num_classes or 0))),
        captions=len(texts), scripts=tuple(Counter(map(_script, texts)).most_common()),
        duplicates=copies,
        damaged=tuple(name for name, header in zip(rows.names, headers, strict=True) if header is None),
        findings=tuple(map(str, rows.findings)),
    )  # fmt: skip


def _encoded(cell: Any) -> bytes | Path | None:
    """A cell of `Rows` as what Pillow opens."""
    if isinstance(cell, File):
        return cell.source()
    return Path(cell) if isinstance(cell, str) else cell


def _header(source: bytes | Path | None) -> tuple[int, int, str] | None:
    """Width, height and mode; None where the start of a file is not that of a picture."""
    heic_is_readable()
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return *image.size, image.mode
    except Exception:  # whatever Pillow raises on a damaged file
        return None


def _example(rows: Rows, cells: Sequence[bytes | Path | None], row: int) -> Example:
    label = None if rows.labels is None else int(rows.labels[row])
    text = rows.texts[row][0] if rows.texts and rows.texts[row] else None
    return Example(cells[row], label, text)


def _copies(cells: Iterable[bytes | Path | None]) -> int:
    """Files that have the bytes of another; only files of equal length are read."""
    lengths: dict[int, list[bytes | Path]] = {}
    for cell in cells:
        if cell is not None and (isinstance(cell, bytes) or cell.is_file()):
            length = len(cell) if isinstance(cell, bytes) else cell.stat().st_size
            lengths.setdefault(length, []).append(cell)
    same = 0
    for group in lengths.values():
        if len(group) > 1:
            hashes = {hashlib.sha256(x if isinstance(x, bytes) else x.read_bytes()).digest() for x in group}
            same += len(group) - len(hashes)
    return same


def _script(text: str) -> str:
    """The writing system of the first letter, as Unicode names it; an empty word if there is no letter."""
    letter = next((character for character in text if character.isalpha()), "")
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0]


def _counted(pairs: Sequence[tuple[str, int]]) -> str:
    said = ", ".join(f"{name or 'no letters'} {count:,}" for name, count in pairs[:LISTED])
    return said + (f" and {len(pairs) - LISTED} more" if len(pairs) > LISTED else "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
