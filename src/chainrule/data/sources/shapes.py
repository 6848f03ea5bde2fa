"""The embedded data set `shapes`, drawn at the size asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import shapes
from ..cache import create_array, write_array
from ..config import DataConfig
from ..source import Source


def find(config: DataConfig) -> Source | None:
    """The source, if the config names `shapes`."""
    return Shapes(config) if config.source == "shapes" else None


class Shapes(Source):
    """Drawings of scenes, with their captions, labelled by their first object."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config, "shapes")
        pair = config.height_width
        if pair is None or pair[0] != pair[1] or pair[0] < shapes.MIN_SIZE:
            raise ValueError(f"shapes is drawn at any square size from {shapes.MIN_SIZE}; set size, got {config.size}")
        if config.channels == 1:
            raise ValueError("shapes is in colour; leave channels at 3 or unset")
        if config.flip:
            raise ValueError("flip would make the captions of shapes wrong about left and right; set it to false")
        if config.resize != "crop" or config.captions != "first":
            raise ValueError("shapes is drawn at its size, with one caption each; leave resize and captions unset")
        if any((config.image_column, config.label_column, config.text_column)):
            raise ValueError("shapes has no columns; leave image_column, label_column and text_column unset")
        self.size = pair[0]

    def key(self, split: str) -> Any:
        return ["shapes", shapes.VERSION, split, self.size]

    def build(self, split: str, target: Path) -> dict[str, Any]:
        if split not in shapes.SPLITS:
            raise ValueError(f"shapes has no split {split!r}; it has {', '.join(shapes.SPLITS)}")
        scenes = [shapes.scene(index, split) for index in range(shapes.SPLITS[split])]
        array = create_array(target / "images.npy", (len(scenes), 3, self.size, self.size), np.uint8)
        for index, scene in enumerate(scenes):
            array[index] = shapes.render(scene, self.size)
        array.flush()
        write_array(target / "labels.npy", np.array([shapes.label(scene) for scene in scenes], np.int64))
        return {
            "count": len(scenes),
            "texts": [shapes.caption(scene) for scene in scenes],
            "class_names": list(shapes.CLASS_NAMES),
            "num_classes": len(shapes.CLASS_NAMES),
            "skipped": [],
        }
