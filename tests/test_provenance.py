"""A run and a model know their data: where they are, which they are, and the names of their classes."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import chainrule
from chainrule.data import DataConfig, ImageDataset, load
from chainrule.saving.hub import PRETRAINED
from chainrule.strict import read_yaml
from chainrule.zoo import read_card

RECIPE = """
data: {source: SOURCE, size: 8, channels: 1, levels: 4}
prior: {name: gated_pixelcnn, num_layers: 1, width: 4, kernel_size: 3, head_width: 4}
training: {steps: 1, batch_size: 2, compile: false, sample_every: 0}
evaluation: {every: 9}
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A working directory, and a cache of its own."""
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("CHAINRULE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def album(folder: Path, bright: int, classes: dict[str, int] | None = None) -> None:
    """Ten pictures of noise up to `bright`, or plain ones in folders of classes."""
    for name, value in (classes or {"": 0}).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(10):
            noise = np.random.default_rng(index).integers(0, bright, (8, 8)) + value
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{index}.png")


def train(source: str, out: str = "run", *overrides: str) -> None:
    Path("recipe.yaml").write_text(RECIPE.replace("SOURCE", source))
    chainrule.train("recipe.yaml", out, overrides, quiet=True)


def test_a_model_is_evaluated_on_its_own_images_from_anywhere(home, monkeypatch):
    album(home / "far" / "album", 60)
    train("far/album")
    assert read_yaml(home / "run" / "recipe.yaml")["data"]["source"] == str(home / "far" / "album")
    wanted = chainrule.evaluate("run", data="far/album")
    album(home / "here" / "album", 255)
    monkeypatch.chdir(home / "here")
    for name in ("../run", "../run/model"):
        found = chainrule.evaluate(name)
        assert (found.fingerprint, found.likelihood) == (wanted.fingerprint, wanted.likelihood)
    card = read_card("../run")
    assert str(home) not in str(card) and card["trained_on"]["folder"] == "album"
    assert card["trained_on"]["evaluation"] == wanted.fingerprint

    chainrule.load("../run").save("copy")
    with pytest.raises(ValueError, match="copy was trained on a folder called album, and only its run knows which"):
        chainrule.evaluate("copy")
    shutil.move(home / "far", home / "moved")
    with pytest.raises(ValueError, match=r"run was trained on /.*/far/album, which is no longer there; say where"):
        chainrule.evaluate("../run")
    assert chainrule.evaluate("../run", data=str(home / "moved" / "album")).likelihood == wanted.likelihood


def test_a_run_goes_on_with_the_data_it_began_with_wherever_they_are(home):
    album(home / "a", 60, {"day": 100, "night": 0})
    train("a", "run", "prior.num_classes=data")
    os.rename("a", "b")
    train("b", "run", "prior.num_classes=data", "training.steps=2")
    assert read_yaml(home / "run" / "recipe.yaml")["data"]["source"] == str(home / "b")
    os.rename("b/night", "b/zero")
    with pytest.raises(ValueError, match=r"have changed since .* \(classes: day, night, now day, zero\); put back"):
        train("b", "run", "prior.num_classes=data", "training.steps=3")
    os.rename("b/zero", "b/night")
    album(home / "b", 60, {"night": 1})
    with pytest.raises(ValueError, match=r"have changed since the run in .*run began \(training images: "):
        train("b", "run", "prior.num_classes=data", "training.steps=3")


def test_a_run_keeps_the_vocabulary_it_learned(home):
    album(home / "a", 60)
    for index in range(10):
        (home / "a" / f"{index}.txt").write_text(f"a picture of noise {index}")
    prior = "prior: {name: dalle, num_layers: 1, width: 8, num_heads: 2}\ntext: {length: 16, text_vocab_size: 270}\n"
    text = re.sub("prior: .*\n", prior, RECIPE)
    Path("recipe.yaml").write_text(text.replace("SOURCE", "a"))
    chainrule.train("recipe.yaml", "run", quiet=True)
    before = (home / "run" / "model" / "text.json").read_text()
    (home / "a" / "3.txt").write_text("lighthouse lighthouse")
    with pytest.raises(ValueError, match="the data have changed since the run in"):
        chainrule.train("recipe.yaml", "run", ["training.steps=2"], quiet=True)
    assert (home / "run" / "model" / "text.json").read_text() == before


def test_classes_are_matched_by_name(home):
    album(home / "a", 20, {"day": 200, "evening": 100, "night": 0})
    album(home / "some", 20, {"day": 200, "night": 0})
    album(home / "other", 20, {"a_night": 0, "day": 200})
    album(home / "more", 20, {"aurora": 90, "day": 200, "night": 0})
    train("a", "run", "prior.num_classes=data", "training.label_dropout=0.1")
    with pytest.raises(
        ValueError, match="other has images of the class a_night, which run does not know; it knows day"
    ):
        chainrule.evaluate("run", data="other", split="train")
    Path("more.yaml").write_text(RECIPE.split("prior")[0].replace("SOURCE", "more") + "prior: {path: run}\n")
    with pytest.raises(ValueError, match="more has images of the class aurora, which run does not know"):
        chainrule.train("more.yaml", "tuned", quiet=True)
    with pytest.warns(UserWarning, match="some has no images of the class evening of run"):
        assert chainrule.evaluate("run", data="some", split="train").likelihood.num_images > 0


def test_numbers_of_classes_are_those_of_the_model():
    data = ImageDataset(
        torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1]), None, ("b", "cafe\u0301"), 2
    )
    found = data.matched(("café", "b"), 2, "the model")
    assert found.labels.tolist() == [1, 0, 0] and found.class_names == ("café", "b")
    assert data.matched(data.class_names, 2, "the model") is data and data.matched(None, 0, "the model") is data
    with pytest.warns(UserWarning, match="images has no images of the class dog of the model"):
        assert data.matched(("dog", "café", "b"), 3, "the model").labels.tolist() == [2, 1, 1]
    with pytest.warns(UserWarning, match="classes are matched by number: the model has no names of classes"):
        assert data.matched(None, 2, "the model").labels.tolist() == [0, 1, 1]


def test_bundled_models_name_no_folder_of_a_machine():
    for path in sorted(PRETRAINED.glob("*/config.yaml")):
        assert not Path(read_card(path.parent).get("recipe", {}).get("data", {}).get("source", "")).is_absolute()
        assert "folder" not in read_card(path.parent).get("trained_on", {})


def test_the_whole_path_is_known_beside_the_name(home):
    album(home / "far" / "album", 60)
    found = load(DataConfig("far/album"))
    assert (found.name, found.path) == ("album", str(home / "far" / "album"))
