"""The embedded data set `shapes`: one to three coloured shapes on a plain background, with captions.

Every image is a pure function of (index, split, seed, size): nothing is downloaded, and any size can be
drawn.  A caption says everything about its image but a jitter of less than two hundredths of its side, so a
drawing can be checked against its caption: `read` finds colour, shape, size and position of each object, and
`matches` compares them with a caption.  The combinations in `HELD_OUT` never occur in the splits train and
test, and at least once in every image of the split heldout: what a model draws for them it has composed.

Lengths are fractions of the side of the image, x to the right and y down.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

VERSION = 1  # raise it when images or captions change

BACKGROUND = (240, 240, 240)
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 20),
    "orange": (245, 130, 20),
    "purple": (140, 50, 180),
    "cyan": (30, 190, 210),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "cross", "star")
SIZES = {"small": 0.095, "large": 0.14}
"""Size -> radius."""
POSITIONS = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""Names of the cells of a 3 x 3 grid, in reading order."""
CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
HELD_OUT = (("red", "star"), ("green", "circle"), ("blue", "triangle"), ("yellow", "cross"), ("purple", "square"))
"""(colour, shape) combinations absent from train and test."""
SPLITS = {"train": 50_000, "test": 2_000, "heldout": 2_000}
"""Split -> number of images that `load` draws; `scene` takes any index."""
JITTER = 0.02
MIN_SIZE = 16


@dataclass(frozen=True)
class Object:
    """One object.  In what `parse` returns an attribute is None where the caption leaves it open; in what
    `read` returns, where it cannot be recognised.  The jitter (dx, dy) does not count in comparisons."""

    colour: str | None
    shape: str | None
    size: str | None
    position: str | None
    dx: float = field(default=0.0, compare=False)
    dy: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Scene:
    """One to three objects in different cells, in reading order."""

    objects: tuple[Object, ...]


# ---------------------------------------------------------------------------------------------- drawing


def scene(index: int, split: str = "train", seed: int = 0) -> Scene:
    """The scene of an index >= 0; each split and each seed is a sequence of its own.

    Raises:
        ValueError: on an unknown split or a negative index.

    Examples:
        >>> one = scene(7)
        >>> matches(render(one, 64), caption(one))
        True
    """
    if split not in SPLITS:
        raise ValueError(f"shapes has no split {split!r}; it has {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"the index of a scene must be at least 0, got {index}")
    random = np.random.default_rng((seed, list(SPLITS).index(split), index))
    count = int(random.integers(1, 4))
    cells = np.sort(random.permutation(9)[:count])
    composed = int(random.integers(count)) if split == "heldout" else -1
    objects = []
    for number, cell in enumerate(cells):
        choices = HELD_OUT if number == composed else _ALLOWED
        colour, shape = choices[int(random.integers(len(choices)))]
        size = ("small", "large")[int(random.integers(2))]
        dx, dy = random.uniform(-JITTER, JITTER, 2).tolist()
        objects.append(Object(colour, shape, size, POSITIONS[cell], dx, dy))
    return Scene(tuple(objects))


_ALLOWED = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT)


def label(scene: Scene) -> int:
    """The class of a scene, in 0..39: colour and shape of its first object, named in `CLASS_NAMES`."""
    return CLASS_NAMES.index(f"{scene.objects[0].colour} {scene.objects[0].shape}")


