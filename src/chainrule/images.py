"""Images as pictures: uint8 (B, C, H, W), grey or colour, to PIL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .core.checks import check_images
from .core.values import as_tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def to_pil(images: Tensor) -> list[Image]:
    """Images uint8 (B, C, H, W), C 1 or 3 -> B pictures, grey ("L") or colour ("RGB").

    Raises:
        ValueError: on another type or shape.

    Examples:
        >>> pictures = to_pil(torch.zeros(2, 3, 16, 24, dtype=torch.uint8))
        >>> len(pictures), pictures[0].mode, pictures[0].size
        (2, 'RGB', (24, 16))
    """
    from PIL import Image

    images = as_tensor(images, "images")
    check_images(images)
    array = images.cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in array]


def grid(images: Tensor, columns: int | None = None, scale: int = 1) -> Image:
    """Images uint8 (B, C, H, W) side by side in one picture, on grey.

    Args:
        columns: images in a row; None: about as many as there are rows.
        scale: each pixel becomes scale x scale.

    Raises:
        ValueError: no image, another type or shape, or a number below 1.

    Examples:
        >>> grid(torch.zeros(6, 1, 28, 28, dtype=torch.uint8), columns=3, scale=2).size
        (176, 118)
    """
    from PIL import Image

    return Image.fromarray(image_grid(images, columns, scale))


def image_grid(images: Tensor, columns: int | None = None, scale: int = 1) -> np.ndarray:
    """As `grid`, as an array uint8 (H', W', 3)."""
    images = as_tensor(images, "images")
    check_images(images)
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if min(count, columns, scale) < 1:
        raise ValueError(f"images, columns and scale must be at least 1, got {count}, {columns} and {scale}")
    gap, rows = min(scale, 2), math.ceil(count / columns)
    array = images.cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    array = array.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale + gap, width * scale + gap
    picture = np.full((rows * height + gap, columns * width + gap, 3), 128, np.uint8)
    for index, image in enumerate(array):
        top, left = index // columns * height + gap, index % columns * width + gap
        picture[top : top + height - gap, left : left + width - gap] = image
    return picture


def extend(image: Tensor, mask: Tensor) -> Tensor:
    """Known pixels extended over the unknown ones, ring by ring, each the mean of its neighbours known by then.

    Args:
        image: uint8 (C, H, W).
        mask: bool (H, W), True where the image is known; if nowhere, the image stays as it is.

    Raises:
        ValueError: an image of another type or shape.
    """
    check_images(image[None])
    mask = mask.to(image.device)
    if not mask.any():
        return image
    pixels, known = image[None].float(), mask[None, None].float()
    while not known.all():
        near = F.avg_pool2d(known, 3, 1, 1)
        mean = F.avg_pool2d(pixels * known, 3, 1, 1) / near.clamp_min(0.1)  # a ninth or more wherever it is used
        pixels, known = torch.where(known > 0, pixels, mean), (near > 0).float()
    return pixels[0].round().to(torch.uint8)
