"""Which images a step sees and which noise it draws: functions of the seed and the step alone.

Nothing here remembers anything, so a run that was killed goes on exactly as it would have, and W processes
with batches of B / W see what one process with batches of B sees.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits for a use named by `parts`: the same on every machine, unrelated for other parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_examples: int) -> Tensor:
    """The order of an epoch: a permutation of 0..num_examples-1, int64."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
    return torch.randperm(num_examples, generator=generator)


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> Tensor:
    """The examples of a step, counted from 0: int64 (batch_size,).

    Steps walk through epoch after epoch; a batch may begin in one and end in the next.
    """
    parts, position, missing = [], step * batch_size, batch_size
    while missing:
        epoch, start = divmod(position, num_examples)
        part = epoch_order(seed, epoch, num_examples)[start : start + missing]
        parts.append(part)
        position, missing = position + len(part), missing - len(part)
    return torch.cat(parts)


def batch_generator(seed: int, step: int) -> torch.Generator:
    """The generator of what is drawn for the whole batch of a step (binarisation, flips)."""
    return torch.Generator().manual_seed(derive_seed(seed, "batch", step))


def batch_parts(batch_size: int, processes: int, process: int, count: int) -> list[slice]:
    """The part of a batch of `batch_size` images that a process works on, cut into `count` parts of equal size."""
    size = batch_size // processes // count
    starts = range(process * count * size, (process + 1) * count * size, size)
    return [slice(start, start + size) for start in starts]
