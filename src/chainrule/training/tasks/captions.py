"""Captions of training images, for the tasks whose models read them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ...files import read_text
from ...text.bpe import BPETokenizer, TextConfig, TextTokenizer, train_bpe
from .examples import Examples


def check_captions(section: str, examples: Examples) -> None:
    """Raises ValueError where a data set lacks the captions that a section of the recipe asks for."""
    for images in (examples.training, examples.evaluation):
        if images.texts is None:
            raise ValueError(f"{section!r} needs captions, but {images.name} has none; see data.text_column")


def learn_text(config: TextConfig, examples: Examples) -> BPETokenizer:
    """The text tokenizer of a recipe; raises ValueError where there are no captions, or a vocabulary does not fit."""
    check_captions("text", examples)
    if config.vocabulary is None:
        return train_bpe(examples.training.texts, config.text_vocab_size, config.length, config.lowercase)
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
        self.texts, self._evaluation_texts = examples.training.texts, examples.evaluation.texts
        self.training = tokenizer.encode(self.texts)

    @cached_property
    def evaluation(self) -> Tensor:
        """int64 (N, L), those of the evaluation images."""
        return self.tokenizer.encode(self._evaluation_texts)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """int64 (B, L), the captions of some training images; merges are left out by the generator."""
        if not self.bpe_dropout:
            return self.training[indices]
        return self.tokenizer.encode([self.texts[index] for index in indices.tolist()], self.bpe_dropout, generator)
