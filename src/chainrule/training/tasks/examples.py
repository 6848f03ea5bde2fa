"""The images that a task learns from and is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...data import DataConfig, ImageDataset, folder_names, load, with_size
from ...data.shards import StoredCodes
from ...recipe import Recipe
from ..engine.config import EvaluationConfig
from ..engine.task import Adversary, Task

if TYPE_CHECKING:
    from .captions import Captions


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Images to learn from and images to be judged by.

    data:       how the training images are prepared
    training:   images to learn from
    evaluation: images to be judged by
    limit:      number of evaluation images, at equal distances, that serve while training
    batch_size: of evaluation
    codes:      of streamed images: those of the training images and, with flips, of their mirror images, and those of
                the evaluation images; the pixels are not kept
    """

    data: DataConfig
    training: ImageDataset
    evaluation: ImageDataset
    limit: int = 1000
    batch_size: int = 100
    codes: tuple[list[StoredCodes], StoredCodes] | None = None

    def image_fields(self) -> dict[str, int]:
        """The size of the images, as the configs of models have it."""
        return dict(zip(("image_channels", "image_height", "image_width"), self.training.image_shape, strict=True))

    @property
    def labels_are_meant(self) -> bool:
        """Whether the user has labelled the images: by a column that is named, or by one folder per class."""
        if self.training.labels is None or self.data.label_column is not None or self.codes is not None:
            return self.training.labels is not None
        names = self.training.class_names
        return bool(names) and folder_names(Path(self.data.source).expanduser()).issuperset(names)

    def captioned(self) -> Examples:
        """The examples without images that have no caption.

        Raises:
            ValueError: none has one.
        """
        parts = []
        for images in (self.training, self.evaluation):
            rows = torch.tensor([row for row, text in enumerate(images.texts or ()) if text], dtype=torch.int64)
            if not len(rows):
                raise ValueError(f"images with captions are needed, but {images.name} has none; see data.text_column")
            parts.append(images if len(rows) == len(images) else images.select(rows))
        return replace(self, training=parts[0], evaluation=parts[1])

    def matched(self, names: Sequence[str] | None, count: int, whose: str) -> Examples:
        """The examples with the class numbers of a trained model, see `ImageDataset.matched`."""
        parts = (images.matched(names, count, whose) for images in (self.training, self.evaluation))
        return replace(self, **dict(zip(("training", "evaluation"), parts, strict=True)))

    def card(self, recipe: Recipe) -> dict[str, Any]:
        """Entries of the card of a model, without paths of this machine.

        recipe:     in full
        trained_on: fingerprints of the images, and the name of their folder if they come from one of this machine
        """
        plain = recipe.plain()
        plain["data"] |= {"source": self.training.name}
        for section in ("tokenizer", "prior"):
            if "path" in (model := plain.get(section, {})):
                plain[section] = model | {"path": Path(model["path"]).name}
        trained_on = {"training": self.training.fingerprint, "evaluation": self.evaluation.fingerprint}
        if self.training.path is not None:
            trained_on["folder"] = self.training.name
        return {"recipe": plain, "trained_on": trained_on}


def load_examples(data: DataConfig, evaluation: EvaluationConfig, largest: int = 64) -> Examples:
    """The images of a recipe, at a chosen size up to `largest` where it gives none.

    Raises:
        ValueError: images that cannot be had, or of several sizes.
    """
    if data.stream:
        raise ValueError("stream is for priors over the codes of a trained tokenizer; leave it out")
    data = with_size(data, largest)
    training = load(data)
    of_evaluation = replace(data, split=evaluation.split, flip=False, captions="first")
    judged = load(of_evaluation, training.account.findings)
    if judged.image_shape != training.image_shape:
        raise ValueError(
            f"the images of split {data.split} are {training.image_shape} and those of {evaluation.split} "
            f"{judged.image_shape} (channels, height, width); set data.size"
        )
    judged = judged.matched(training.class_names, training.num_classes or 0, f"the split {data.split}")
    data = replace(data, source=training.path or data.source)
    return Examples(
        data=data, training=training, evaluation=judged, limit=evaluation.limit, batch_size=evaluation.batch_size
    )


def sized(data: DataConfig, shape: tuple[int, int, int], factor: int = 1) -> DataConfig:
    """The data at the size of a trained model, `factor` times (C, H, W), where they have none of their own."""
    return data if data.size is not None else replace(data, size=(factor * shape[1], factor * shape[2]))


class ExamplesTask(Task):
    """What the tasks of this package have in common, which all learn from images.

    Args:
        model: what is trained.
        examples: the images.
        card: plain values to save with the model.
    """

    adversary: Adversary | None = None
    captions: Captions | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, examples: Examples, card: Mapping[str, Any]) -> None:
        self.model, self.card = model, card
        self.data, self.training, self.evaluation = examples.data, examples.training, examples.evaluation
        self.limit, self.batch_size = examples.limit, examples.batch_size
        self.num_examples = len(examples.training)
        self.device = torch.device("cpu")

    def setup(self, device: torch.device) -> None:
        """Remembers the device."""
        self.device = device

    def identity(self) -> dict[str, Any]:
        """Fingerprints of the images, names of the classes, and the hash of the vocabulary of captions."""
        names, reader = self.training.class_names, self.captions and self.captions.tokenizer
        return {
            "classes": None if names is None else list(names),
            "training images": self.training.fingerprint,
            "evaluation images": self.evaluation.fingerprint,
            "vocabulary": reader and reader.hash(),
        }

    def evaluated(self, final: bool) -> Tensor:
        """Which evaluation images serve, int64 (N,): all, or `limit` at equal distances, since many are sorted."""
        return self.evaluation.spread(None if final else self.limit)
