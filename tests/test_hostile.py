"""Small files that would take all memory or time, or end the process: one sentence each, before the work."""

from __future__ import annotations

import struct
import zipfile
import zlib

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import chainrule
from chainrule.compression.container import ENVIRONMENT, MAGIC, MODEL, _varint, unpack
from chainrule.core import CodeSpec
from chainrule.files import parse_json, read_text
from chainrule.official import pickles
from chainrule.official.reader import read_checkpoint
from chainrule.priors.gpt import GPT, GPTConfig
from chainrule.saving import code_file
from chainrule.saving.weights import SCALE
from chainrule.strict import MAX_DEPTH, MAX_SHOWN, parse_yaml, write_yaml
from chainrule.text.bpe import read_text_tokenizer, train_bpe
from chainrule.tokenizers.vqvae import VQVAE, VQVAEConfig

DOUBLED = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}\n" for i in range(1, 20))
DEEP = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2 * MAX_DEPTH))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (DOUBLED, "values"),
        (MERGED, "values"),
        (DEEP, "nested deeper"),
        ("[" * 60 + "]" * 60, "nested deeper"),
        ("[" * 5000, "nested deeper"),
        ("a: &a [*a]", "nested deeper"),
        ("a: " + "9" * 5000, "a number or a date"),
        ("a: 0000-00-00", "a number or a date"),
        ("{[1]: 2}", "a list or a mapping for a key"),
        ("{x: 1, x: 2}", "given twice"),
        ("x" * (1 << 23), "characters"),
        ("a: 1\nb: [1, 2", "line 2 has a list or mapping that is not closed"),
        ("a: 1\nb: \x01", "line 2 holds a control character"),
    ],
    ids=range(13),
)
def test_yaml_that_grows(text, sentence):
    with pytest.raises(ValueError, match=r"^here: not valid YAML: [^\n]{1,300}$") as refused:
        parse_yaml(text, "here")
    assert sentence in str(refused.value)


def test_yaml_within_bounds():
    assert parse_yaml("a: &a {x: 1}\nb: [*a, *a]", "") == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}]}
    names = {"names": ["1e5", "1.5", "1e-3", "5", "null", "yes", "a"], "value": 1e-05}
    assert parse_yaml(write_yaml(names), "") == names


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", '{"a": 1e}'])
def test_json_that_cannot_be(text):
    with pytest.raises(ValueError, match=r"^here: not valid JSON \([^\n]{1,100}\)$"):
        parse_json(text, "here")


def test_long_values_are_cut_in_sentences(saved):
    change(saved, lambda config: config["prior"].update(name={"x" * 5000: 1}))
    with pytest.raises(ValueError, match="'prior.name' must be text") as refused:
        chainrule.load(saved)
    assert len(str(refused.value)) < 500 + MAX_SHOWN


def nested_tuples(depth: int) -> bytes:
    return b"N" + b"\x85" * depth


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
NUMBERS, PAIRS = b"K\1" * 20_000, b"K\1K\2\x86" * 9000
ITEMS = b"".join(b"K%cK\1" % number for number in range(200))
HOSTILE_PICKLES = {
    "nested key": b"\x80\x02" + STORAGE + nested_tuples(200_000) + b"X\x03\0\0\0cpuK\1tQ.",
    "copied lists": b"\x80\x02](" + NUMBERS + b"eq\0(" + b"ccollections\ndeque\nh\0\x85R" * 20_000 + b"l.",
    "copied dicts": b"\x80\x02](" + PAIRS + b"eq\0(" + b"ccollections\nOrderedDict\nh\0\x85R" * 20_000 + b"l.",
    "copied states": b"\x80\x02}(" + ITEMS + b"uq\0(" + b"ca\nB\n)\x81h\0b" * 60_000 + b"l.",
    "copied texts": b"\x80\x02X\x40\x42\x0f\0" + b"a" * 1_000_000 + b"q\0("
    + b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 5000 + b"l.",
}  # fmt: skip
"""A list or text that is named in thousands of calls, each of which copies it."""


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_pickles_that_would_end_the_process_or_take_all_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(pickles, "MAX_COPIED", 2**18)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", HOSTILE_PICKLES[name])
    with pytest.raises(ValueError, match="copy the same values|damaged"):
        read_checkpoint(tmp_path / "x.pt")


def test_parts_of_an_archive_that_share_their_bytes(tmp_path):
    torch.save({"a": torch.zeros(1000), "b": torch.zeros(1000)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        first, second = (archive.getinfo(f"x/data/{key}").header_offset for key in "01")
    central = data.rindex(struct.pack("<I", second))
    (tmp_path / "y.pt").write_bytes(data[:central] + struct.pack("<I", first) + data[central + 4 :])
    with pytest.raises(ValueError, match="y.pt is (refused|cut short)"):
        read_checkpoint(tmp_path / "y.pt")


@pytest.fixture
def saved(tmp_path):
    tokenizer = VQVAE(
        VQVAEConfig(
            image_height=8, image_width=8, width=4, residual_width=4, num_blocks=1, downsampling=4, codebook_size=8,
            embedding_dim=4,
        )
    )  # fmt: skip
    prior = GPT(CodeSpec(tokenizer.spec.grids), GPTConfig(num_layers=1, width=8, num_heads=2))
    chainrule.save(chainrule.Pipeline(tokenizer, prior), tmp_path / "saved")
    return tmp_path / "saved"


def change(folder, how):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    how(config)
    (folder / "config.yaml").write_text(write_yaml(config))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("prior", "width", 1 << 20),
        ("prior", "num_layers", 200),
        ("tokenizer", "width", 1 << 20),
        ("tokenizer", "codebook_size", 1 << 20),
    ],
)
def test_sizes_are_compared_with_the_weights_before_a_model_is_built(saved, part, field, value):
    """The first of these would take 12 terabytes."""
    change(saved, lambda config: config[part]["config"].update({field: value}))
    if field == "codebook_size":
        change(saved, lambda config: config["prior"].update(codes=[[2, 2, 1, value]]))
    with pytest.raises(ValueError, match="weights of another architecture"):
        chainrule.load(saved)


