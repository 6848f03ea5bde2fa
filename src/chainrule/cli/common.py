"""What several commands read: models, labels, images and texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..core import Tokenizer
    from ..pipeline import Pipeline


def open_model(name: str, device: str = "cpu") -> Pipeline:
    """The model `name`; raises ValueError if there is none or it cannot be on `device`."""
    from ..zoo import load_kind

    check_device(device)
    return load_kind(name, "pipeline", device=device)


def open_tokenizer(name: str, device: str = "cpu") -> Tokenizer:
    """The tokenizer of the model `name`, which needs no prior; raises ValueError as `open_model`."""
    from ..zoo import load_tokenizer

    check_device(device)
    return load_tokenizer(name, device)


def check_device(device: str) -> None:
    """Raises ValueError if nothing can be computed on `device`."""
    import torch

    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ValueError) as error:  # "meta" holds no numbers
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] * torch.backends.mps.is_available()
        raise ValueError(f"the device {device!r} cannot be used; there are: {', '.join(there)}") from error


def labels_for(model: Pipeline, label: str | None, count: int) -> Tensor | None:
    """The option --label as the number of one class per image, int64 (count,)."""
    import torch

    if label is None:
        return None
    whole = model.class_names is not None and label in model.class_names
    names = [label] if whole else [name.strip() for name in label.split(",")]
    if len(names) > count:
        raise ValueError(f"{len(names)} labels are too many for {count} images")
    numbers = [model.label_number(name) for name in names]
    return torch.tensor([numbers[index % len(numbers)] for index in range(count)])


def size_of(text: str | None) -> tuple[int, int] | None:
    """The option --size as (height, width)."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split("x")]
        height, width = numbers * 2 if len(numbers) == 1 else numbers
    except ValueError:
        raise ValueError(f"--size must be a number such as 28, or height x width such as 28x32, got {text!r}") from None
    return height, width


def read_image(path: Path, tokenizer: Tokenizer, resize: bool, any_size: bool = False) -> Tensor:
    """An image file, in grey or colour as the tokenizer is: uint8 (C, H, W), of its size or of `any_size` it takes.

    Raises:
        ValueError: a missing or damaged file, or another size without `resize`.
    """
    from ..data import load_images
    from ..data.images import header_size
    from ..saving.code_file import MAX_PIXELS

    channels, height, width = tokenizer.image_shape
    if not resize:
        try:
            large = math.prod(header_size(path)) > MAX_PIXELS
        except Exception:  # whatever Pillow raises; load_images says what is wrong
            large = False
        if large:
            raise ValueError(f"{path} has more than {MAX_PIXELS:,} pixels; add --resize, or cut it into tiles")
    image = load_images([path], (height, width) if resize else None, channels)
    if not any_size and image.shape[2:] != (height, width):
        raise ValueError(
            f"{path} is {image.shape[2]}x{image.shape[3]} but this model needs {height}x{width} (height x width); "
            "add --resize to resize and crop it"
        )
    try:
        tokenizer.check_images(image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; add --resize to resize and crop it to {height}x{width}") from error
    return image[0]


def seeds_for(seed: int, seeds: str | None, n: int | None, default: int) -> list[int]:
    """The options --seed, --seeds and -n as one seed per image; without -n they are as many as --seeds, or `default`.

    Raises:
        ValueError: options that exclude each other, or something that is no number.
    """
    from ..decoding import image_seeds

    if seeds is None:
        return image_seeds(seed, default if n is None else n)
    if seed != 0:
        raise ValueError("--seed would be ignored: --seeds gives each image its own; leave one of them out")
    try:
        numbers = [int(one) for one in seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds must be whole numbers with commas, as 3,17,42, got {seeds!r}") from None
    if n not in (None, len(numbers)):
        raise ValueError(f"--seeds gives {len(numbers)} seeds, but -n asks for {n} images; leave -n out")
    if min(numbers) < 0 or max(numbers) >= 2**63:
        raise ValueError(f"a seed must lie in 0..{2**63 - 1}")
    return numbers


def read_texts(path: Path) -> list[str]:
    """The lines of a file, one text each; an empty line is an empty text.

    Raises:
        ValueError: no text in UTF-8 or UTF-16, or nothing in it.
    """
    from ..files import read_lines

    texts = read_lines(path)
    if not texts:
        raise ValueError(f"{path} is empty; write one text per line")
    return texts
