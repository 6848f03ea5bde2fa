"""Texts to token ids and back: the text tokenizers of text-to-image models.

A `TextTokenizer` turns texts into rows of one length, padded behind; an empty text is padding alone and stands for "no
condition".  `BPETokenizer` is byte-pair encoding (Sennrich, Haddow, Birch 2016, arXiv:1508.07909) as a definition of
the `tokenizers` package says it, with dropout (Provilkov, Emelianenko, Voita 2020, arXiv:1910.13267):

    while some pair of neighbouring symbols is a merge:
        each such pair is left out with probability `dropout`; of those left, if any, the earliest learned is merged

`train_bpe` learns one of bytes from captions, as DALL-E's: every text of every script has an encoding, and none needs
an unknown token.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from ..core import GridSpec, Prior
from ..core.checks import MAX_SIZE, check_range, check_sizes

PADDING = "<no text>"  # has a space, which no token made of bytes can have


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a prior or a reranker reads captions: byte-pair encoding, learned from those of the training images.

    length:     tokens of a caption; longer captions are cut
    text_vocab_size: at most so many tokens, at least 257: padding and all bytes
    lowercase:  whether capitals count as small letters
    vocabulary: instead of learning one, a file of the `tokenizers` package with a byte-pair encoding whose token 0 is
                the padding
    bpe_dropout:    share of merges left out at each visit of a training caption (BPE dropout); 0 is none
    """

    length: int = 32
    text_vocab_size: int = 4096
    lowercase: bool = True
    vocabulary: Path | None = None
    bpe_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "length")
        check_range(self, 0, MAX_SIZE, "text_vocab_size")
        if not 0 <= self.bpe_dropout < 1:
            raise ValueError(f"bpe_dropout must lie in 0..1, 1 excluded, got {self.bpe_dropout}")


