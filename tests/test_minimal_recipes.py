"""Recipes that name images and models, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import chainrule
from chainrule.core import LearnedTokenizer, entries
from chainrule.data import DataConfig, with_size
from chainrule.recipe import NewModel, build_recipe
from chainrule.training import TrainingConfig
from chainrule.training.engine.config import LEARNING_RATES

FEW = ["training.steps=2", "training.batch_size=2", "evaluation.limit=2", "training.sample_every=0"]


def pictures(folder: Path, count: int = 24, width: int = 20, height: int = 16) -> Path:
    """Noise, coloured, each picture a little wider than the one before."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (height, width + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    return pictures(tmp_path / "pictures")


def train(path: Path, **sections) -> dict:
    """Two steps of a recipe; returns the recipe in full."""
    path.mkdir()
    (path / "recipe.yaml").write_text(yaml.safe_dump(sections))
    assert chainrule.train(path / "recipe.yaml", path / "run", FEW, quiet=True).steps == 2
    return yaml.safe_load((path / "run" / "recipe.yaml").read_text())


def test_a_tokenizer_and_a_prior_over_its_codes(folder, tmp_path):
    data = {"source": str(folder)}
    first = train(tmp_path / "one", data=data, tokenizer={"name": "vqvae"})
    assert first["data"]["size"] == 16 and first["tokenizer"]["image_height"] == 16
    assert first["tokenizer"]["codebook_size"] == 512 and first["training"]["channels_last"] is True
    saved = {"path": str(tmp_path / "one" / "run")}
    second = train(tmp_path / "two", data=data, tokenizer=saved, prior={"name": "gpt"})
    assert second["prior"]["width"] == 192 and second["prior"]["num_classes"] == 0
    assert chainrule.load(tmp_path / "two" / "run").sample(1).shape == (1, 3, 16, 16)
    larger = {"source": str(pictures(tmp_path / "larger", 24, 50, 48))}  # which the tokenizer takes at its own size
    recipe = build_recipe({"data": larger, "tokenizer": saved, "prior": {"name": "gpt", "width": 8}}, "r")
    assert recipe.build()[1].data.size == (16, 16)


def test_a_prior_over_pixels(folder, tmp_path):
    full = train(
        tmp_path / "one", data={"source": str(folder), "channels": 1}, prior={"name": "pixelcnn", "num_layers": 2}
    )
    assert full["tokenizer"]["name"] == "pixels" and full["tokenizer"]["levels"] == 256
    assert full["prior"]["num_layers"] == 2 and full["prior"]["width"] == 64 and full["prior"]["embedding_dim"] == 0


def test_folders_of_classes_and_captions_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    for name in ("cat", "dog"):
        pictures(tmp_path / "classes" / name, 8)
    small = {"name": "gated_pixelcnn", "num_layers": 1, "width": 4}
    data = {"source": str(tmp_path / "classes"), "size": 8, "levels": 4}
    assert train(tmp_path / "one", data=data, prior=small)["prior"]["num_classes"] == 2
    assert train(tmp_path / "two", data=data, prior=small | {"num_classes": 0})["prior"]["num_classes"] == 0
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "classes")
    assert train(tmp_path / "zip", data=data | {"source": packed}, prior=small)["prior"]["num_classes"] == 2
    captions = pictures(tmp_path / "captions")
    (captions / "captions.txt").write_text("".join(f"{n}.png\ta picture\n" for n in range(24)))
    parti = {"name": "parti", "encoder_layers": 1, "decoder_layers": 1, "width": 8, "num_heads": 2}
    full = train(tmp_path / "three", data=data | {"source": str(captions)}, prior=parti)
    assert full["text"]["length"] == full["prior"]["text_length"] == 32


def test_a_preset_gives_sizes_and_keys_replace_them():
    model = NewModel(name="gpt", options={"preset": "imagenet-big", "num_layers": 2, "num_classes": "data"})
    config = model.config("priors", {}, {"num_classes": 7})
    assert (config.num_layers, config.width, config.num_classes) == (2, 1536, 7)
    with pytest.raises(ValueError, match="gpt has no preset 'imagenet-bog'; did you mean 'imagenet-big'"):
        NewModel(name="gpt", options={"preset": "imagenet-bog"}).config("priors")
    tokenizer = NewModel(name="vqgan", options={"preset": "f16-1024"})
    assert tokenizer.config("tokenizers", {"image_height": 64, "image_width": 64}).image_height == 64


def test_every_model_has_a_size_for_a_cpu():
    for kind in ("tokenizers", "priors"):
        for entry in entries(kind).values():
            ours = entry.model.__module__.startswith("chainrule.")  # other tests register toys
            if ours and (kind == "priors" or issubclass(entry.model, LearnedTokenizer)):
                assert entry.small, f"register({kind!r}, {entry.name!r}, …, small=…) is missing"


def test_defaults_of_training():
    config = TrainingConfig()
    assert (config.steps, config.batch_size, config.optimizer, config.learning_rate) == (2000, 32, "muon", 2e-3)
    assert (config.schedule, config.warmup, config.gradient_clip, config.ema_decay) == ("linear", 100, 1.0, 0.99)
    assert TrainingConfig(steps=50).warmup == 5
    for optimizer, rate in LEARNING_RATES.items():
        assert TrainingConfig(optimizer=optimizer).learning_rate == rate
    training = {"optimizer": "adam", "steps": 9}
    recipe = build_recipe({"data": {"source": "x"}, "tokenizer": {"name": "vqvae"}, "training": training}, "r")
    assert recipe.training.learning_rate == 1e-3 and recipe.training.sample_every == 1000


@pytest.mark.parametrize(("sizes", "chosen"), [([(20, 16), (40, 30)], 16), ([(200, 100)], 64), ([(28, 28)], None)])
def test_the_size_of_images_is_chosen(tmp_path, sizes, chosen):
    for index, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    assert with_size(DataConfig(str(tmp_path)), 64).size == chosen
    assert with_size(DataConfig(str(tmp_path), size=24), 64).size == 24


def test_an_evaluation_says_where_the_images_are_others_than_in_training(folder, tmp_path, recwarn):
    for kind in ("a", "b"):
        (folder / kind).mkdir()
        for path in sorted(folder.glob("*.png"))[:12]:
            path.rename(folder / kind / path.name)
    train(tmp_path / "one", data={"source": str(folder), "size": 8}, prior={"name": "pixelcnn", "width": 8})
    evaluate = lambda **options: chainrule.evaluate(tmp_path / "one" / "run", **options).fingerprint  # noqa: E731
    evaluate()
    assert not [one for one in recwarn if "not those on which" in str(one.message)]
    for path in folder.glob("*/*.png"):
        Image.new("RGB", (20, 16)).save(path)
    evaluate(limit=2)
    evaluate(split="train")
    assert not [one for one in recwarn if "not those on which" in str(one.message)]
    with pytest.warns(UserWarning, match="not those on which .* was evaluated in training"):
        evaluate()
