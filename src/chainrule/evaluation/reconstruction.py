"""How much of an image a tokenizer keeps: PSNR, SSIM, perceptual distance, over images and over a data set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Tokenizer
from ..core.values import as_tensor
from ..data import ImageDataset
from ..processes import shared
from ..progress import progress
from ..scorers.features import FeatureNetwork, perceptual_distance
from .codebook import CodebookUse, CodeCounts, bits_per_image
from .frechet import frechet_distance

MAX_PSNR = 100.0
"""dB, of an image that is reconstructed exactly, for which the formula gives infinity."""
WINDOW, SIGMA = 11, 1.5


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images: 10 log10(255^2 / mean squared error) dB, at most `MAX_PSNR`.

    Args:
        a, b: uint8 (B, C, H, W).

    Returns:
        float64 (B,).

    Examples:
        >>> black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        >>> f"{psnr(black, black + 1).item():.2f} dB"
        '48.13 dB'
    """
    a, b = _pair(a, b)
    error = (a.double() - b.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error)).clamp(max=MAX_PSNR)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13): mean over channels and places of an 11x11 Gaussian window.

    sigma 1.5, K1 0.01, K2 0.03, levels 0..255; only places where the whole window lies in the image.

    Args:
        a, b: uint8 (B, C, H, W).

    Returns:
        float64 (B,), 1 for equal images.

    Raises:
        ValueError: an image that is smaller than the window.
    """
    a, b = _pair(a, b)
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW}x{WINDOW}, got {a.shape[2]}x{a.shape[3]}")
    count = len(a)
    a, b = (x.double().flatten(0, 1)[:, None] for x in (a, b))
    places = torch.arange(WINDOW, dtype=torch.float64, device=a.device) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    return similarity.view(count, -1).mean(1)


@torch.no_grad()
def perceptual(a: Tensor, b: Tensor, network: FeatureNetwork) -> Tensor:
    """`perceptual_distance` of images uint8 (B, C, H, W): float (B,)."""
    a, b = _pair(a, b)
    return perceptual_distance(network(a.float() / 255), network(b.float() / 255), network.weights)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Images of one shape as tensors."""
    a, b = as_tensor(a, "images"), as_tensor(b, "images")
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4 or a.shape != b.shape:
        given = " and ".join(f"{str(x.dtype)[6:]} {tuple(x.shape)}" for x in (a, b))
        raise ValueError(f"images and reconstructions must be uint8 (B, C, H, W) of one shape, got {given}")
    return a, b


# ---------------------------------------------------------------- of single images


@dataclass(frozen=True)
class ReconstructedImage:
    """An image after encoding and decoding, and how near it is to the original.

    image:      uint8 (C, H, W)
    error:      absolute difference from the original, mean over channels, float (H, W), 0..255
    psnr, ssim: in dB, and at most 1; larger is better
    perceptual: `perceptual_distance`, smaller is better; None: not measured
    """

    image: Tensor
    error: Tensor
    psnr: float
    ssim: float
    perceptual: float | None

    def figures(self) -> dict[str, float]:
        """The figures that were measured, by name."""
        found = {"psnr": self.psnr, "ssim": self.ssim, "perceptual": self.perceptual}
        return {name: value for name, value in found.items() if value is not None}


@torch.no_grad()
def reconstruct(
    tokenizer: Tokenizer, images: Sequence[Tensor], network: FeatureNetwork | None = None, precision: str = "float32"
) -> list[ReconstructedImage]:
    """Encodes and decodes images, one by one: they may differ in size.

    Args:
        tokenizer: on any device.
        images: uint8 (C, H, W) each.
        network: features of the perceptual distance, on the same device; None: it is not measured.
        precision: of the tokenizer, see `Tokenizer.packed`.

    Raises:
        ValueError: images that the tokenizer or SSIM cannot take, or a precision that it does not compute in.
    """
    packed, found = tokenizer.packed(precision), []
    with progress("Reconstructing", len(images), "images") as done:
        for image in images:
            original = as_tensor(image, "image")[None].to(tokenizer.device)
            result = packed.decode(packed.encode(original))
            distance = None if network is None else perceptual(original, result, network).item()
            error = (original.float() - result.float()).abs().mean(1)[0].cpu()
            figures = psnr(original, result).item(), ssim(original, result).item(), distance
            found.append(ReconstructedImage(result[0].cpu(), error, *figures))
            done(len(found))
    return found


