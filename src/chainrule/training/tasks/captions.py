"""Captions of training images, for the tasks whose models read them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ...data import DataConfig
from ...files import read_text
from ...text.bpe import BPETokenizer, TextConfig, TextTokenizer, train_bpe
from .examples import Examples

LEARNED_FROM = 100_000
"""Captions of a stream from which a vocabulary is learned."""


def check_captions(section: str, examples: Examples) -> None:
    """Raises ValueError where a data set lacks the captions that a section of the recipe asks for."""
    for images in (examples.training, examples.evaluation):
        if images.texts is None:
            raise ValueError(f"{section!r} needs captions, but {images.name} has none; see data.text_column")


def learn_text(config: TextConfig, examples: Examples) -> BPETokenizer:
    """The text tokenizer of a recipe; raises ValueError where there are no captions, or a vocabulary does not fit."""
    check_captions("text", examples)
    if config.vocabulary is None:
        rows = examples.training.spread(LEARNED_FROM if examples.data.stream else None).tolist()
        chosen = (examples.training.texts[row] for row in rows)
        texts = [text for texts in chosen for text in _alternatives(examples.data, texts)]
        return train_bpe(texts, config.text_vocab_size, config.length, config.lowercase)
    try:
        return BPETokenizer(read_text(config.vocabulary), config.length)
    except (OSError, ValueError) as error:
        raise ValueError(f"text.vocabulary {config.vocabulary}: {error}") from None


class Captions:
    """The captions of the examples as token ids.

    Args:
        tokenizer: reads them.
        examples: images with captions.
        bpe_dropout: share of merges left out of a training caption, at each visit anew.
    """

    def __init__(self, tokenizer: TextTokenizer, examples: Examples, bpe_dropout: float = 0.0) -> None:
        self.tokenizer, self.bpe_dropout = tokenizer, bpe_dropout
        self._evaluation_texts = examples.evaluation.texts
        self._streamed = examples.training.texts if examples.data.stream else None
        if self._streamed is not None:
            return
        several = [_alternatives(examples.data, text) for text in examples.training.texts]
        self.texts = [text for texts in several for text in texts]
        self._counts = torch.tensor([len(texts) for texts in several])
        self._firsts = self._counts.cumsum(0) - self._counts
        self._tokens = tokenizer.encode(self.texts)

    @cached_property
    def training(self) -> Tensor:
        """int64 (N, L), the first caption of each training image."""
        return self._tokens[self._firsts]

    @cached_property
    def evaluation(self) -> Tensor:
        """int64 (N, L), those of the evaluation images."""
        return self.tokenizer.encode(self._evaluation_texts)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """int64 (B, L), the captions of some training images; the generator chooses one of several, and merges."""
        if self._streamed is not None:
            return self.tokenizer.encode([self._streamed[row] for row in indices.tolist()], self.bpe_dropout, generator)
        rows = self._firsts[indices]
        if len(self.texts) > len(self._counts):
            rows = rows + (torch.rand(len(rows), generator=generator) * self._counts[indices]).long()
        if not self.bpe_dropout:
            return self._tokens[rows]
        return self.tokenizer.encode([self.texts[row] for row in rows.tolist()], self.bpe_dropout, generator)


def _alternatives(data: DataConfig, text: str) -> list[str]:
    """The captions that `text` of a data set holds; there are several where one is drawn at each visit."""
    return text.split("\n") if data.captions == "random" else [text]
