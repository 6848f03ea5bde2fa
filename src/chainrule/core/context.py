"""What a prior is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Context:
    """The condition of a batch of B images; a field that a model does not use is absent (None).

    label:   int64 (B,), a class
    text:    int64 (B, L), token ids of a caption, padded
    spatial: float (B, C, H, W), a map aligned with the grid that is modelled
    prefix:  int64 (B, P), codes of another image, flattened, which stand before those that are modelled
    """

    label: Tensor | None = None
    text: Tensor | None = None
    spatial: Tensor | None = None
    prefix: Tensor | None = None
