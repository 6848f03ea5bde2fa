"""Text tokenizers: every text has ids, ids have texts, dropout changes only how a word is cut."""

import random
import warnings

import pytest
import torch

from chainrule.core import GridSpec
from chainrule.text.bpe import BPETokenizer, merge, read_text_tokenizer, text_tokenizers, train_bpe

CAPTIONS = [
    f"A {colour} {shape} at the {place}, drawn"
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square")
    for place in ("top", "bottom")
] * 3
ODD = ["日本語", "🎻👩‍👩‍👧", "שלום עולם", "x\0y\x1b", "half \ud83d", "<no text>", "a" * 5000, "e\u0301"]


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return train_bpe(CAPTIONS, 320, 12)


def test_captions_come_back(tokenizer):
    ids = tokenizer.encode(["A RED  circle\n", "a blue square at the bottom, drawn"])
    assert ids.dtype == torch.int64 and ids.shape == (2, 12) and ids.max() < tokenizer.text_vocab_size <= 320
    assert tokenizer.decode(ids) == ["a red circle", "a blue square at the bottom, drawn"]
    assert tokenizer.grid == GridSpec(1, 12, 1, tokenizer.text_vocab_size)
    assert (ids[0] == tokenizer.pad).sum() > (ids[1] == tokenizer.pad).sum() > 0


def test_an_empty_text_is_padding(tokenizer):
    ids = tokenizer.encode(["", " \n ", "red"])
    assert (ids[:2] == tokenizer.pad).all() and (ids[2] != tokenizer.pad).any()
    assert tokenizer.decode(ids) == ["", "", "red"]


def test_every_text_has_ids():
    tokenizer = train_bpe(CAPTIONS, 320, 200, lowercase=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = tokenizer.encode([*ODD, "Capitals"])
    assert ((ids >= 0) & (ids < tokenizer.text_vocab_size)).all()
    known = tokenizer.decode(ids)
    assert known[:4] == ODD[:4] and known[4:6] == ["half ?", "<no text>"] and known[7:] == ["é", "Capitals"]
    assert tokenizer.decode(tokenizer.encode(ODD[:4], 0.5, torch.Generator().manual_seed(0))) == ODD[:4]


def test_long_texts_are_cut_with_a_warning(tokenizer):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 12 tokens and are cut: 'violet"):
        ids = tokenizer.encode(["red", "violet " * 10])
    assert (ids[1] != tokenizer.pad).all()


def test_dropout_cuts_words_otherwise_and_is_seeded(tokenizer):
    texts = ["a red circle at the top"] * 4
    plain = tokenizer.encode(texts)
    one, two = (tokenizer.encode(texts, 0.3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, plain)
    for text in CAPTIONS[:12]:
        assert tokenizer.tokens_with_dropout(text, 0.0, random.Random(0)) == tokenizer.tokens(text)


def test_merges_follow_their_rank():
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2}
    assert merge(list("abcab"), ranks, 0.0, random.Random(0)) == ["abc", "ab"]
    assert merge(list("abcab"), ranks, 1.0, random.Random(0)) == list("abcab")
    assert merge([], ranks, 0.0, random.Random(0)) == []


def test_it_is_saved_as_files(tokenizer, tmp_path):
    assert tokenizer.hash() == train_bpe(CAPTIONS, 320, 12).hash() != train_bpe(CAPTIONS, 320, 13).hash()
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    again = read_text_tokenizer(tmp_path, tokenizer.name, tokenizer.config)
    assert again.hash() == tokenizer.hash() and torch.equal(again.encode(CAPTIONS), tokenizer.encode(CAPTIONS))
    assert text_tokenizers()["bpe"] is BPETokenizer
    with pytest.raises(ValueError, match="no text tokenizer is called 'bpf'"):
        read_text_tokenizer(tmp_path, "bpf", {})
    with pytest.raises(ValueError, match=r"text\.json is missing or damaged \('pad'\)"):
        read_text_tokenizer(tmp_path, "bpe", {"length": 3})
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match=r"text\.json is missing or damaged"):
        read_text_tokenizer(tmp_path, "bpe", tokenizer.config)


def test_wrong_arguments_are_named(tokenizer):
    with pytest.raises(ValueError, match="texts must be a list of strings, got str 'red'"):
        tokenizer.encode("red")
    with pytest.raises(ValueError, match="with a generator"):
        tokenizer.encode(["red"], 0.1)
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(CAPTIONS, 256, 12)
    with pytest.raises(ValueError, match="pad in 0"):
        BPETokenizer(tokenizer.files()["text.json"], 12, 5000)
