"""Whatever a recipe says: it is refused in a sentence, or trains, and what it trained can be loaded and used."""

from __future__ import annotations

import random
import typing
import warnings
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import chainrule
from chainrule.core import LearnedTokenizer, entries, entry
from chainrule.data import ImageDataset
from chainrule.pipeline import Pipeline
from chainrule.recipe import NewModel
from chainrule.strict import to_plain, write_yaml
from chainrule.zoo import save
from sizes import sizes

SHAPE = 16, 8  # height and width, which the tokenizers of `sizes` take
TOKENIZERS = "vqvae", "vqvae2", "rqvae", "vqgan"
NUMBERS = 0, 1, 2, 3, 4, 5, 6, 8, 16
SHARES = 0.0, 0.1, 0.5, 0.9, 1.0
OF_THE_DATA = "num_classes", "null_label", "text_length", "text_vocab_size", "spatial_channels", "prefix_length"


def images(channels: int, levels: int = 256) -> ImageDataset:
    """Noise of two classes, with captions."""
    generator = torch.Generator().manual_seed(levels)
    pixels = torch.randint(0, 256, (6, channels, *SHAPE), generator=generator, dtype=torch.uint8)
    labels = torch.arange(6) % 2
    return ImageDataset(pixels, labels, [f"a {'dog' if label else 'cat'}" for label in labels], ("cat", "dog"), 2)


def changed(chance: random.Random, config: type, values: dict, share: float = 0.2) -> dict:
    """Plain values of a config, some of them others of their type."""
    values, hints = dict(values), typing.get_type_hints(config)
    for one in fields(config):
        if one.name in OF_THE_DATA or one.name.startswith(("image_", "prefix_")) or chance.random() > share:
            continue
        hint, now = hints[one.name], values.get(one.name, one.default)
        if typing.get_origin(hint) is typing.Literal:
            values[one.name] = chance.choice(typing.get_args(hint))
        elif hint is bool:
            values[one.name] = chance.random() < 0.5
        elif hint is int:
            values[one.name] = chance.choice(NUMBERS)
        elif hint is float:
            values[one.name] = chance.choice(SHARES)
        elif isinstance(now, (list, tuple)) and all(type(x) is int for x in now):
            values[one.name] = [chance.choice(NUMBERS) for _ in range(chance.randint(1, 3))]
    return values


def tiny(kind: str, name: str, chance: random.Random) -> dict:
    """The plain values of a tiny size of a model, without what the data decides."""
    plain = to_plain(chance.choice(list(sizes(kind, name).values())).config)
    return {key: value for key, value in plain.items() if key not in OF_THE_DATA and not key.startswith("image_")}


def random_recipe(chance: random.Random, tokenizers: dict[str, Path]) -> dict:
    """The sections of a recipe of a tokenizer or a prior."""
    training = {
        "steps": 1, "batch_size": chance.choice((1, 2, 3)), "compile": False, "sample_every": chance.choice((0, 1)),
        "optimizer": chance.choice(("muon", "adam", "adamw", "adamax", "rmsprop")),
        "precision": chance.choice(("float32", "float32", "bfloat16")), "ema_decay": chance.choice((0.0, 0.9)),
        "channels_last": chance.random() < 0.3, "learning_rate": chance.choice((1e-4, 1e-2)),
    }  # fmt: skip
    recipe: dict = {"data": {"source": "noise"}, "training": training, "evaluation": {"limit": 2, "batch_size": 2}}
    if chance.random() < 0.25:
        name = chance.choice(
            [name for name, one in entries("tokenizers").items() if issubclass(one.model, LearnedTokenizer)]
        )
        options = changed(chance, entry("tokenizers", name).config, tiny("tokenizers", name, chance))
        return recipe | {"tokenizer": {"name": name, **options}}
    name = chance.choice(list(entries("priors")))
    prior = changed(chance, entry("priors", name).config, tiny("priors", name, chance))
    known = {one.name for one in fields(entry("priors", name).config)}
    if "num_classes" in known and chance.random() < 0.5:
        prior["num_classes"] = "data"
        training["label_dropout"] = chance.choice((0.0, 0.5))
    learned = chance.random() < 0.5
    if learned:
        recipe["tokenizer"] = {"path": str(tokenizers[chance.choice(TOKENIZERS)])}
        training["soft_targets"] = chance.choice((0.0, 0.0, 0.5))
    elif chance.random() < 0.5:
        recipe["tokenizer"] = {"name": chance.choice(("pixels", "multiscale_pixels"))}
        recipe["data"]["levels"] = chance.choice((2, 5, 256))
    if name == "dalle" or ("text_length" in known and "num_classes" not in prior and chance.random() < 0.7):
        recipe["text"] = {"length": chance.choice((1, 4)), "text_vocab_size": 300}
        training["caption_dropout"] = chance.choice((0.0, 0.5))
    training["code_noise"] = chance.choice((0.0, 0.0, 0.5))
    return recipe | {"prior": {"name": name, **prior}}


