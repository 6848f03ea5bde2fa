"""The likelihood of a data set, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Batch, ImageDataset, binarize
from ..processes import shared

CHUNK = 1000
"""Images that are binarised at once, so that the noise of an image does not depend on the batch size."""


@dataclass(frozen=True)
class Likelihood:
    """-log p per image in nats: less is better.

    nats:           mean over images, and over seeds
    standard_error: of `nats`, over images (each taken as its mean over seeds); None for one image
    per_seed:       mean over images for each seed
    seed_std:       standard deviation of `per_seed`; None for one seed
    num_images:     number of images
    """

    nats: float
    standard_error: float | None
    per_seed: tuple[float, ...]
    seed_std: float | None
    num_images: int

    @property
    def bits_per_image(self) -> float:
        """`nats` in bits: what an arithmetic coder would spend on the codes of an image."""
        return self.nats / math.log(2)

    def nats_per_code(self, length: int) -> float:
        """`nats` per code; an image has `length` codes."""
        return self.nats / length


def likelihood(
    log_prob: Callable[[Batch], Tensor],
    dataset: ImageDataset,
    binarization: str = "none",
    seeds: Sequence[int] = (0,),
    batch_size: int = 100,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Likelihood:
    """Mean of -log p over all images of a data set; joined processes share them (`chainrule.processes`).

    Args:
        log_prob: a batch -> log p of each image in nats, (B,).
        dataset: the images, with labels where `log_prob` needs them.
        binarization: "none", "threshold" or "sample", see `chainrule.data.binarize`.
        seeds: with "sample", the whole is repeated for each; the noise of an image depends on the seed and
            on its place in the data set.
        batch_size: does not change the figure, rounding apart.
        on_batch: is told the number of images done, over all seeds.

    Raises:
        ValueError: no image, no seed, a batch size below 1, or several seeds where nothing is sampled.
    """
    if not len(dataset) or not seeds or batch_size < 1:
        given = f"{len(dataset)}, {len(seeds)} and {batch_size}"
        raise ValueError(f"images, seeds and batch_size must be at least 1, got {given}")
    if binarization != "sample" and len(seeds) > 1:
        raise ValueError("several seeds would give the same figure: nothing is drawn unless binarization is sample")
    done = 0

    def batches() -> Iterator[Batch]:
        for seed in seeds:
            yield from _batches(dataset, binarization, seed, batch_size)

    def measure(batch: Batch) -> Tensor:
        nonlocal done
        found = -log_prob(batch).detach().cpu().double()
        on_batch(done := done + len(batch))
        return found

    nats = torch.cat(shared(measure, batches())).view(len(seeds), len(dataset))
    per_image, per_seed = nats.mean(0), nats.mean(1)
    return Likelihood(
        nats=nats.mean().item(),
        standard_error=(per_image.std() / math.sqrt(len(dataset))).item() if len(dataset) > 1 else None,
        per_seed=tuple(per_seed.tolist()),
        seed_std=per_seed.std().item() if len(seeds) > 1 else None,
        num_images=len(dataset),
    )


def _batches(dataset: ImageDataset, binarization: str, seed: int, batch_size: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(dataset), CHUNK):
        chunk = dataset.batch(torch.arange(start, min(start + CHUNK, len(dataset))))
        images = binarize(chunk.images, binarization, generator)
        for first in range(0, len(chunk), batch_size):
            part = slice(first, first + batch_size)
            labels, texts = (each if each is None else each[part] for each in (chunk.labels, chunk.texts))
            yield Batch(images[part], labels, texts)
