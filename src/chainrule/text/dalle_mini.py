"""The text tokenizer of DALL-E Mini and Mega (Dayma et al. 2021, https://github.com/borisdayma/dalle-mini).

Byte-pair encoding of words that begin with "Ġ", between <s> and </s>.  Before it, emoji become their names, capitals
small letters, and what is not ASCII is dropped.  A text cut to `length` loses its </s>; the empty text is <s> </s>.

Deviation: names of emoji are those of Unicode, in the Python at hand ("cat_face", "rocket"); the original has those of
the package `emoji`, which agree for about two thirds of the emoji that are one character, but not for "thumbs_up",
flags, skin tones and families.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .bpe import TextTokenizer, merge

WORD = "\u0120"  # stands for the space before a word
BEGIN, END, PADDING, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
SYMBOLS = (range(0x2600, 0x27C0), range(0x1F300, 0x1FB00))  # the blocks of Unicode where emoji are


class DalleMiniTokenizer(TextTokenizer):
    """Byte-pair encoding as DALL-E Mini has it.

    Args:
        vocabulary: JSON, token -> id.
        merges: a line of version, then a merge per line, two symbols with a space between; the earlier wins.
        length: tokens of a text, <s> and </s> among them.
        text_vocab_size: ids that the model knows; at least those of the vocabulary.

    Raises:
        ValueError: a vocabulary that cannot be read or lacks the special tokens, or sizes that do not fit it.
    """

    name, file_names = "dalle_mini", ("vocab.json", "merges.txt")

    def __init__(self, vocabulary: str, merges: str, length: int, text_vocab_size: int) -> None:
        try:
            ids = json.loads(vocabulary)
            self._begin, self._end, self.pad, self._unknown = (ids[name] for name in (BEGIN, END, PADDING, UNKNOWN))
            fits = all(type(number) is int and 0 <= number < text_vocab_size for number in ids.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("this is no vocabulary of DALL-E Mini") from error
        if length < 2 or not fits:
            raise ValueError(
                f"length must be at least 2 and all ids in 0..{text_vocab_size - 1}, got length {length} and "
                f"ids {ids!r:.80}"
            )
        self.text_vocab_size, self.length = text_vocab_size, length
        self._ids, self._texts = ids, {number: token for token, number in ids.items()}
        self._files = {"vocab.json": vocabulary, "merges.txt": merges}
        lines = merges.split("\n")[1:-1]
        self._ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}

    def tokens(self, text: str) -> list[int]:
        return self.tokens_with_dropout(text, 0.0, random.Random(0))

    def tokens_with_dropout(self, text: str, dropout: float, source: random.Random) -> list[int]:
        plain = name_emoji(text).lower().encode("ascii", "ignore").decode("ascii")
        symbols = (
            symbol for word in plain.split(" ") if word for symbol in merge([WORD, *word], self._ranks, dropout, source)
        )
        return [self._begin, *(self._ids.get(symbol, self._unknown) for symbol in symbols), self._end]

    def decode(self, ids: Tensor) -> list[str]:
        special = {self._begin, self._end, self.pad}
        rows = ["".join(self._texts.get(one, "") for one in row if one not in special) for row in ids.tolist()]
        return [row.replace(WORD, " ").strip() for row in rows]

    @property
    def config(self) -> dict[str, Any]:
        return {"length": self.length, "text_vocab_size": self.text_vocab_size}

    def files(self) -> dict[str, str]:
        return dict(self._files)

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> DalleMiniTokenizer:
        try:
            vocabulary, merges = ((folder / name).read_text(encoding="utf-8") for name in cls.file_names)
            return cls(vocabulary, merges, config["length"], config["text_vocab_size"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the text tokenizer in {folder} is missing or damaged; copy it again") from error


def name_emoji(text: str) -> str:
    """The text with symbols replaced by their Unicode names: "a cat 🐱" -> "a cat cat_face"."""
    return "".join(_name(letter) if _is_emoji(letter) else letter for letter in text)


def _is_emoji(letter: str) -> bool:
    return unicodedata.category(letter) == "So" and any(ord(letter) in block for block in SYMBOLS)


def _name(letter: str) -> str:
    return unicodedata.name(letter, "").lower().replace(" ", "_")
