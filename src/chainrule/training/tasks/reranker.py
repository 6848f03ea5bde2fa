"""A reranker: a model that learns which texts and images belong together, to choose among images drawn for a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data import DataConfig, ImageDataset, augment
from ...data.shards import Rows
from ...data.transforms import draw_flips
from ...processes import shared
from ...recipe import Recipe
from ...scorers.reranker import FeatureTower, Reranker, RerankerConfig, contrastive_loss
from ...strict import build_dataclass, section, to_plain
from ...text.bpe import TextConfig
from ...zoo import save
from ..engine.config import EvaluationConfig, TrainingConfig
from ..engine.order import derive_seed
from .captions import Captions, check_captions, learn_text
from .codes import cached_rows
from .examples import Examples, ExamplesTask, load_examples

CHOICES = 100
"""Pictures, or texts, among which the right one is to be found."""


@dataclass(frozen=True)
class PairBatch:
    """Images uint8 (B, C, H, W) or their features float (B, F), token ids int64 (B, L) of their texts, and which texts
    are the same, bool (B, B)."""

    images: Tensor
    text: Tensor
    same: Tensor

    def __len__(self) -> int:
        return len(self.images)


class RerankerTask(ExamplesTask):
    """Trains a `Reranker` with InfoNCE; each process holds its own part of a batch against itself.

    Logged is `accuracy`, the share of a batch whose own counterpart is the nearest.  Measured on the evaluation images
    is top-1 of 100: `text_to_image`, the share of captions that are nearer to their own image than to 99 others, and
    `image_to_text`, that of images that are nearer to their own caption than to those of the same 99.  The others are
    drawn once, from the evaluation images with another caption; of fewer images all are taken.

    The features of a frozen network are computed once for all images and kept on the disk.

    Args:
        model: what is trained.
        examples: images with captions.
        captions: their captions.
        card: plain values to save with the model.
        quiet: whether to show no bar while features are computed.
    """

    def __init__(
        self, model: Reranker, examples: Examples, captions: Captions, card: Mapping[str, Any] = {}, quiet: bool = True
    ) -> None:
        super().__init__(model, examples, card)
        self.captions, self.quiet = captions, quiet
        self.features: list[Tensor | Rows] = []  # of the images and, with flips, of their mirror images

    def keep_features(self, device: torch.device) -> None:
        """Computes the features of all images once, or takes them from the cache, if a frozen network reads them."""
        if isinstance(tower := self.model.image, FeatureTower):
            for mirrored in (False, True)[: 1 + self.data.flip]:
                self.features.append(cached_features(tower, self.training, mirrored, device, self.quiet))

    def setup(self, device: torch.device) -> None:
        super().setup(device)
        if not self.features:
            self.keep_features(device)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> PairBatch:
        if self.features:
            images = self.features[0][indices]
            if self.data.flip:
                flipped = draw_flips(len(indices), generator)[:, None]
                images = torch.where(flipped, self.features[1][indices], images)
            images = images[part].float()
        else:
            images = augment(self.training.batch(indices), self.data, generator).images[part]
        text = self.captions.training[indices]
        same = (text[part, None] == text[None, part]).all(-1)
        return PairBatch(images, self.captions.draw(indices, generator)[part], same)

    def loss(self, model: nn.Module, batch: PairBatch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        images, texts, scale = model(batch.images.to(self.device), batch.text.to(self.device))
        with torch.autocast(self.device.type, enabled=False):  # the scale would magnify what bfloat16 rounds
            loss, accuracy = contrastive_loss(images, texts, scale, batch.same.to(self.device))
        return loss, {"accuracy": accuracy, "scale": scale}

    def evaluate(self, model: Reranker, final: bool) -> dict[str, float]:
        """See the class; empty where there are no two captions to tell apart."""
        indices, size = self.evaluated(final), self.batch_size
        texts = [self.evaluation.texts[index] for index in indices.tolist()]
        if len(set(texts)) < 2:
            return {}
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        images = shared(lambda part: model.encode_images(self.evaluation.images[part]).cpu(), indices.split(size))
        written = shared(lambda part: model.encode_texts(part).cpu(), parts)
        images, written = torch.cat(images), torch.cat(written)
        others = draw_others(texts, CHOICES - 1)
        return {
            "text_to_image": share_nearest(written, images, others),
            "image_to_text": share_nearest(images, written, others),
        }

    def preview(self, model: Reranker, seed: int) -> None:
        """Nothing: the model draws no images."""

    def save(self, model: Reranker, folder: Path, card: dict[str, Any]) -> None:
        save(model, folder, self.card | card)


def cached_features(
    tower: FeatureTower, dataset: ImageDataset, flipped: bool, device: torch.device, quiet: bool
) -> Tensor | Rows:
    """The features of all images float16 (N, F), see `cached_rows`; on the device "meta" without content."""
    if device.type == "meta":
        return torch.zeros(()).expand(len(dataset), tower.size)

    def features(images: Tensor) -> list[Tensor]:
        return [tower.features((images.flip(-1) if flipped else images).to(device))]

    what = "Features of mirror images" if flipped else "Features of images"
    return cached_rows(features, dataset, [np.float16], [*tower.key, dataset.fingerprint, flipped], what, quiet)[0]


def draw_others(texts: list[str], count: int) -> list[Tensor]:
    """For each text `count` others of different content, or all if there are fewer: int64 indices, always the same."""
    generator = torch.Generator().manual_seed(derive_seed("others"))
    found = []
    for text in texts:
        order = torch.randperm(len(texts), generator=generator).tolist()
        found.append(torch.tensor([index for index in order if texts[index] != text][:count]))
    return found


def share_nearest(queries: Tensor, keys: Tensor, others: list[Tensor]) -> float:
    """The share of queries (N, E) with a greater product with their own key, of keys (N, E), than with those of the
    `others`."""
    cosines = queries @ keys.mT
    right = [row[own] > row[other].max() for own, (row, other) in enumerate(zip(cosines, others, strict=True))]
    return torch.stack(right).double().mean().item()


@dataclass(frozen=True, kw_only=True)
class RerankerRecipe(Recipe, kind="reranker"):
    """What to train a reranker on.

    data:       images with captions
    reranker:   fields of `chainrule.scorers.reranker.RerankerConfig`; those of images and texts are the data's
    text:       how captions are read
    training:   how to train
    evaluation: when to evaluate
    """

    data: DataConfig
    reranker: dict[str, Any]
    text: TextConfig = section(TextConfig)
    training: TrainingConfig = section(TrainingConfig, batch_size=128, weight_decay=0.01, channels_last=True)
    evaluation: EvaluationConfig = section(EvaluationConfig)

    def build(
        self, device: torch.device = torch.device("cpu"), quiet: bool = True
    ) -> tuple[RerankerTask, RerankerRecipe]:
        """See `Recipe`."""
        if self.training.sample_every:
            raise ValueError("'training.sample_every' would be ignored by a reranker; leave it out")
        if self.data.binarize != "none":
            raise ValueError("rerankers are trained on images as they are; set data.binarize to none")
        examples = load_examples(self.data, self.evaluation)
        check_captions("text", examples)
        examples = examples.captioned()
        reader = learn_text(self.text, examples)
        given = examples.image_fields() | {"text_length": reader.length, "text_vocab_size": reader.text_vocab_size}
        if taken := [name for name in given if name in self.reranker]:
            raise ValueError(f"'reranker.{taken[0]}' is that of the data and of 'text'; leave it out")
        config = build_dataclass(RerankerConfig, given | self.reranker, "", "reranker")
        own = {name: value for name, value in to_plain(config).items() if name not in given}
        recipe = replace(self, data=examples.data, reranker=own)
        torch.manual_seed(derive_seed(self.training.seed, "weights"))
        captions = Captions(reader, examples, self.text.bpe_dropout)
        task = RerankerTask(Reranker(config, reader), examples, captions, examples.card(recipe), quiet)
        if device.type == "meta":
            task.keep_features(device)
        return task, recipe
