"""What a recipe says about its images."""

from __future__ import annotations

import re
from dataclasses import dataclass

BINARIZE = ("none", "threshold", "sample")
RESIZE = ("crop", "pad", "stretch")
CAPTIONS = ("first", "random")
SPLIT = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are prepared.

    Attributes:
        source: "shapes"; a name such as "ylecun/mnist", looked for below the folder in the environment
            variable CHAINRULE_DATA, then as a folder, then on the hub ("emoji" is built at its first use instead, see
            `emoji`); or a folder, zip file or tar file of images, perhaps in one folder per class, perhaps with
            captions (see `captions` beside this module); or a folder of parquet or arrow files or of `save_to_disk`.
        split: "train", "test", "validation", … or a slice of one: "train[:5000]", "test[-10%:]".  In a
            folder of images, subfolders train, test and validation are the splits; without them about one
            image in twenty, whose name has a low hash, is "test" and the others are "train".
        size: images become this (height, width), an int being a square; None: they must already be equal.
        resize: how an image of another shape becomes `size`: "crop" (the centre), "pad" (with white) or "stretch".
        channels: 1 grey, 3 colour, None as the first image is.
        levels: 2..256, number of grey levels the model will use; the tokenizer quantizes, not the data.
        binarize: "none", "threshold" (on from 128) or "sample" (on with probability pixel / 255, drawn anew
            at each visit).
        flip: whether training flips images left to right at random.
        captions: of an image that has several: "first", or "random", drawn anew at each visit.
        image_column, label_column, text_column: columns of a table; None: guessed from their names.
        stream: whether a prior reads each image once, in order, and only codes are kept: for sets of any size, in a
            folder of images, of tar files or of tables, or on the hub (see `stream` beside this module).
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
    resize: str = "crop"
    captions: str = "first"
    image_column: str | None = None
    label_column: str | None = None
    text_column: str | None = None
    strict: bool = False
    stream: bool = False

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
        for key, words in (("binarize", BINARIZE), ("resize", RESIZE), ("captions", CAPTIONS)):
            if getattr(self, key) not in words:
                raise ValueError(f"{key} must be one of {', '.join(words)}, got {getattr(self, key)!r}")

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` as a pair, or None."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size
