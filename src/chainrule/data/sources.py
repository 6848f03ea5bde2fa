"""Where images come from: the hub, a folder of tables, a folder of images, or the embedded `shapes`.

What is found here is decoded once, by `readers`, and kept by `cache`.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import cache, emoji, readers, shapes
from .dataset import ImageDataset

BINARIZE = ("none", "threshold", "sample")
SPLIT = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are prepared.

    Attributes:
        source: "shapes"; a name such as "ylecun/mnist", looked for below the folder in the environment
            variable CHAINRULE_DATA, then as a folder, then on the hub ("emoji" is built at its first use instead, see
            `emoji`); or a folder of parquet or arrow files,
            of `save_to_disk`, of images, of one folder per class, of images with captions (metadata.csv or
            metadata.jsonl with file_name and text; captions.txt with "file<TAB>caption" lines; or a.txt
            beside a.png).
        split: "train", "test", "validation", … or a slice of one: "train[:5000]", "test[-10%:]".  In a
            folder of images, subfolders train, test and validation are the splits; without them one image
            in twenty, chosen by the hash of its name, is "test" and the others are "train".
        size: the shorter side is resized and the centre cropped to this (height, width), an int being a
            square; None: the images must already be equal.
        channels: 1 grey, 3 colour, None as the first image is.
        levels: 2..256, number of grey levels the model will use; the tokenizer quantizes, not the data.
        binarize: "none", "threshold" (on from 128) or "sample" (on with probability pixel / 255, drawn anew
            at each visit).
        flip: whether training flips images left to right at random.
        image_column, label_column, text_column: columns of a table; None: guessed from their names.
        strict: whether an image that cannot be read is an error; otherwise it is skipped and named.

    Raises:
        ValueError: on a value out of range.
    """

    source: str
    split: str = "train"
    size: int | tuple[int, int] | None = None
    channels: int | None = None
    levels: int = 256
    binarize: str = "none"
    flip: bool = False
    image_column: str | None = None
    label_column: str | None = None
    text_column: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.size, list):
            object.__setattr__(self, "size", tuple(self.size))
        if not self.source:
            raise ValueError('source is empty; give a data set such as "ylecun/mnist", a folder, or "shapes"')
        if not SPLIT.fullmatch(self.split):
            raise ValueError(f'split must look like "train" or "train[:5000]", got {self.split!r}')
        if self.size is not None and (len(self.height_width) != 2 or min(self.height_width) < 1):
            raise ValueError(f"size must be a positive number or a pair (height, width), got {self.size}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {self.channels}")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must lie in 2..256, got {self.levels}")
        if self.binarize not in BINARIZE:
            raise ValueError(f"binarize must be one of {', '.join(BINARIZE)}, got {self.binarize!r}")

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` as a pair, or None."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def load(config: DataConfig) -> ImageDataset:
    """The images of one split, ready in memory; decoded once, then mapped from the cache.

    A data set of the hub is kept under its name: delete the cache (CHAINRULE_CACHE, or ~/.cache/chainrule) to
    fetch a newer version.  A local folder is read again whenever a file in it has changed.

    Raises:
        ValueError: when the source, the split or a column is not there, images differ in size and `size` is
            None, a label is out of range, or (with `strict`) an image cannot be read.
    """
    split, start, stop = SPLIT.fullmatch(config.split).groups()
    transform = [split, config.height_width, config.channels]
    if config.source == "shapes":
        dataset, folder = _shapes(config, split)
    else:
        columns = [config.image_column, config.label_column, config.text_column]
        local = _local_folder(config.source)
        origin = [str(local.resolve()), cache.listing(local)] if local else ["hub", config.source]
        dataset, folder = cache.cached(
            [origin, transform, columns],
            lambda target: readers.build(config, split, local, target),
            local.resolve().name if local and local == Path(config.source).expanduser() else config.source,
        )
    if dataset.skipped:
        message = _skipped_sentence(dataset)
        if config.strict:
            raise ValueError(message + "; repair or remove them, or set strict to false")
        warnings.warn(message, stacklevel=2)
    first, last = _bound(start, len(dataset), 0), _bound(stop, len(dataset), len(dataset))
    if first >= last:
        raise ValueError(f"the split {config.split} of {dataset.name} is empty: {split} has {len(dataset)} images")
    dataset = dataset.slice(first, last)
    cache.remember_fingerprint(dataset, folder / f"fingerprint-{first}-{last}")
    return dataset


def _bound(text: str | None, count: int, default: int) -> int:
    """One end of a slice such as "-5000" or "10%", as a row in 0..count."""
    if text is None:
        return default
    number = round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)
    return min(max(number + count if text.startswith("-") else number, 0), count)


def _skipped_sentence(dataset: ImageDataset) -> str:
    named = ", ".join(dataset.skipped[:3]) + (", …" if len(dataset.skipped) > 3 else "")
    count = "1 image" if len(dataset.skipped) == 1 else f"{len(dataset.skipped)} images"
    return f"{count} of {dataset.name} cannot be read: {named}"


def _local_folder(source: str) -> Path | None:
    """The folder a source means, or None for a data set of the hub; emoji is built if need be."""
    shelf = os.environ.get("CHAINRULE_DATA")
    candidates = [Path(source).expanduser()]
    if shelf and not source.startswith((".", "~", "/")):
        candidates.insert(0, Path(shelf) / source)
    for folder in candidates:
        if folder.is_dir():
            return folder
        if folder.is_file():
            raise ValueError(f"source must be a folder or a data set of the hub, but {source} is a file")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):
        raise ValueError(f"there is no folder {source}")
    return emoji.folder() if source == "emoji" else None


def _shapes(config: DataConfig, split: str) -> tuple[ImageDataset, Path]:
    """The embedded data set, drawn at the size asked for."""
    pair = config.height_width
    if pair is None or pair[0] != pair[1] or pair[0] < shapes.MIN_SIZE:
        raise ValueError(f"shapes is drawn at any square size from {shapes.MIN_SIZE}; set size, got {config.size}")
    if config.channels == 1:
        raise ValueError("shapes is in colour; leave channels at 3 or unset")
    if config.flip:
        raise ValueError("flip would make the captions of shapes wrong about left and right; set it to false")
    if any((config.image_column, config.label_column, config.text_column)):
        raise ValueError("shapes has no columns; leave image_column, label_column and text_column unset")
    if split not in shapes.SPLITS:
        raise ValueError(f"shapes has no split {split!r}; it has {', '.join(shapes.SPLITS)}")

    def build(target: Path) -> dict[str, Any]:
        scenes = [shapes.scene(index, split) for index in range(shapes.SPLITS[split])]
        array = np.lib.format.open_memmap(target / "images.npy", "w+", np.uint8, (len(scenes), 3, *pair))
        for index, scene in enumerate(scenes):
            array[index] = shapes.render(scene, pair[0])
        array.flush()
        np.save(target / "labels.npy", np.array([shapes.label(scene) for scene in scenes], np.int64))
        return {
            "count": len(scenes),
            "texts": [shapes.caption(scene) for scene in scenes],
            "class_names": list(shapes.CLASS_NAMES),
            "num_classes": len(shapes.CLASS_NAMES),
            "skipped": [],
        }

    return cache.cached(["shapes", shapes.VERSION, split, pair[0]], build, "shapes")
