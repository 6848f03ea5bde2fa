"""Image files to arrays: decoding, resizing, and the files a user names on the command line."""

from __future__ import annotations

import importlib
import io
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

GREY_MODES = ("1", "L", "LA", "La", "I", "F")
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What makes an image of each orientation upright; 5 to 8 exchange height and width."""
INTEGER_RANGES = ((0, 255), (0, 65535), (-32768, 32767), (0, 2**31 - 1), (-(2**31), 2**31 - 1))
FLOAT_RANGES = ((0, 1), (-1, 1), (0, 255), (0, 65535))
"""From black to white; the first that holds all values of an image is meant."""
ANIMATED, TURNED_GREY = "animated", "turned grey"
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of a damaged file, its exception says as well


class UnusableValuesError(ValueError):
    """An image is whole, but its values cannot be read as grey or colour; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded image.

    pixels:      uint8 (C, H, W)
    height_width: size of the file's image, upright, before it was resized
    remarks:     ANIMATED: only the first of several frames was read; TURNED_GREY: the file is in colour
    """

    pixels: np.ndarray
    height_width: tuple[int, int]
    remarks: tuple[str, ...] = ()


@cache
def heic_is_readable() -> bool:
    """Whether pillow-heif is installed; it then reads HEIC files from here on."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def decode(
    source: bytes | str | Path, size: tuple[int, int] | None, channels: int | None, resize: str = "crop"
) -> Picture:
    """One image, decoded completely, upright, in grey or colour, on white where transparent.

    Values beyond 8 bits are scaled to 0..255: 16 bits divided by 257, floating point 0..1 multiplied by 255.

    Args:
        source: the encoded bytes or the path of a file.
        size: (height, width), or None to leave it.
        channels: 1, 3, or None for as the image is.
        resize: how another shape becomes `size`: "crop", "pad" with white, or "stretch".

    Raises:
        Exception: whatever PIL raises on a missing, damaged or unknown file.
    """
    heic_is_readable()
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        animated = opened.format != "MPO" and getattr(opened, "is_animated", False)
        full = opened.size
        if size is not None:  # a JPEG is decoded at 1/2, 1/4 or 1/8, if that is still twice as large as needed
            turned = _orientation(opened) >= 5
            opened.draft(None, tuple(2 * side for side in size[:: 1 if turned else -1]))
        image = _upright(opened)
    if (full[0] > full[1]) == (image.size[0] > image.size[1]):
        full = full[::-1]
    grey = image.mode in GREY_MODES or image.mode.startswith("I;16")
    channels = channels or (1 if grey else 3)
    image = _as_mode(image, "L" if channels == 1 else "RGB")
    if size is not None and image.size != size[::-1]:
        image = _resize(image, size[::-1], resize)
    array = np.asarray(image)
    remarks = (ANIMATED,) * animated + (TURNED_GREY,) * (channels == 1 and not grey)
    pixels = array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    return Picture(pixels=pixels, height_width=full, remarks=remarks)


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # damaged EXIF data: the image itself may be whole
        return image.getexif().get(ORIENTATION, 1)
    return 1


def _upright(opened: Image.Image) -> Image.Image:
    """An opened image, loaded and turned as it is to be seen; some formats are turned by loading."""
    opened.load()
    turn = TURNS.get(_orientation(opened))
    if turn is None:
        return opened
    image = opened.transpose(turn)
    image.format, image.info = opened.format, opened.info
    return image


def header_size(source: bytes | Path) -> tuple[int, int]:
    """(width, height) of an image as its file has it, without decoding it; raises as `decode`."""
    heic_is_readable()
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.size


def _resize(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    """An image of (width, height)."""
    if how == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    if how == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BICUBIC, "white")
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image of any mode as "L" or "RGB"."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_as_bytes(np.asarray(image), image.mode.startswith("I;16") or image.format == "PNG"))
    if image.mode == "LAB":
        image = _to_srgb(image, ImageCms.createProfile("LAB"))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode in ("CMYK", "RGB") and profile:
        with suppress(ImageCms.PyCMSError, OSError, ImportError):  # a damaged profile: the plain conversion below
            image = _from_profile(image, profile)
    return image if image.mode == mode else image.convert(mode)