def render(scene: Scene, size: int) -> np.ndarray:
    """The scene as uint8 (3, size, size), anti-aliased.

    Raises:
        ValueError: when size is less than 16.
    """
    if size < MIN_SIZE:
        raise ValueError(f"shapes cannot be drawn smaller than {MIN_SIZE} pixels, got {size}")
    image = np.empty((3, size, size), np.float32)
    image[:] = _BACKGROUND[:, None, None]
    for item in scene.objects:
        row, column = divmod(POSITIONS.index(item.position), 3)
        x, y = ((column + 0.5) / 3 + item.dx) * size, ((row + 0.5) / 3 + item.dy) * size  # in pixels
        left, right = max(0, int(x - size / 6)), int(x + size / 6) + 1
        top, bottom = max(0, int(y - size / 6)), int(y + size / 6) + 1
        patch = image[:, top:bottom, left:right]
        rows = np.arange(top, top + patch.shape[1], dtype=np.float32)[:, None] + np.float32(0.5 - y)
        columns = np.arange(left, left + patch.shape[2], dtype=np.float32) + np.float32(0.5 - x)
        alpha = _coverage(item.shape, SIZES[item.size] * size, rows, columns)
        patch += alpha * (_PALETTE[item.colour][:, None, None] - patch)
    return (image + 0.5).astype(np.uint8)


_BACKGROUND = np.array(BACKGROUND, np.float32)
_PALETTE = {name: np.array(value, np.float32) for name, value in COLOURS.items()}
_THIRDS = [(np.sin(angle), -np.cos(angle)) for angle in np.pi / 3 * np.array([1, 3, 5], np.float32)]
_FIFTHS = [(np.sin(angle), -np.cos(angle)) for angle in np.pi / 5 * np.array([0, 2, 4, 6, 8], np.float32)]


def _coverage(shape: str, radius: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How much of each pixel a shape around the origin covers, float32 0..1 of the shape y + x.

    Args:
        shape: one of `SHAPES`.
        radius: in pixels; the shapes reach about as far, their centroids being the origin.
        y, x: pixel centres, broadcastable.
    """
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - 0.9 * radius
    elif shape == "square":
        distance = np.maximum(abs(x), abs(y)) - 0.8 * radius
    elif shape == "cross":
        x, y = abs(x), abs(y)
        arm, half = 0.95 * radius, 0.3 * radius
        distance = np.minimum(np.maximum(x - arm, y - half), np.maximum(x - half, y - arm))
    elif shape == "triangle":  # inside three lines
        distance = np.maximum.reduce([a * x + b * y for a, b in _THIRDS]) - 0.525 * radius
    else:  # a star is what lies inside four at least of its five lines
        assert shape == "star", shape
        distance = np.sort([a * x + b * y for a, b in _FIFTHS], axis=0)[3] - 0.324 * radius
    return np.clip(0.5 - distance, 0, 1)


# ---------------------------------------------------------------------------------------------- captions


def caption(scene: Scene) -> str:
    """The scene in words: "a large red circle at the top left and a small blue square at the bottom"."""
    phrases = [f"a {item.size} {item.colour} {item.shape} at the {item.position}" for item in scene.objects]
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def _choice(words: tuple[str, ...]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # "top left" before "top"


_PHRASE = re.compile(
    rf"an? (?:({_choice(tuple(SIZES))}) )?(?:({_choice(tuple(COLOURS))}) )?({_choice(SHAPES)})"
    rf"(?: (?:at|in) the ({_choice(POSITIONS)}))?"
)


def parse(caption: str) -> list[Object]:
    """The objects a caption states, in its order; the inverse of `caption`.

    Size, colour and position may be left out ("a red circle and a square at the top"): they are then None.

    Raises:
        ValueError: on words outside the grammar.
    """
    words = " ".join(caption.lower().replace("centre", "center").rstrip(" .").split())
    objects = []
    for phrase in re.split(r",? and |, ", words):
        match = _PHRASE.fullmatch(phrase)
        if match is None:
            raise ValueError(
                f'{phrase!r} is not understood; say for example "a large red circle at the top left", with the '
                f"sizes {', '.join(SIZES)}, the colours {', '.join(COLOURS)} and the shapes {', '.join(SHAPES)}"
            )
        size, colour, shape, position = match.groups()
        objects.append(Object(colour, shape, size, position))
    return objects


# ---------------------------------------------------------------------------------------------- reading


def read(image: np.ndarray) -> list[Object]:
    """The objects seen in an image uint8 (3, H, W), H = W >= 16, in reading order of their cells.

    Pixels are explained as a mixture of the background and the colour that fits best; the connected regions
    of one colour are objects; each is compared with every shape and size drawn around its centroid.  A region
    that resembles no shape has shape and size None, one much smaller than any object is noise.  Reliable from
    24 pixels on; below, a cross and a star begin to look alike.

    Raises:
        ValueError: on another type or shape of array.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or len(image) != 3 or image.shape[1] != image.shape[2]:
        raise ValueError(f"read needs a square image uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
    size = image.shape[-1]
    pixels = image.astype(np.float32).transpose(1, 2, 0)
    background = np.median(pixels, axis=(0, 1))
    names = tuple(COLOURS)
    directions = np.stack([background - _PALETTE[name] for name in names])  # (colours, 3)
    offset = background - pixels  # (H, W, 3)
    squares = (directions**2).sum(1)
    alpha = np.clip(offset @ directions.T / squares, 0, 1.1)  # (H, W, colours)
    error = (offset**2).sum(-1, keepdims=True) - 2 * alpha * (offset @ directions.T) + alpha**2 * squares
    solid = np.take_along_axis(alpha, error.argmin(-1)[..., None], -1)[..., 0] > 0.4
    objects = []
    for region in _regions(solid):
        if region.sum() < 0.3 * size * size * min(SIZES.values()) ** 2:
            continue
        colour = int(error[region].sum(0).argmin())
        grown = np.zeros((size + 2, size + 2), bool)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2), (1, 1)):
            grown[dy : dy + size, dx : dx + size] |= region
        objects.append(_recognise(alpha[..., colour] * grown[1:-1, 1:-1], names[colour]))
    return sorted(objects, key=lambda item: POSITIONS.index(item.position))


