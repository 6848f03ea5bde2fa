"""Small files that would take all memory or time, or end the process: one sentence each, before the work."""

from __future__ import annotations

import struct
import zlib

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import chainrule
from chainrule.compression.container import MAGIC, unpack
from chainrule.core import CodeSpec
from chainrule.files import parse_json
from chainrule.priors.gpt import GPT, GPTConfig
from chainrule.saving.weights import SCALE
from chainrule.strict import MAX_DEPTH, MAX_SHOWN, parse_yaml, write_yaml
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
    ],
    ids=range(11),
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
    ("header", "sentence"),
    [
        (b" " * (1 << 27), "its header is cut short or longer than"),
        (b"{}", "'num_images' is missing"),
        (b"[]", "must hold keys and values"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"num_images": 1000000000000, "batch_size": 1, "model": "", "environment": {}}', "a file holds 1 to"),
        (b'{"num_images": 2, "batch_size": 1, "model": "", "environment": {}}', "the compressed file is damaged"),
    ],
    ids=range(6),
)
def test_the_header_of_a_compressed_file_is_bounded(header, sentence):
    text = zlib.compress(header, 9)
    body = struct.pack("<I", len(text)) + text
    with pytest.raises(ValueError, match=sentence):
        unpack(MAGIC + struct.pack("<I", zlib.crc32(body)) + body)
