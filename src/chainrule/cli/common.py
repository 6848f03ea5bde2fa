"""What several commands share: opening models, reading images, names of files, and figures in columns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..core import Tokenizer
    from ..pipeline import Pipeline

# ---------------------------------------------------------------- in


def open_model(name: str, device: str = "cpu") -> Pipeline:
    """The model `name`; raises ValueError if there is none or it cannot be on `device`."""
    from ..zoo import load

    check_device(device)
    return load(name, device)


def open_tokenizer(name: str, device: str = "cpu") -> Tokenizer:
    """The tokenizer of the model `name`, which needs no prior; raises ValueError as `open_model`."""
    from ..zoo import load_tokenizer

    check_device(device)
    return load_tokenizer(name, device)


def open_upscalers(names: Sequence[str] | None, pipeline: Pipeline, device: str) -> Callable[[Tensor], Tensor]:
    """The option --upscaler: from images of a model, uint8 (B, C, H, W), to larger ones; without names, to themselves.

    Raises:
        ValueError: no such upscaler, or one for another number of channels.
    """
    from ..zoo import load_super_resolution

    models, channels = [load_super_resolution(name, device) for name in names or ()], pipeline.tokenizer.image_shape[0]
    for name, model in zip(names or (), models, strict=True):
        if model.config.image_channels != channels:
            raise ValueError(
                f"the upscaler {name} takes images of {model.config.image_channels} channels (1 grey, 3 colour), and "
                f"this model draws {channels}; leave --upscaler {name} out"
            )

    def upscale(images: Tensor) -> Tensor:
        for model in models:
            images = model.upscale(images)
        return images

    return upscale


def check_device(device: str) -> None:
    """Raises ValueError if nothing can be computed on `device`."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def labels_for(model: Pipeline, label: str | None, count: int) -> list[int] | None:
    """The option --label as one class per image."""
    if label is None:
        return None
    if model.class_names is not None and label in model.class_names:
        names = [label]
    else:
        names = [name.strip() for name in label.split(",")]
    if len(names) > count:
        raise ValueError(f"{len(names)} labels are too many for {count} images")
    numbers = [model.label_number(name) for name in names]
    return [numbers[index % len(numbers)] for index in range(count)]


def read_image(path: Path, model: Pipeline, resize: bool) -> Tensor:
    """An image file, in grey or colour as the model is: uint8 (C, H, W).

    Raises:
        ValueError: a missing or damaged file, or another size without `resize`.
    """
    from ..data import load_images

    channels, height, width = model.tokenizer.image_shape
    image = load_images([path], (height, width) if resize else None, channels)[0]
    if tuple(image.shape) != (channels, height, width):
        raise ValueError(
            f"{path} is {image.shape[1]}x{image.shape[2]} but this model needs {height}x{width} (height x width); "
            "add --resize to resize and crop it"
        )
    return image


def read_any_image(path: Path, tokenizer: Tokenizer, resize: bool) -> Tensor:
    """An image file in grey or colour as the tokenizer is, of any size that it takes: uint8 (C, H, W).

    Raises:
        ValueError: a missing or damaged file, or a size it does not take without `resize`.
    """
    from ..data import load_images

    channels, height, width = tokenizer.image_shape
    image = load_images([path], (height, width) if resize else None, channels)
    try:
        tokenizer.check_images(image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; add --resize to resize and crop it to {height}x{width}") from error
    return image[0]


def read_texts(path: Path) -> list[str]:
    """The lines of a file, one text each; an empty line is an empty text.

    Raises:
        ValueError: no such file, no text in UTF-8, or nothing in it.
    """
    try:
        texts = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    if not texts:
        raise ValueError(f"{path} is empty; write one text per line")
    return texts


# ---------------------------------------------------------------- out


def check_file(path: Path, suffix: str, force: bool, option: str = "--out") -> Path:
    """`path`, if a file may be written there.

    Raises:
        ValueError: another suffix, a folder, or a file that exists without `force`.
    """
    if path.suffix.lower() != suffix:
        raise ValueError(f"{option} must be a {suffix} file, got {path}")
    if path.is_dir():
        raise ValueError(f"{option} must be a {suffix} file, but {path} is a folder")
    if path.exists() and not force:
        raise ValueError(f"{path} exists; add --force to replace it, or choose another name with {option}")
    return path


def check_folder(path: Path, force: bool, option: str = "--out") -> Path:
    """`path`, if files may be written into it.

    Raises:
        ValueError: a file, or a folder that is not empty without `force`.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option} must be a folder, but {path} is a file")
    if path.exists() and any(path.iterdir()) and not force:
        raise ValueError(f"the folder {path} is not empty; add --force to write into it, or choose another name")
    return path


def free_name(stem: str, suffix: str = "") -> Path:
    """stem.suffix in the current folder, or stem-2.suffix, stem-3.suffix, … if that is taken."""
    path, number = Path(stem + suffix), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}{suffix}"), number + 1
    return path


def file_stem(text: str) -> str:
    """A name for a file, from a model or a split."""
    return re.sub(r"[^\w.]+", "-", text).strip("-") or "model"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need; those of numbers to the right."""
    table = [headers, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    right = [all(re.fullmatch(r"[-+]?[\d.,]+|", row[column]) for row in rows) for column in range(len(headers))]
    for row in table:
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())