# ---------------------------------------------------------------- over a data set


@dataclass(frozen=True)
class Mean:
    """A mean over images with its standard error (None for one image)."""

    value: float
    standard_error: float | None

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """The mean of one value per image, (N,)."""
        error = (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None
        return cls(values.mean().item(), error)


@dataclass(frozen=True)
class TokenizerQuality:
    """What a tokenizer keeps of the images of a data set, and at what cost.

    psnr, ssim:          mean over images; dB, and at most 1
    perceptual, frechet: `perceptual_distance`, Fréchet distance of images and reconstructions; None: not measured, as
                         the latter is not for one image
    features:            what both are made of; None with them
    codebooks:           use of the codes over the data set
    bits_per_image:      of the codes
    encode_seconds, decode_seconds: of 100 images; not the same in every run
    num_images:          number of images
    """

    psnr: Mean
    ssim: Mean
    perceptual: Mean | None
    frechet: float | None
    features: str | None
    codebooks: tuple[CodebookUse, ...]
    bits_per_image: float
    encode_seconds: float
    decode_seconds: float
    num_images: int


@torch.no_grad()
def tokenizer_quality(
    tokenizer: Tokenizer,
    dataset: ImageDataset,
    network: FeatureNetwork | None,
    batch_size: int = 32,
    on_batch: Callable[[int], object] = lambda count: None,
) -> TokenizerQuality:
    """Encodes and decodes all images of a data set; joined processes share them (`chainrule.processes`).

    Args:
        tokenizer: on any device.
        dataset: images of a size that it takes.
        network: features of the perceptual and of the Fréchet distance, on the same device; None: neither.
        batch_size: does not change the figures, rounding and seconds apart.
        on_batch: is told the number of images done.

    Raises:
        ValueError: images that the tokenizer or SSIM cannot take, or none.
    """
    count = len(dataset)
    if count < 1 or batch_size < 1:
        raise ValueError(f"images and batch_size must be at least 1, got {count} and {batch_size}")
    device, counts, done = tokenizer.device, CodeCounts(tokenizer.spec), 0

    def measure(start: int) -> dict[str, Any]:
        nonlocal done
        images = dataset.images[start : start + batch_size].to(device)
        since = _now(device)
        codes = tokenizer.encode(images)
        between = _now(device)
        reconstructions = tokenizer.decode(codes)
        seconds = torch.tensor([[between - since, _now(device) - between]])
        bits = torch.tensor([bits_per_image(tokenizer.spec, codes)], dtype=torch.float64)
        row = {"seconds": seconds, "bits": bits}
        row |= {"psnr": psnr(images, reconstructions), "ssim": ssim(images, reconstructions)}
        if network is not None:
            row["perceptual"] = perceptual(images, reconstructions, network)
            row["images"] = network.pooled(images.float() / 255)
            row["reconstructions"] = network.pooled(reconstructions.float() / 255)
        on_batch(done := done + len(images))
        return {name: value.cpu() for name, value in row.items()} | {"codes": CodeCounts(tokenizer.spec).add(codes)}

    rows = shared(measure, range(0, count, batch_size))
    for row in rows:
        counts.merge(row.pop("codes"))
    found = {name: torch.cat([row[name] for row in rows]).double() for name in rows[0]}
    encode_seconds, decode_seconds = (100 * found["seconds"].sum(0) / count).tolist()
    return TokenizerQuality(
        psnr=Mean.of(found["psnr"]),
        ssim=Mean.of(found["ssim"]),
        perceptual=None if network is None else Mean.of(found["perceptual"]),
        frechet=None if network is None or count < 2 else frechet_distance(found["images"], found["reconstructions"]),
        features=None if network is None else network.title,
        codebooks=counts.use(),
        bits_per_image=found["bits"][0].item(),
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
        num_images=count,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
