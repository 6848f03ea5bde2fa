"""Rejection by a scorer: of several candidates for an image the best is kept.

VQ-VAE-2 (Razavi et al. 2019, arXiv:1906.00446) scores samples by the probability that a classifier gives their class,
DALL-E (Ramesh et al. 2021, arXiv:2102.12092) by the agreement of image and text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .sampling import image_seeds

Scorer = Callable[[Tensor], Tensor]
"""Images uint8 (B, C, H, W) -> scores (B,), more is better; image i is always one for the i-th context."""


def keep_best(draw: Callable[[list[int]], Tensor], seeds: Sequence[int], num_candidates: int, scorer: Scorer) -> Tensor:
    """The best of `num_candidates` for each seed; candidates depend on the image's seed alone, as the image does.

    Args:
        draw: one image per seed, (B, ...).
        seeds: of the B images.
        num_candidates: per image; all B images are drawn and scored this many times.
        scorer: judges the images of one round.

    Returns:
        Images (B, ...); of equal scores the first candidate is kept.

    Raises:
        ValueError: fewer than one candidate, or scores that are not one number per image.
    """
    if num_candidates < 1:
        raise ValueError(f"the number of candidates must be at least 1, got {num_candidates}")
    candidates = [image_seeds(seed, num_candidates) for seed in seeds]
    best = best_scores = None
    for each in zip(*candidates, strict=True):
        images = draw(list(each))
        scores = scorer(images).to(images.device)
        if tuple(scores.shape) != (len(seeds),) or scores.isnan().any():
            raise ValueError(f"a scorer must give {len(seeds)} numbers, one per image, got {tuple(scores.shape)}")
        if best is None:
            best, best_scores = images, scores
            continue
        better = scores > best_scores
        best = torch.where(better.view(-1, *[1] * (images.ndim - 1)), images, best)
        best_scores = torch.where(better, scores, best_scores)
    return best
