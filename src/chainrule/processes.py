"""The processes that torchrun started, and how they share work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

T, R = TypeVar("T"), TypeVar("R")


def process() -> tuple[int, int]:
    """The number of this process among those that torchrun started, and how many they are; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def own_device(device: str) -> str:
    """The device of this process: of several GPUs each process of a machine takes its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and process()[1] > 1 else device


@contextmanager
def joined() -> Iterator[tuple[int, int, Callable[[], object]]]:
    """Joins the processes that torchrun started, so that `shared` shares.

    Gives the number of this process, how many they are, and a function that waits for all of them.
    """
    rank, world = process()
    if world == 1:
        yield rank, world, lambda: None
        return
    dist.init_process_group("gloo")
    try:
        yield rank, world, dist.barrier
    finally:
        dist.destroy_process_group()


def shared(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What `function` makes of each item, in order, in every process: of W joined processes each does every W-th item.

    The results are what pickle takes, with tensors on the CPU.
    """
    if (world := _joined()) == 1:
        return [function(item) for item in items]
    mine = [function(item) for number, item in enumerate(items) if number % world == dist.get_rank()]
    parts: list[list[R]] = [[]] * world
    dist.all_gather_object(parts, mine)
    return [parts[number % world][number // world] for number in range(sum(map(len, parts)))]


def agreed(value: bool) -> bool:
    """Whether the value is True in every joined process."""
    return all(shared(lambda _: value, range(_joined())))


def shares(count: int) -> list[range]:
    """The numbers 0..count-1 in parts of equal size, or nearly so, one for each joined process."""
    size = max(1, -(-count // _joined()))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _joined() -> int:
    """How many processes are joined."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
