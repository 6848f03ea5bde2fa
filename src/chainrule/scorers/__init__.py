"""Models that judge images, so that the best of several candidates can be kept (`decoding.rejection`)."""

from __future__ import annotations

import os
from typing import Any


def load_scorer(name: str | os.PathLike, device: str = "cpu") -> Any:
    """A trained scorer, ready to judge.

        scorer = load_scorer("runs/emoji_classifier")
        images = model.sample(16, "Flags", best_of=8, scorer=scorer.for_labels("Flags"))

    Args:
        name: the folder of a saved scorer or of its run.
        device: where it computes.

    Raises:
        ValueError: nothing of that name, a model of another kind, or damaged files.
    """
    from ..pipeline import find, read_config
    from .classifier import Classifier

    kinds = {"classifier": Classifier}
    folder = find(name)
    kind = read_config(folder).get("kind")
    if kind not in kinds:
        raise ValueError(f"{folder} holds no scorer; there are scorers of the kinds {', '.join(kinds)}")
    return kinds[kind].read(folder).to(device)