class TextTokenizer(ABC):
    """texts <-> int64 (B, length) of ids in 0..text_vocab_size-1; `pad` is the id behind a text that is shorter.

    A kind of text tokenizer is a class in a module of this package; `name` is what a saved model calls it.
    """

    name: str
    file_names: ClassVar[tuple[str, ...]]  # of `files`
    text_vocab_size: int
    length: int
    pad: int

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """The ids of one text, as many as it takes: neither cut nor padded."""

    @abstractmethod
    def decode(self, ids: Tensor) -> list[str]:
        """int64 (B, length) -> B texts, without the padding."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values that `read` needs beside the files."""

    @abstractmethod
    def files(self) -> dict[str, str]:
        """The files of a saved model that hold the vocabulary: name -> content."""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> TextTokenizer:
        """From the files of a saved model; raises ValueError where they are missing or damaged."""

    def encode(self, texts: Sequence[str], dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Texts to ids.

        Args:
            texts: B texts; a text of more than `length` tokens is cut, with a warning.
            dropout: probability that a merge is left out, 0 <= dropout < 1, for training.
            generator: draws what is left out; needed with dropout.

        Returns:
            int64 (B, length).

        Raises:
            ValueError: one string instead of a list, or dropout without a generator or where the tokenizer has none.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts must be a list of strings, got {type(texts).__name__} {texts!r:.40}")
        if not 0 <= dropout < 1 or (dropout > 0) != (generator is not None):
            raise ValueError(f"dropout must lie in [0, 1), with a generator if above 0; got {dropout}")
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # half of a surrogate pair: "?"
        if generator is None:
            rows = [self.tokens(text) for text in texts]
        else:
            source = random.Random(int(torch.randint(2**62, (), generator=generator)))
            rows = [self.tokens_with_dropout(text, dropout, source) for text in texts]
        long = [text for text, row in zip(texts, rows, strict=True) if len(row) > self.length]
        if long and generator is None:
            warnings.warn(
                f"{len(long)} of {len(texts)} texts are longer than {self.length} tokens and are cut: {long[0]!r:.80}",
                stacklevel=2,
            )
        ids = torch.full((len(rows), self.length), self.pad)
        for index, row in enumerate(rows):
            row = row[: self.length]
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids

    def tokens_with_dropout(self, text: str, dropout: float, source: random.Random) -> list[int]:
        """As `tokens`, with merges left out at random."""
        raise ValueError(f"the text tokenizer {self.name} has no dropout; leave it at 0")

    @property
    def grid(self) -> GridSpec:
        """A text as a grid of codes, (1, length, 1), as models of one stream of text and image have it first."""
        return GridSpec(1, self.length, 1, self.text_vocab_size)

    def hash(self) -> str:
        """sha256 of config and files: what a prior was trained on."""
        return hashlib.sha256(json.dumps([self.name, self.config, self.files()], sort_keys=True).encode()).hexdigest()


class BPETokenizer(TextTokenizer):
    """Byte-pair encoding.

    Args:
        definition: of a byte-pair encoding, as JSON of the `tokenizers` package.
        length: tokens of a text.
        pad: id of the padding.

    Raises:
        ValueError: a definition that cannot be read or is of another kind, or sizes that do not fit it.
    """

    name, file_names = "bpe", ("text.json",)

    def __init__(self, definition: str, length: int, pad: int = 0) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(definition)
        except Exception as error:  # the package raises no narrower class
            raise ValueError("this is no definition of a tokenizer") from error
        if not isinstance(self._tokenizer.model, models.BPE):
            raise ValueError(f"the tokenizer is a {type(self._tokenizer.model).__name__}, no byte-pair encoding")
        self._definition = self._tokenizer.to_str()
        vocabulary = self._tokenizer.get_vocab()
        self.text_vocab_size, self.length, self.pad = max(vocabulary.values(), default=0) + 1, length, pad
        if not 1 <= length <= MAX_SIZE or not 0 <= pad < self.text_vocab_size:
            raise ValueError(
                f"length must lie in 1..{MAX_SIZE} and pad in 0..{self.text_vocab_size - 1}, "
                f"got length {length} and pad {pad}"
            )
        model = json.loads(self._definition)["model"]
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        self._suffix = model["end_of_word_suffix"] or ""
        self._vocabulary, self._unknown = vocabulary, vocabulary.get(model["unk_token"])

    def tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def tokens_with_dropout(self, text: str, dropout: float, source: random.Random) -> list[int]:
        normal = self._tokenizer.normalizer.normalize_str(text) if self._tokenizer.normalizer is not None else text
        found: list[int] = []
        for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(normal):
            symbols = [*word[:-1], word[-1] + self._suffix]
            for symbol in merge(symbols, self._ranks, dropout, source):
                number = self._vocabulary.get(symbol, self._unknown)
                if number is not None:
                    found.append(number)
        return found

    def decode(self, ids: Tensor) -> list[str]:
        rows = [[one for one in row if one != self.pad] for row in ids.tolist()]
        return [self._tokenizer.decode(row, skip_special_tokens=False).strip() for row in rows]

    @property
    def config(self) -> dict[str, Any]:
        return {"length": self.length, "pad": self.pad}

    def files(self) -> dict[str, str]:
        return {"text.json": self._definition}

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> BPETokenizer:
        path = folder / "text.json"
        try:
            return cls(path.read_text(encoding="utf-8"), config["length"], config["pad"])
        except (OSError, KeyError) as error:
            why = getattr(error, "strerror", error)
            raise ValueError(f"{path} is missing or damaged ({why}); copy it again") from error
        except (UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"{path} or its sizes in config.yaml are damaged; copy both again") from error
        except ValueError as error:
            raise ValueError(f"{path} is missing or damaged ({error}); copy it again") from error


def merge(symbols: list[str], ranks: Mapping[tuple[str, str], int], dropout: float, source: random.Random) -> list[str]:
    """The symbols of one word after its merges, each left out with probability `dropout` whenever it could be made."""
    while True:
        pairs = [
            (ranks[pair], index)
            for index, pair in enumerate(pairwise(symbols))
            if pair in ranks and not (dropout and source.random() < dropout)
        ]
        if not pairs:
            return symbols
        _, index = min(pairs)
        symbols = [*symbols[:index], symbols[index] + symbols[index + 1], *symbols[index + 2 :]]


def train_bpe(texts: Iterable[str], text_vocab_size: int, length: int, lowercase: bool = True) -> BPETokenizer:
    """Learns byte-pair encoding of bytes; id 0 is the padding.

    Args:
        texts: captions; normalised to NFC, with single spaces between words.
        text_vocab_size: at most so many tokens, at least 257: the padding and all bytes; few texts make fewer.
        length: tokens of a text.
        lowercase: whether capitals are told apart (False) or not (True, as DALL-E).

    Raises:
        ValueError: a vocabulary that is too small.

    Examples:
        >>> tokenizer = train_bpe(["a red circle", "a red square"], text_vocab_size=300, length=16)
        >>> tokenizer.encode(["A red circle"]).shape
        torch.Size([1, 16])
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if text_vocab_size < len(alphabet) + 1:
        raise ValueError(
            f"text_vocab_size must be at least {len(alphabet) + 1}: all bytes and the padding; got {text_vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Lowercase()] if lowercase else steps)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=text_vocab_size, min_frequency=2, show_progress=False, special_tokens=[PADDING],
        initial_alphabet=sorted(alphabet),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = []  # a text that holds the name of the padding is a text like any other
    return BPETokenizer(json.dumps(definition), length)


def text_tokenizers() -> dict[str, type[TextTokenizer]]:
    """All kinds of text tokenizers by name; imports the modules of this package."""
    package = importlib.import_module("chainrule.text")
    found: dict[str, type[TextTokenizer]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for value in vars(importlib.import_module(f"chainrule.text.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, TextTokenizer) and value is not TextTokenizer:
                found[value.name] = value
    return dict(sorted(found.items()))


def read_text_tokenizer(folder: Path, name: str, config: Mapping[str, Any]) -> TextTokenizer:
    """The text tokenizer of a saved model.

    Raises:
        ValueError: no such kind, or files that are missing or damaged.
    """
    kinds = text_tokenizers()
    if name not in kinds:
        raise ValueError(f"no text tokenizer is called {name!r}; there are: {', '.join(kinds)}")
    return kinds[name].read(folder, config)


def check_text_tokenizer(text_tokenizer: TextTokenizer, prior: Prior) -> None:
    """Raises ValueError unless a prior reads texts as this tokenizer gives them."""
    reads = prior.conditions
    if reads.joint_text:
        grid, given = prior.spec.grids[0], text_tokenizer
        if given.length != grid.num_positions or given.text_vocab_size > grid.codebook_size or given.pad != 0:
            raise ValueError(
                f"the prior models texts of {grid.num_positions} tokens in 0..{grid.codebook_size - 1}, padded with 0; "
                f"the text tokenizer gives {given.length} in 0..{given.text_vocab_size - 1}, padded with {given.pad}"
            )
    elif reads.text_length != text_tokenizer.length or reads.text_vocab_size < text_tokenizer.text_vocab_size:
        raise ValueError(
            f"the prior reads texts of {reads.text_length} tokens in 0..{reads.text_vocab_size - 1}, the text "
            f"tokenizer gives {text_tokenizer.length} in 0..{text_tokenizer.text_vocab_size - 1}"
        )