def _regions(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected regions of a bool (H, W), each as a bool (H, W)."""
    _, width = mask.shape
    waiting = {divmod(int(flat), width) for flat in np.flatnonzero(mask)}
    regions = []
    while waiting:
        frontier = [waiting.pop()]
        region = np.zeros_like(mask)
        while frontier:
            row, column = frontier.pop()
            region[row, column] = True
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if near in waiting:
                    waiting.remove(near)
                    frontier.append(near)
        regions.append(region)
    return regions


def _recognise(alpha: np.ndarray, colour: str) -> Object:
    """The object of a colour whose coverage of the pixels is alpha (H, W)."""
    size, total = len(alpha), alpha.sum()
    centres = np.arange(size, dtype=np.float32) + 0.5
    y, x = (alpha.sum(1) @ centres) / total, (alpha.sum(0) @ centres) / total
    best, best_overlap = (None, None), 0.5
    for shape in SHAPES:
        for name, radius in SIZES.items():
            drawn = _coverage(shape, radius * size, centres[:, None] - y, centres - x)
            overlap = np.minimum(alpha, drawn).sum() / np.maximum(alpha, drawn).sum()
            if overlap > best_overlap:
                best, best_overlap = (shape, name), overlap
    row, column = min(2, int(3 * y / size)), min(2, int(3 * x / size))
    dx, dy = float(x / size - (column + 0.5) / 3), float(y / size - (row + 0.5) / 3)
    return Object(colour, best[0], best[1], POSITIONS[3 * row + column], dx, dy)


def matches(image: np.ndarray, caption: str) -> bool:
    """Whether an image uint8 (3, H, W) shows what a caption states: as many objects, each with every
    attribute stated of it.

    Raises:
        ValueError: as `read` and `parse`.
    """
    stated, seen = parse(caption), read(image)
    if len(stated) != len(seen):
        return False
    return any(all(map(_agrees, stated, order)) for order in permutations(seen))


def _agrees(stated: Object, seen: Object) -> bool:
    return all(getattr(stated, name) in (None, getattr(seen, name)) for name in ("colour", "shape", "size", "position"))
