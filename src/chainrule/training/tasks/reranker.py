"""A reranker: a model that learns which texts and images belong together, to choose among images drawn for a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data import DataConfig, ImageDataset, augment
from ...recipe import Recipe
from ...scorers.reranker import CLIP, Reranker, RerankerConfig, contrastive_loss
from ...strict import build_dataclass, to_plain
from ...text.bpe import TextTokenizer
from ..engine.order import derive_seed
from ..engine.task import DataTask
from .prior import drop_merges, learn_text, load_examples, recipe_card, refuse_options_of_priors

CHOICES = 100
"""Pictures, or texts, among which the right one is to be found."""


@dataclass(frozen=True)
class PairBatch:
    """Images uint8 (B, C, H, W), token ids int64 (B, L) of their texts, and which texts are the same, bool (B, B)."""

    images: Tensor
    text: Tensor
    same: Tensor

    def __len__(self) -> int:
        return len(self.images)


class ContrastiveTask(DataTask):
    """Trains a `CLIP` with InfoNCE; each process holds its own part of a batch against itself.

    Logged is `accuracy`, the share of a batch whose own counterpart is the nearest.  Measured on the evaluation images
    is top-1 of 100: `text_to_image`, the share of captions that are nearer to their own image than to 99 others, and
    `image_to_text`, that of images that are nearer to their own caption than to those of the same 99.  The others are
    drawn once, from the evaluation images with another caption; of fewer images all are taken.

    Args:
        model: what is trained.
        data: how training images are prepared.
        training: training images with captions.
        evaluation: images with captions to evaluate on.
        text_tokenizer: reads the captions.
        bpe_dropout: share of merges left out of a training caption, at each visit anew.
        limit: number of evaluation images that serve while training.
        batch_size: of evaluation.
        card: plain values to save with the model.
    """

    def __init__(
        self,
        model: CLIP,
        data: DataConfig,
        training: ImageDataset,
        evaluation: ImageDataset,
        text_tokenizer: TextTokenizer,
        bpe_dropout: float = 0.0,
        limit: int = 1000,
        batch_size: int = 100,
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, data, training, evaluation, limit, batch_size, card)
        self.text_tokenizer, self.bpe_dropout = text_tokenizer, bpe_dropout
        self.training_text = text_tokenizer.encode(training.texts)

    def batch(self, indices: Tensor, part: slice, generator: torch.Generator) -> PairBatch:
        images = augment(self.training.batch(indices), self.data, generator).images[part]
        text = self.training_text[indices]
        same = (text[part, None] == text[None, part]).all(-1)
        if self.bpe_dropout:
            text = drop_merges(self.text_tokenizer, self.training.texts, indices, self.bpe_dropout, generator)
        return PairBatch(images, text[part], same)

    def loss(self, model: nn.Module, batch: PairBatch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        images, texts, scale = model(batch.images.to(self.device), batch.text.to(self.device))
        with torch.autocast(self.device.type, enabled=False):  # the scale would magnify what bfloat16 rounds
            loss, accuracy = contrastive_loss(images, texts, scale, batch.same.to(self.device))
        return loss, {"accuracy": accuracy, "scale": scale}

    def evaluate(self, model: CLIP, final: bool) -> dict[str, float]:
        """See the class; empty where there are no two captions to tell apart."""
        count = self.num_evaluated(final)
        texts = self.evaluation.texts[:count]
        if len(set(texts)) < 2:
            return {}
        scorer, size = Reranker(model, self.text_tokenizer), self.batch_size
        images = torch.cat([scorer.encode_images(part) for part in self.evaluation.images[:count].split(size)])
        written = torch.cat([scorer.encode_texts(texts[start : start + size]) for start in range(0, count, size)])
        others = draw_others(texts, CHOICES - 1)
        return {
            "text_to_image": share_nearest(written.cpu(), images.cpu(), others),
            "image_to_text": share_nearest(images.cpu(), written.cpu(), others),
        }

    def preview(self, model: CLIP, seed: int) -> None:
        """Nothing: the model draws no images."""

    def save(self, model: CLIP, folder: Path, card: dict[str, Any]) -> None:
        Reranker(model, self.text_tokenizer, self.card | card).save(folder)


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


def contrastive_task(recipe: Recipe) -> tuple[ContrastiveTask, dict[str, Any]]:
    """The task of a recipe with a reranker, and the recipe in full, every default written out, as plain values.

    Raises:
        ValueError: data or values that do not go together.
    """
    refuse_options_of_priors(recipe)
    if recipe.data.binarize != "none":
        raise ValueError(f"{recipe.where}: rerankers are trained on images as they are; set data.binarize to none")
    training, evaluation = load_examples(recipe)
    text_tokenizer = learn_text(recipe.text, training, evaluation, recipe.where)
    channels, height, width = training.image_shape
    given = {
        "image_height": height, "image_width": width, "image_channels": channels,
        "text_length": text_tokenizer.length, "text_vocab_size": text_tokenizer.text_vocab_size,
    }  # fmt: skip
    if taken := [name for name in given if name in recipe.reranker]:
        raise ValueError(f"{recipe.where}: 'reranker.{taken[0]}' is that of the data and of 'text'; leave it out")
    config = build_dataclass(RerankerConfig, given | dict(recipe.reranker), recipe.where, "reranker")
    plain = {
        "data": to_plain(recipe.data),
        "reranker": {name: value for name, value in to_plain(config).items() if name not in given},
        "text": to_plain(recipe.text),
        "training": to_plain(recipe.training),
        "evaluation": to_plain(recipe.evaluation),
    }
    torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
    task = ContrastiveTask(
        CLIP(config), recipe.data, training, evaluation, text_tokenizer, recipe.text.bpe_dropout,
        recipe.evaluation.limit, recipe.evaluation.batch_size,
        {"recipe": recipe_card(plain, training)},
    )  # fmt: skip
    return task, plain
