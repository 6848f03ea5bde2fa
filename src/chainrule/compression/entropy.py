"""Codes <-> bytes by a range coder, with the probabilities that a runner gives step by step.

The coder works with integers: it rounds each distribution to multiples of 2^-24, none of them 0.  The decoder must make
the same integers, so both directions must call the same steps, on a batch of the same size and in as many threads.  A
stream costs -log2 p of its codes, at most 8 bytes for its end, and well below 0.1% for the rounding.

(Martin 1979: range encoding; Bamler 2022: the library constriction.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import Context, Runner

OnStep = Callable[[int], None]
"""Called after each step with the number of codes per image that are done."""


def coder_library() -> Any:
    """The package constriction; raises ValueError where it is not installed."""
    try:
        import constriction
    except ImportError as error:
        raise ValueError('compression needs constriction, which pip install "chainrule[compression]" adds') from error
    return constriction


@torch.no_grad()
def encode(runner: Runner, context: Context, codes: Tensor, known: int = 0, on_step: OnStep | None = None) -> bytes:
    """The stream of a batch of codes.

    Args:
        runner: of any prior.
        context: of B images.
        codes: int64 (B, T), flattened by the prior's `spec`.
        known: leading codes that the decoder has already, such as the text of a joint stream.
    """
    stream = coder_library().stream
    coder, family = stream.queue.RangeEncoder(), stream.model.Categorical(perfect=False)
    symbols = codes.T.cpu().numpy().astype(np.int32)
    state, previous = runner.init_state(len(codes), context), torch.zeros_like(codes[:, 0])
    for t in range(codes.shape[1]):
        logits, state = runner.step(previous, state)
        previous = codes[:, t]
        if t >= known:
            coder.encode(np.ascontiguousarray(symbols[t]), family, _probabilities(logits))
        if on_step is not None:
            on_step(t + 1)
    return coder.get_compressed().astype("<u4").tobytes()


@torch.no_grad()
def decode(runner: Runner, context: Context, stream: bytes, known: Tensor, on_step: OnStep | None = None) -> Tensor:
    """The codes of a stream, int64 (B, T).

    Args:
        runner, context: as in `encode`.
        stream: what `encode` gave.
        known: the leading codes that `encode` left out, int64 (B, number), with number 0 for none.

    Raises:
        ValueError: the stream fits the probabilities so badly that no codes can be read.
    """
    library = coder_library().stream
    words = np.frombuffer(stream, dtype="<u4").astype(np.uint32)
    coder, family = library.queue.RangeDecoder(words), library.model.Categorical(perfect=False)
    batch_size, number = known.shape
    codes = torch.zeros(batch_size, runner.prior.spec.length, dtype=torch.int64, device=runner.device)
    codes[:, :number] = known
    state, previous = runner.init_state(batch_size, context), torch.zeros_like(codes[:, 0])
    for t in range(codes.shape[1]):
        logits, state = runner.step(previous, state)
        if t >= number:
            try:
                symbols = coder.decode(family, _probabilities(logits))
            except AssertionError as error:
                raise ValueError(str(error)) from error
            codes[:, t] = torch.from_numpy(symbols.astype(np.int64))
        previous = codes[:, t]
        if on_step is not None:
            on_step(t + 1)
    return codes


def _probabilities(logits: Tensor) -> np.ndarray:
    """Logits (B, K) -> float32 (B, K), which the coder rounds to integers."""
    return logits.double().softmax(-1).float().cpu().numpy()