def _from_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """An image in CMYK or RGB of a colour profile as sRGB, which most profiles are already."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(opened).lower().replace(" ", ""):
        return image
    return _to_srgb(image, opened)


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")


def _as_bytes(values: np.ndarray, sixteen_bits: bool) -> np.ndarray:
    """Integers or floating point numbers as uint8, by the range that they lie in.

    Raises:
        UnusableValuesError: values that are not finite, or lie in no range of `INTEGER_RANGES` or `FLOAT_RANGES`.
    """
    if sixteen_bits:
        return (values.clip(0, 65535) // 257).astype(np.uint8)
    ranges = INTEGER_RANGES if values.dtype.kind in "iu" else INTEGER_RANGES[:2]
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    whole = (values == values.round()).all() and high > 1
    if not np.isfinite([low, high]).all():
        raise UnusableValuesError("it holds values that are not finite numbers")
    slack = 0 if whole else 0.05  # of the range: resizing overshoots
    for black, white in ranges if whole else FLOAT_RANGES:
        if black - slack * (white - black) <= low and high <= white + slack * (white - black):
            return ((values - black) * (255 / (white - black))).clip(0, 255).round().astype(np.uint8)
    raise UnusableValuesError(
        f"it holds values from {low:g} to {high:g}; save it with values from 0 to 1 or from 0 to 255"
    )


def looks_like_image(content: bytes) -> bool:
    """Whether the first bytes are those of a JPEG, PNG, GIF, WebP or TIFF file."""
    starts = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")
    return content.startswith(starts) or content[8:12] == b"WEBP"


def why_unreadable(error: Exception, source: bytes | str | Path) -> str:
    """Why a file cannot be read as an image, in words that name the remedy where there is one.

    Args:
        error: what `decode` raised.
        source: what it was given.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            start = file.read(16)
    except OSError as missing:
        return f"it cannot be opened, {missing.strerror or missing}"
    if not start:
        return "an empty file"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, the limit of Pillow; make it smaller"
    if isinstance(error, UnusableValuesError):
        return str(error)
    brand = start[8:12] if start[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis") and isinstance(error, UnidentifiedImageError):
        return "AVIF, which needs Pillow 11.3 or newer"
    if brand and not heic_is_readable():
        return 'HEIC; pip install "chainrule[heic]" reads it'
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown kind"
    if "truncated" in str(error).lower():
        return "truncated"
    return "damaged"


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
        return decode(path, size, channels).pixels
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {why_unreadable(error, path)}") from error


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
    """The image file of a mask -> bool (height, width); True is known.  See `decode_mask`.

    Raises:
        ValueError: a missing or damaged file, another size, or a mask that keeps everything or nothing.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no image file at {path}")
    return decode_mask(path, height, width, f"the mask {path}")


def decode_mask(source: bytes | str | Path, height: int, width: int, name: str = "the mask") -> Tensor:
    """An image as a mask -> bool (height, width); True is known.

    Opaque is known where the image is partly transparent.  Otherwise, of two values the larger is known, and of more
    the upper half of 0..255: white is known in a mask of black and white, and 1 in a mask of 0 and 1.

    Args:
        source: the encoded bytes or the path of a file.
        name: by which errors call it.

    Raises:
        ValueError: a damaged image, another size, or a mask that keeps everything or nothing.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = _upright(opened)
        if "A" in image.mode or "transparency" in image.info:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
            values = alpha if alpha.min() < alpha.max() else np.asarray(_as_mode(image, "L"))
        else:
            deep = image.mode.startswith("I") or image.mode == "F"
            values = np.asarray(image if deep else _as_mode(image, "L"))
        levels = np.unique(values)
        if len(levels) > 2 and values.dtype != np.uint8:
            values = _as_bytes(values, image.mode.startswith("I;16"))
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an image: {why_unreadable(error, source)}") from error
    if values.shape != (height, width):
        raise ValueError(
            f"{name} is {values.shape[0]}x{values.shape[1]} but the image is {height}x{width} "
            "(height x width); make them equal"
        )
    known = values == levels[1] if len(levels) == 2 else values >= 128
    if known.all() or not known.any():
        raise ValueError(
            f"{name} keeps {'everything' if known.all() else 'nothing'}; it must be white (or opaque) where "
            "the image is kept, and black (or transparent) where it is drawn anew"
        )
    return torch.from_numpy(known)
