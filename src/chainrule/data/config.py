"""What a recipe says about its images."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