def use(folder: Path) -> None:
    """Draws, completes and scores by a trained model, or encodes and decodes."""
    model = chainrule.load(folder)
    given = images(model.image_shape[0] if not isinstance(model, Pipeline) else model.tokenizer.image_shape[0]).images[
        :2
    ]
    if not isinstance(model, Pipeline):
        codes = model.encode(given)
        assert model.decode(codes).shape == given.shape
        return
    label = [1, 0] if model.num_classes else None
    text = ["a cat", "a dog"] if model.text_tokenizer is not None else None
    assert model.log_prob(given, label, text=text).isfinite().all()
    options = {"guidance": 2.0} if model.prior.conditions.null_label else {}
    assert model.sample(2, label, text=text, **options).shape == given.shape
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[: SHAPE[0] // 2] = True
    assert model.complete(given[0], mask, 2, label, text=text).shape == given.shape


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Path]:
    """Folders of untrained tokenizers for colour images."""
    folder = tmp_path_factory.mktemp("tokenizers")
    height, width = SHAPE
    size = {"image_height": height, "image_width": width, "image_channels": 3}
    for name in TOKENIZERS:
        torch.manual_seed(0)
        options = tiny("tokenizers", name, random.Random(0))
        config = NewModel(name=name, options=options | size).config("tokenizers")
        save(entry("tokenizers", name).model(config), folder / name)
    return {name: folder / name for name in TOKENIZERS}


def run(number: int, tokenizers: dict[str, Path], folder: Path, monkeypatch) -> str:
    """Trains by the recipe of a number and uses the model; returns "used", or why the recipe was refused."""
    chance = random.Random(number)
    recipe = random_recipe(chance, tokenizers)
    channels = 3 if "path" in recipe.get("tokenizer", {}) else chance.choice((1, 3))
    monkeypatch.setattr("chainrule.training.tasks.examples.load", lambda *_: images(channels))
    path = folder / f"{number}.yaml"
    path.write_text(write_yaml(recipe))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chainrule.train(path, folder / f"run{number}", quiet=True)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return str(error)
    use(folder / f"run{number}")
    return "used"


@pytest.mark.parametrize("number", range(12))
def test_a_random_recipe_is_refused_or_gives_a_model(number, tokenizers, tmp_path, monkeypatch):
    run(number, tokenizers, tmp_path, monkeypatch)


@pytest.mark.slow
def test_many_random_recipes(tokenizers, tmp_path, monkeypatch):
    """Prints how many were used, and the first refusals."""
    found = Counter(run(number, tokenizers, tmp_path, monkeypatch) for number in range(100, 900))
    print(f"{found['used']} of {found.total()} recipes gave a model; refused: {found.most_common(9)[1:]}")
    assert found["used"] > 200
