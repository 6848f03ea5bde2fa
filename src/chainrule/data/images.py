"""Image files to arrays: decoding, resizing, and the files a user names on the command line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

GREY_MODES = ("1", "L", "LA", "La", "I", "F")


def open_image(source: bytes | str | Path, channels: int | None) -> Image.Image:
    """Decodes one image completely, upright, as grey ("L") or colour ("RGB"), on white where transparent.

    Args:
        source: the encoded bytes or the path of a file.
        channels: 1, 3, or None for as the image is.

    Raises:
        Exception: whatever PIL raises on a missing, damaged or unknown file.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened) if opened.format not in ("PNG", "BMP", "PPM", "GIF") else opened
    if channels is None:
        channels = 1 if image.mode in GREY_MODES or image.mode.startswith("I;16") else 3
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def decode(source: bytes | str | Path, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """One image as uint8 (C, H, W): decoded, its shorter side resized and its centre cropped to `size`.

    Args:
        source: the encoded bytes or the path of a file.
        size: (height, width), or None to leave it.
        channels: 1, 3, or None for as the image is.

    Raises:
        Exception: as `open_image`.
    """
    image = open_image(source, channels)
    if size is not None and image.size != size[::-1]:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def check_equal(first_name: str, first: np.ndarray, name: str, image: np.ndarray) -> None:
    """Raises ValueError unless the two images (C, H, W) have one shape."""
    if first.shape != image.shape:
        (_, h0, w0), (_, h1, w1) = first.shape, image.shape
        raise ValueError(
            f"the images differ in size: {first_name} is {h0}x{w0} and {name} is {h1}x{w1} (height x width); "
            f"set size, for example {min(h0, w0, h1, w1)}, to resize and crop them all"
        )


def _decode_file(path: str | Path, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    if not Path(path).is_file():
        raise ValueError(f"there is no image file at {path}")
    try:
        return decode(path, size, channels)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image, it is damaged or of another kind ({error})") from error


def load_images(
    paths: Sequence[str | Path], size: int | tuple[int, int] | None = None, channels: int | None = None
) -> Tensor:
    """Image files -> uint8 (N, C, H, W), in the order given.

    Args:
        paths: N >= 1 files.
        size: the shorter side is resized and the centre cropped to this (height, width), an int being
            a square; None: the files must already be equal.
        channels: 1 grey, 3 colour, None as the first image is.

    Raises:
        ValueError: without files, on a missing or damaged file, or on unequal sizes.
    """
    if not paths:
        raise ValueError("no image files were given; name at least one")
    size = (size, size) if isinstance(size, int) else size
    arrays: list[np.ndarray] = []
    for path in paths:
        arrays.append(_decode_file(path, size, channels))
        channels = len(arrays[0])
        check_equal(str(paths[0]), arrays[0], str(path), arrays[-1])
    return torch.from_numpy(np.stack(arrays))


def load_mask(path: str | Path, height: int, width: int) -> Tensor:
    """A black and white image file -> bool (height, width); white (128 and more) is True: known.

    Raises:
        ValueError: on a missing or damaged file, or on another size.
    """
    array = _decode_file(path, None, 1)[0]
    if array.shape != (height, width):
        raise ValueError(
            f"the mask {path} is {array.shape[0]}x{array.shape[1]} but the image is {height}x{width} "
            "(height x width); make them equal"
        )
    return torch.from_numpy(array >= 128)
