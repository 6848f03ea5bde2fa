"""Lossless compression: exact round trips, sizes near the model's nats, and files that refuse what does not fit."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

import chainrule
from chainrule.compression import compress, container, decompress, entropy
from chainrule.compression.compress import pipeline_hash
from chainrule.core import entry
from chainrule.images import to_pil
from chainrule.pipeline import Pipeline
from chainrule.tokenizers.pixels import Pixels, PixelsConfig
from sizes import cases
from test_cli import refused, run
from test_cli_text import build as text_pipeline
from test_contract import context, random_codes


def binary(count: int, height: int, width: int) -> torch.Tensor:
    """Images of black and white pixels, uint8 (count, 1, height, width)."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, 1, height, width, generator=generator) < 0.2).to(torch.uint8) * 255


def untrained(seed: int = 0, **options: int) -> Pipeline:
    """A small model of black and white pixels."""
    torch.manual_seed(seed)
    pixels = PixelsConfig(image_height=4, image_width=5, image_channels=1, levels=2)
    tokenizer, prior = Pixels(pixels), entry("priors", "pixelcnn")
    config = prior.config(num_layers=1, width=4, head_width=4, **options)
    return Pipeline(tokenizer, prior.model(tokenizer.spec, config))


@pytest.fixture
def model() -> Pipeline:
    return untrained()


@pytest.fixture
def images() -> torch.Tensor:
    return binary(5, 4, 5)


# ---------------------------------------------------------------- the coder


@pytest.mark.parametrize(("registered", "preset"), cases("priors"))
@torch.no_grad()
def test_codes_of_every_prior_come_back_and_take_as_many_bits_as_their_probability_says(registered, preset):
    prior = registered.model(preset.spec, preset.config).eval()
    codes, given = random_codes(preset.spec, 3), context(prior, 3)
    flat, runner = preset.spec.flatten(codes), prior.runner()
    stream = entropy.encode(runner, given, flat)
    assert torch.equal(entropy.decode(runner, given, stream, flat[:, :0]), flat)
    assert 8 * len(stream) <= -prior.log_prob(codes, given).sum().item() / math.log(2) * 1.001 + 64
    text = entropy.encode(runner, given, flat, known=1)  # the first code is not in the stream
    assert torch.equal(entropy.decode(runner, given, text, flat[:, :1]), flat)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["mnist_pixelcnn", "mnist_row_lstm"])
def test_size_of_digits_is_that_of_their_likelihood(name):
    model = chainrule.load(name)
    images = model.sample(10, seed=1)
    header, blocks = container.unpack(compress(model, images))
    nats = -model.log_prob(images).sum().item()
    assert sum(len(block.stream) for block in blocks) <= nats / math.log(2) / 8 * 1.001 + 8
    assert len(container.pack(header, blocks)) - sum(len(block.stream) for block in blocks) == 27
    one_by_one = len(compress(model, images, batch_size=1))
    assert one_by_one / 10 <= nats / math.log(2) / 8 / 10 * 1.01 + 16


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_round_trips_with_any_batch_and_any_number_of_threads(model, images, batch_size):
    before, files = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            files.append(compress(model, images, batch_size=batch_size))
            assert torch.get_num_threads() == threads
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(decompress(model, files[0]).images, images)
    finally:
        torch.set_num_threads(before)
    assert files[0] == files[1]


def test_labels_texts_and_names_are_kept(images):
    model = untrained(num_classes=3)
    labels = [0, 2, 1, 1, 0]
    data = compress(model, images, labels, names=["a", "b", "c", "d", "e"])
    assert data == compress(model, images, torch.tensor(labels), names=["a", "b", "c", "d", "e"])
    restored = decompress(model, data)
    assert torch.equal(restored.images, images) and restored.names == ("a", "b", "c", "d", "e")
    with pytest.raises(ValueError, match="give a label"):
        compress(model, images)
    dalle = text_pipeline(joint=True)  # text and image are one stream
    pictures = dalle.sample(2, text="a red circle", seed=3)
    restored = decompress(dalle, compress(dalle, pictures, text=["a red circle", "a green square"], lossy=True))
    assert torch.equal(restored.images, dalle.reconstruct(pictures))


def test_images_never_change_unasked(model, images):
    grey = images.clamp(max=200)
    with pytest.raises(ValueError, match="cannot hold these images exactly"):
        compress(model, grey)
    assert torch.equal(decompress(model, compress(model, grey, lossy=True)).images, images)


def test_a_damaged_file_is_never_a_wrong_image(model, images):
    data = compress(model, images, batch_size=3)
    for place in range(len(data)):
        with pytest.raises(ValueError):
            decompress(model, data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(ValueError):
            decompress(model, data[:place])
    with pytest.raises(ValueError, match="damaged"):
        decompress(model, data + b"x")
    with pytest.raises(ValueError, match="no file of chainrule compress"):
        decompress(model, b"PNG")


def test_another_model_and_another_environment_are_refused(model, images):
    data = compress(model, images)
    with pytest.raises(ValueError, match="another model"):
        decompress(untrained(seed=1), data)
    header, blocks = container.unpack(data)
    other = bytes([header.environment[0], header.environment[1] ^ 1, *header.environment[2:]])
    elsewhere = container.pack(replace(header, environment=other), blocks)
    with pytest.raises(ValueError, match=r"another environment than here \(torch 2[^,]*\), which it does not name"):
        decompress(model, elsewhere)
    assert torch.equal(decompress(model, elsewhere, any_environment=True).images, images)


def test_a_model_that_rounds_otherwise_is_noticed(model, images, monkeypatch):
    """Even when everything that the file records agrees."""
    data, exact = compress(model, images), entropy._probabilities
    monkeypatch.setattr(entropy, "_probabilities", lambda logits: exact(logits + 0.5 * torch.randn_like(logits)))
    with pytest.raises(ValueError, match="could not be restored"):
        decompress(model, data)


def test_the_hash_of_a_model_is_of_all_that_its_codes_mean(model):
    assert pipeline_hash(model) == pipeline_hash(untrained())
    with torch.no_grad():
        next(model.prior.parameters()).flatten()[0] += 1e-3
    assert pipeline_hash(model) != pipeline_hash(untrained())


def test_without_the_coder_a_sentence_says_what_to_install(model, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ValueError, match=r'pip install "chainrule\[compression\]"'):
        compress(model, images)


# ---------------------------------------------------------------- commands


def test_commands(tmp_path, monkeypatch, model, images):
    monkeypatch.chdir(tmp_path)
    chainrule.save(model, "model")
    chainrule.save(untrained(seed=1), "other")
    for name, picture in zip("abc", to_pil(images[:3]), strict=True):
        picture.save(f"{name}.png")
    value = json.loads(run("compress", "model", "a.png", "b.png", "c.png", "--out", "x.crz", "--json"))
    assert value["images"] == 3 and value["exact"] and value["bytes"] == (tmp_path / "x.crz").stat().st_size
    assert "exists" in refused("compress", "model", "a.png", "--out", "x.crz")
    run("decompress", "model", "x.crz", "--out", "back")
    for name in "abc":
        assert Image.open(f"back/{name}.png").tobytes() == Image.open(f"{name}.png").tobytes()
    assert "another model" in refused("decompress", "other", "x.crz", "--out", "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    to_pil(images[:1] // 2)[0].save("grey.png")
    assert "--lossy" in refused("compress", "model", "grey.png", "--out", "y.crz")
    assert "not exact" in run("compress", "model", "grey.png", "--out", "y.crz", "--lossy")
    assert "1 image" in run("decompress", "model", "y.crz", "--out", "grey-back.png")