def test_more_layers_than_any_model_has(saved):
    change(saved, lambda config: config["prior"]["config"].update(num_layers=1 << 20))
    with pytest.raises(ValueError, match="num_layers must be at most"):
        chainrule.load(saved)


def test_types_of_weights(saved):
    path = saved / "prior.safetensors"
    good = load_file(path)
    key = next(name for name, value in good.items() if value.ndim == 2)
    for bad in (good[key].long(), good[key].bool(), good[key].to(torch.int8)):
        save_file({**good, key: bad}, path)
        with pytest.raises(ValueError, match=f"damaged: {key} is of the type"):
            chainrule.load(saved)
    save_file({**good, key: good[key].to(torch.int8), key + SCALE: torch.ones(3, 7)}, path)
    with pytest.raises(ValueError, match=f"the scales of {key} do not fit it"):
        chainrule.load(saved)


@pytest.mark.parametrize(
    ("count", "header", "sentence"),
    [
        (1, b" " * (1 << 27), "its header is cut short or longer than"),
        (1, b"[]", "something else than labels, texts and names"),
        (1, b'{"num_images": 3}', "something else than labels, texts and names"),
        (1, b"[" * 100_000, "nested too deeply"),
        (1, b'{"names": ["a", "b"]}', "2 values are not one for each of 1 images"),
        (1 << 30, b"{}", "a file holds 1 to"),
        (1 << 40, b"{}", "a number in it is too large"),
        (2, b"{}", "the compressed file is damaged: it is cut short"),
    ],
    ids=range(8),
)
def test_the_header_of_a_compressed_file_is_bounded(count, header, sentence):
    text = zlib.compress(header, 9)
    body = _varint(count) + _varint(1) + bytes(MODEL + ENVIRONMENT) + _varint(len(text)) + text
    with pytest.raises(ValueError, match=sentence):
        unpack(MAGIC + struct.pack("<I", zlib.crc32(body)) + body)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("values", "[9.0]"),
        ("values", "[1]"),
        ("values", "[1180591620717411303424]"),
        ("values", "[" * 100_000),
        ("shapes", "[[1000000000, 1000000000, 1000000000, 0]]"),
        ("shapes", "[[1, 2, 2]]"),
        ("shapes", "[5]"),
        ("shapes", "[]"),
        ("shapes", "9" * 5000),
        ("names", "[]"),
        ("names", "[{}]"),
        ("names", '["a\\u0000b"]'),
        ("names", '["\\ud83d"]'),
    ],
    ids=range(13),
)
def test_files_of_codes_whose_metadata_do_not_fit(saved, tmp_path, key, value):
    tokenizer, path = chainrule.load(saved).tokenizer, tmp_path / "x.safetensors"
    codes = tokenizer.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    path.write_bytes(code_file.pack_codes(codes, ["a"], tokenizer))
    assert torch.equal(code_file.read_codes(path, tokenizer)[0][0], codes[0])
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {**metadata, key: value})
    with pytest.raises(ValueError, match="is damaged: [^\\n]{1,200}$"):
        code_file.read_codes(path, tokenizer)


def test_many_codes_are_packed_in_chunks(saved, monkeypatch):
    tokenizer = chainrule.load(saved).tokenizer
    codes = torch.randint(0, 8, (5, 3, 3, 1))
    whole = code_file.pack_codes((codes,), list("abcde"), tokenizer)
    monkeypatch.setattr(code_file, "CHUNK", 16)
    for data in (whole, code_file.pack_codes((codes,), list("abcde"), tokenizer)):
        (saved / "x").write_bytes(data)
        assert torch.equal(code_file.read_codes(saved / "x", tokenizer)[0][0], codes)


def test_images_too_large_for_memory(saved, monkeypatch):
    tokenizer = chainrule.load(saved).tokenizer
    with pytest.raises(ValueError, match="an image of 4096x4096 has more than"):
        code_file.encode(tokenizer, torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, 4096, 4096))
    with pytest.raises(ValueError, match="an image of 4096x4096 has more than"):
        code_file.decode(tokenizer, (torch.zeros(1, 1, 1, 1, dtype=torch.int64).expand(1, 1024, 1024, 1),))
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    whole = code_file.encode(tokenizer, images)
    monkeypatch.setattr(code_file, "MAX_PIXELS", 2 * 256)
    assert torch.equal(code_file.encode(tokenizer, images)[0], whole[0])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="Is a directory") as refused:
        read_text(folder)
    assert refused.value.filename == str(folder)


@pytest.mark.parametrize("change", [{"length": 10**30}, {"length": "a"}, {"pad": -1}, {"pad": None}])
def test_sizes_of_a_text_tokenizer(tmp_path, change):
    tokenizer = train_bpe(["a red circle"] * 3, 300, 6)
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="text.json"):
        read_text_tokenizer(tmp_path, "bpe", tokenizer.config | change)
    (tmp_path / "text.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="this is no definition of a tokenizer"):
        read_text_tokenizer(tmp_path, "bpe", tokenizer.config)
