"""Priors that draw from an image: its grey, its edges or its low resolution."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import chainrule
from chainrule import Pipeline
from chainrule.compression import compress
from chainrule.core import CodeSpec, Context
from chainrule.data import load_images
from chainrule.decoding import image_seeds
from chainrule.drawing import repeat
from chainrule.images import to_pil
from chainrule.prefixes import image_prefix
from chainrule.priors.gpt import GPT, GPTConfig
from chainrule.recipe import build_recipe
from chainrule.tokenizers.pixels import Pixels, PixelsConfig
from chainrule.training.tasks.codes import encode
from test_cli import refused, run
from test_prior_task import fit_recipe, new, recipe, saved  # noqa: F401  saved is a fixture

SMALL = {"num_layers": 1, "width": 8, "num_heads": 2}


def noise(count: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def pipeline(kind: str = "edges") -> Pipeline:
    """A model of 3x4 colour pixels, whose weights are large enough that its prefix matters."""
    torch.manual_seed(0)
    tokenizer = Pixels(PixelsConfig(image_height=3, image_width=4, image_channels=3))
    prior = GPT(tokenizer.spec, GPTConfig(**SMALL, image_prefix=kind))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=0.3)
    return Pipeline(tokenizer, prior)


def test_what_is_taken_from_an_image():
    images = noise(2, 3, 10, 6)
    for kind in ("grey", "edges", "low_resolution"):
        found = image_prefix(images, kind)
        assert found.dtype == torch.uint8 and found.shape == images.shape
        assert torch.equal(found.flip(-1), image_prefix(images.flip(-1), kind)) or kind == "low_resolution"
    grey = image_prefix(images, "grey")
    assert torch.equal(grey, image_prefix(grey, "grey")) and torch.equal(grey[:, 0], grey[:, 2])
    assert image_prefix(torch.tensor([255, 0, 0]).to(torch.uint8).view(1, 3, 1, 1), "grey").unique().tolist() == [76]
    low = image_prefix(images, "low_resolution")
    assert len(low[0, 0].unique()) <= 3 * 2 and torch.equal(low[0, 0, 0, :3], low[0, 0, 0, :1].expand(3))
    for step, edge in ((31, 0), (32, 255)):
        halves = torch.full((1, 3, 4, 6), 100, dtype=torch.uint8)
        halves[..., 3:] += step
        assert image_prefix(halves, "edges")[0, 1].tolist() == [[0, 0, edge, edge, 0, 0]] * 4


@torch.no_grad()
def test_probabilities_of_all_codes_sum_to_one_given_a_prefix():
    prior = GPT(CodeSpec.single(2, 2, 1, 3), GPTConfig(**SMALL, image_prefix="grey")).double().eval()
    prior.head.linear.weight.normal_()
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2, 1)
    for prefix in ([0, 1, 2, 2], [2, 0, 0, 1]):
        context = Context(prefix=torch.tensor([prefix]).expand(len(every), -1))
        assert prior.log_prob((every,), context).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_images_are_drawn_from_a_prefix_and_scored_given_their_own():
    model, images = pipeline(), noise(3, 3, 3, 4)
    drawn = model.sample(3, prefix=images, seed=4)
    seed = [image_seeds(4, 3)[1]]
    assert torch.equal(drawn[1:2], model.sample(1, prefix=images[1], seed=seed))  # one for all, one for each
    assert not torch.equal(drawn[1:2], model.sample(1, prefix=images[2], seed=seed))
    assert len(model.sample(3, prefix=images[1]).unique(dim=0)) == 3
    codes = model.tokenizer.encode
    prefix = model.tokenizer.spec.flatten(codes(image_prefix(images, "edges")))
    expected = model.prior.log_prob(codes(images), Context(prefix=prefix))
    assert torch.equal(model.log_prob(images), expected)
    assert torch.equal(model.log_prob(drawn, prefix=images), model.prior.log_prob(codes(drawn), Context(prefix=prefix)))
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0] = True
    completed = model.complete(images[0], mask, 2, prefix=images[0])
    assert torch.equal(completed[:, :, 0], images[:1, :, 0].expand(2, -1, -1))
    assert chainrule.vary(model, images[0], 0.5, 2).shape == (2, 3, 3, 4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, r"this model draws from an image \(edges\): give one as prefix"),
        ({"prefix": noise(2, 3, 3, 4)}, "2 images were given as prefix of 3"),
        ({"prefix": noise(1, 3, 4, 4)}, r"images must be uint8 \(B, 3, 3, 4\)"),
        ({"prefix": "photo.png"}, "prefix must be a tensor"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipeline().sample(3, **options)


def test_models_without_a_prefix_take_none_and_a_file_cannot_hold_one():
    with pytest.raises(ValueError, match="does not draw from an image: a prefix would be ignored"):
        pipeline("none").sample(1, prefix=noise(1, 3, 3, 4))
    pytest.importorskip("constriction")
    with pytest.raises(ValueError, match="would need the image to read the file"):
        compress(pipeline(), noise(1, 3, 3, 4))


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, photo = pipeline(), noise(1, 3, 12, 9)
    model.save("model")
    to_pil(photo)[0].save("photo.png")
    assert "two.png" in run("sample", "model", "--prefix", "photo.png", "-n", "2", "--scale", "1", "--out", "two.png")
    assert not repeat("two.png").differences
    run("sample", "model", "--prefix", "photo.png", "-n", "2", "--separate", "--out", "both")
    with Image.open("both/1.png") as opened:
        size = opened.size
    assert size == (4, 3) and not repeat("both/1.png").differences
    assert "give one as prefix" in refused("sample", "model")
    given = "complete", "model", "photo.png", "--resize", "--keep", "top", "-n", "2", "--out", "half.png"
    assert "give one as prefix" in refused(*given)
    found = json.loads(run(*given, "--prefix", "photo.png", "--json"))
    image = load_images(["photo.png"], (3, 4), 3)[0]
    mask = torch.arange(3)[:, None].expand(3, 4) < 1
    nats = model.log_prob(model.complete(image, mask, 2, prefix=image), prefix=image)
    assert [one["log_prob"] for one in found["completions"]] == nats.tolist() and not repeat("half.png").differences
    assert "nats" in run("score", "model", "photo.png", "--resize")


def trainable(path, kind: str = "edges", **training):
    found = recipe(path, **training)
    return replace(found, prior=new("gpt", SMALL | {"image_prefix": kind}))


def test_training_stores_the_codes_of_prefixes(saved, tmp_path):  # noqa: F811
    task, _ = trainable(saved).build()
    task.setup(torch.device("cpu"))
    indices, part = torch.tensor([3, 1, 39, 20, 7]), slice(1, 4)
    stored = task.batch(indices, part, torch.Generator().manual_seed(5))
    codes, context = task._encode(stored)
    task.training_codes = []
    seen = task.batch(indices, part, torch.Generator().manual_seed(5))  # with flips
    again, same = task._encode(seen)
    assert torch.equal(codes[0], again[0]) and torch.equal(context.prefix, same.prefix)
    expected = encode(task.tokenizer, image_prefix(seen.images, "edges"))
    assert torch.equal(context.prefix, task.tokenizer.spec.flatten(expected))
    result = fit_recipe(trainable(saved, steps=4, sample_every=4), tmp_path / "run")
    model = chainrule.load(tmp_path / "run")
    assert model.prior.conditions.image_prefix == "edges" and (tmp_path / "run" / "samples").is_dir()
    shown = task.evaluation.images
    assert result.metrics["nats"] == pytest.approx(-model.log_prob(shown).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [("grey", {}, "the grey of grey images"), ("edges", {"stream": True}, "a stream keeps their codes only")],
)
def test_what_cannot_be_trained_is_refused(saved, kind, change, sentence):  # noqa: F811
    task, _ = trainable(saved).build()
    task.data = replace(task.data, **change)
    task.model = GPT(task.model.spec, GPTConfig(**SMALL, image_prefix=kind))
    with pytest.raises(ValueError, match=sentence):
        task._check()


def test_evaluation_draws_from_the_images_it_compares_with(tmp_path):
    torch.manual_seed(0)
    plain = {
        "data": {"source": "shapes", "size": 32, "channels": 3, "split": "train[:8]"},
        "tokenizer": {"path": "shapes_vqvae"},
        "prior": {"name": "gpt", **SMALL, "image_prefix": "low_resolution"},
        "training": {"steps": 1, "batch_size": 8},
        "evaluation": {"split": "test[:6]"},
    }
    task, _ = build_recipe(plain, "r.yaml").build()
    task._pipeline(task.model, {"recipe": plain}).save(tmp_path / "model")
    record = chainrule.evaluate(tmp_path / "model", data="shapes", split="test", limit=6, samples=4)
    assert record.samples.quality.frechet > 0
