"""Evaluation as a library: what the commands do, called from Python."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import chainrule
from chainrule.core import entry
from chainrule.data import ImageDataset
from chainrule.evaluation import scoring
from chainrule.evaluation.records import read_record
from chainrule.zoo import save
from test_cli import SIDE, tiny
from test_reconstruction import Brightness, noise


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A model of pixels, a model of classes and a tokenizer alone, with data and features that need no download."""
    monkeypatch.chdir(tmp_path)
    tiny().save("plain")
    tiny(3).save("classes")
    pixels = entry("tokenizers", "pixels")
    card = {"recipe": {"data": {"source": "digits"}}}
    save(pixels.model(pixels.config(image_height=16, image_width=16, image_channels=3, levels=5)), "tokenizer", card)

    def load(config):
        channels, side = (3, 16) if config.channels == 3 else (1, SIDE)
        return ImageDataset(noise(20, channels, side, side), torch.arange(20) % 3, None, None, 3, config.source)

    monkeypatch.setattr("chainrule.evaluation.measure.load", load)
    monkeypatch.setattr("chainrule.scorers.features.load_features", lambda name: Brightness(0))
    return tmp_path


def test_evaluate_and_repeat(here):
    record = chainrule.evaluate("classes", samples=6, seed=2, sampling={"temperature": 0.5}, binarize="threshold")
    settings = record.samples.settings
    assert settings.sampling.temperature == 0.5 and settings.seed == 2 and record.seeds == ()
    assert record.likelihood.num_images == 20
    Path("record.json").write_text(json.dumps(record.to_json()))
    again = chainrule.repeat(read_record(Path("record.json")))
    assert record.differences(again) == [] and again.command == record.command
    sampling = replace(settings.sampling, precision="bfloat16")
    samples = replace(record.samples, settings=replace(settings, sampling=sampling), fingerprint="other")
    elsewhere = replace(record, samples=samples, versions={**record.versions, "processor": "another"})
    assert elsewhere.differences(again)[1] == "another kind of processor draws other images in bfloat16"
    assert chainrule.evaluate("tokenizer").tokenizer.num_images == 20
    with pytest.raises(ValueError, match="cannot be compared"):
        chainrule.repeat(record, "tokenizer")
    with pytest.raises(ValueError, match="guidance would be ignored"):
        chainrule.evaluate("plain", sampling={"guidance": 3.0})
    with pytest.raises(ValueError, match="seed would be ignored"):
        chainrule.evaluate("tokenizer", seed=0)


def test_figures_that_are_not_finite_are_refused(here):
    weights = {name: torch.full_like(value, torch.nan) for name, value in load_file("plain/prior.safetensors").items()}
    save_file(weights, "plain/prior.safetensors")
    with pytest.raises(ValueError, match=r"plain/prior\.safetensors is damaged, or of a training that diverged"):
        chainrule.evaluate("plain")


def test_score_does_not_depend_on_batches(here, monkeypatch):
    monkeypatch.setattr(scoring, "BATCH", 2)
    model, labels = chainrule.load("classes"), [0, 1, 2, 1, 0]
    images = noise(5, 1, SIDE, SIDE)
    scores = chainrule.score(model, images, labels, surprise=True)
    torch.testing.assert_close(scores.nats, -model.log_prob(images, labels))
    torch.testing.assert_close(scores.bits_per_dim, scores.nats / SIDE**2 / torch.tensor(2.0).log())
    torch.testing.assert_close(scores.surprise.sum((1, 2)), scores.nats)
    assert scores.bits_of_codes is None and chainrule.score(model, images, "dog").surprise is None
    with pytest.raises(ValueError, match="labels were given for"):
        chainrule.score(model, images, [*labels, 1])


def test_encode_decode_and_reconstruct(here):
    tokenizer, images = chainrule.load("tokenizer"), noise(20, 3, 16, 16)
    codes = chainrule.encode(tokenizer, images)
    assert all(torch.equal(a, b) for a, b in zip(codes, tokenizer.encode(images), strict=True))
    decoded = chainrule.decode(tokenizer, codes)
    assert torch.equal(decoded, tokenizer.decode(codes))
    one, two = chainrule.reconstruct(tokenizer, images[:2], Brightness(0))
    assert torch.equal(one.image, decoded[0]) and set(two.figures()) == {"psnr", "ssim", "perceptual"}
    assert set(chainrule.reconstruct(tokenizer, images[:1])[0].figures()) == {"psnr", "ssim"}


def test_info(here):
    value = chainrule.info("classes")
    assert value["num_classes"] == 3 and value["codes_per_image"] == SIDE**2 and value["prior"]["name"] == "pixelcnn"
