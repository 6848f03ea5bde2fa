"""Models that judge images, so that the best of several candidates can be kept (`decoding.rejection`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def load_scorer(name: str | os.PathLike, device: str = "cpu") -> Any:
    """A trained scorer, ready to judge.

        scorer = load_scorer("runs/emoji_classifier")
        images = model.sample(16, "Flags", best_of=8, scorer=scorer.for_labels("Flags"))

    Args:
        name: a bundled scorer, the folder of a saved one or of its run, or the name of a public CLIP: a folder of the
            package transformers, or a hub id such as "openai/clip-vit-base-patch32".
        device: where it computes.

    Raises:
        ValueError: nothing of that name, a model of another kind, damaged files, or a missing package.
    """
    from ..saving.folder import read_config
    from ..saving.hub import find, models
    from .classifier import Classifier
    from .public_clip import PublicCLIP
    from .reranker import Reranker

    path = Path(name)
    ours = os.fspath(name) in models() or any((part / "config.yaml").is_file() for part in (path, path / "model"))
    if not ours:
        return PublicCLIP(os.fspath(name), device)
    kinds = {"classifier": Classifier, "contrastive": Reranker}
    folder = find(path)
    kind = read_config(folder).get("kind")
    if kind not in kinds:
        raise ValueError(f"{folder} holds no scorer; there are scorers of the kinds {', '.join(kinds)}")
    return kinds[kind].read(folder).to(device)
