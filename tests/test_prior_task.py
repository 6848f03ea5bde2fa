"""Priors over the codes of a trained tokenizer; labels dropped; soft targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import chainrule
from chainrule.core import entry
from chainrule.data import DataConfig, ImageDataset, augment
from chainrule.priors.gated_pixelcnn import GatedPixelCNN
from chainrule.recipe import NewModel, SavedTokenizer, build_recipe
from chainrule.saving.model import tokenizer_hash
from chainrule.strict import read_yaml, write_yaml
from chainrule.text.bpe import TextConfig
from chainrule.tokenizers.vqvae import VQVAE, VQVAEConfig
from chainrule.training import EvaluationConfig, train
from chainrule.training.run import check_folder
from chainrule.training.tasks.codes import encode
from chainrule.training.tasks.prior import PriorRecipe, PriorTrainingConfig
from chainrule.zoo import load_tokenizer, save
from sizes import tiny

SIMPLE = {
    "optimizer": "adam", "schedule": "constant", "warmup_steps": 0, "gradient_clip": 0.0, "ema_decay": 0.0,
    "precision": "float32", "compile": False,
}  # fmt: skip
TINY = VQVAEConfig(
    image_height=8, image_width=12, image_channels=1, width=8, residual_width=4, codebook_size=12, embedding_dim=3
)


def new(name: str, options: Mapping = {}) -> NewModel:
    return NewModel(name=name, options=options)


def images(count: int, channels: int = 1, height: int = 8, width: int = 12) -> ImageDataset:
    """Noise, darker on the left or on the right, class 0 or 1."""
    generator = torch.Generator().manual_seed(count)
    label = torch.randint(0, 2, (count,), generator=generator)
    data = torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    data[label == 0, ..., : width // 2] //= 4
    data[label == 1, ..., width // 2 :] //= 4
    return ImageDataset(data, label, None, ("left", "right"), 2, "halves")


def tokenizer(name: str = "vqvae", preset: str = "tiny", seed: int = 0):
    """A tokenizer whose codebook holds features of images, so that many codes are in use."""
    torch.manual_seed(seed)
    found = entry("tokenizers", name)
    model = found.model(tiny("tokenizers", name, preset).config).train()
    with torch.no_grad():
        model.reconstruction(images(32, *model.image_shape).images, 0.0)
    return model.eval()


@pytest.fixture
def saved(monkeypatch, tmp_path):
    """The folder of a trained tokenizer; `halves` stands for all data."""
    sizes = {"train": 40, "test": 30}
    monkeypatch.setattr("chainrule.training.tasks.examples.load", lambda c, *_: images(sizes[c.split]))
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    save(tokenizer(), tmp_path / "vqvae")
    return tmp_path / "vqvae"


def recipe(path, **training) -> PriorRecipe:
    options = {"num_layers": 2, "width": 8, "head_width": 8, "num_classes": "data"}
    return PriorRecipe(
        data=DataConfig("halves", flip=True),
        tokenizer=SavedTokenizer(path=str(path)),
        prior=new("gated_pixelcnn", options),
        training=PriorTrainingConfig(**(SIMPLE | {"steps": 20, "batch_size": 8, "learning_rate": 0.01} | training)),
        evaluation=EvaluationConfig(every=20, limit=25, batch_size=10),
    )


def fit_recipe(recipe: PriorRecipe, folder: Path):
    path = folder.with_suffix(".yaml")
    path.write_text(write_yaml(recipe.build()[1].plain()))
    return train(path, folder, quiet=True)


def test_codes_are_kept_on_the_disk(saved, monkeypatch):
    task, full = recipe(saved).build()
    plain = full.plain()
    assert plain["tokenizer"] == {"path": str(saved), "hash": tokenizer_hash(load_tokenizer(saved))}
    assert task.card["recipe"]["tokenizer"]["path"] == "vqvae"
    task.setup(torch.device("cpu"))
    assert [grid.dtype for codes in task.training_codes for grid in codes] == [torch.uint8] * 2
    assert task.training_codes[0][0].unique().numel() > 3
    monkeypatch.setattr(VQVAE, "encode", None)  # from here on the cache must do
    again, _ = build_recipe(plain, "again").build()
    again.setup(torch.device("cpu"))
    for one, two in zip(task.training_codes, again.training_codes, strict=True):
        assert torch.equal(one[0], two[0])
    assert len(again.evaluation_codes[0]) == 30


def test_kept_codes_are_those_of_the_images_a_step_sees(saved):
    task, _ = recipe(saved, label_dropout=0.5).build()
    task.setup(torch.device("cpu"))
    indices, part = torch.tensor([3, 1, 39, 20, 7]), slice(1, 4)
    batch = task.batch(indices, part, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    seen = augment(task.training.batch(indices), task.data, generator)
    assert torch.equal(batch.codes[0], encode(task.tokenizer, seen.images)[0][part])
    dropped = torch.rand(5, generator=generator) < 0.5
    assert torch.equal(batch.labels, torch.where(dropped, 2, seen.labels)[part])
    task.training_codes = []
    encoded = task.batch(indices, part, torch.Generator().manual_seed(5))
    assert torch.equal(encoded.labels, batch.labels) and torch.equal(task._encode(encoded)[0][0], batch.codes[0])


def test_a_run_over_codes_resumes_bit_for_bit_and_can_be_guided(saved, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(write_yaml(recipe(saved, label_dropout=0.2, ema_decay=0.9).build()[1].plain()))
    whole = train(path, tmp_path / "whole", quiet=True)
    train(path, tmp_path / "parts", ["training.steps=9"], quiet=True)
    parts = train(path, tmp_path / "parts", quiet=True)
    assert whole.metrics == parts.metrics and set(whole.metrics) == {"nats", "nats_per_code", "bits_per_image"}
    assert whole.metrics["nats_per_code"] == pytest.approx(whole.metrics["nats"] / 6)
    assert whole.metrics["bits_per_image"] == pytest.approx(whole.metrics["nats"] * 1.442695)
    one, two = (chainrule.load(tmp_path / name) for name in ("whole", "parts"))
    for name, value in one.prior.state_dict().items():
        assert torch.equal(value, two.prior.state_dict()[name])
    assert tokenizer_hash(one.tokenizer) == tokenizer_hash(load_tokenizer(saved))
    assert one.num_classes == 2 and one.prior.conditions.num_labels == 3 and one.prior.conditions.null_label
    assert one.sample(3, "left", guidance=2.0).shape == (3, 1, 8, 12)
    assert one.log_prob(images(4).images).shape == (4,)  # of no class


PARTI = {"encoder_layers": 1, "decoder_layers": 1, "width": 8, "num_heads": 2, "dropout": 0.0}
PARTI |= {"text_length": "data", "text_vocab_size": "data"}
DALLE = {"num_layers": 1, "width": 8, "num_heads": 2, "attention": "full"}


def captioned(saved, monkeypatch, name: str, options: dict, **training) -> PriorRecipe:
    """A recipe over images with captions."""

    def load(data, *_):
        found = images({"train": 40, "test": 30}[data.split])
        return replace(found, texts=[f"dark on the {found.class_names[label]}" for label in found.labels])

    monkeypatch.setattr("chainrule.training.tasks.examples.load", load)
    return replace(
        recipe(saved, **training),
        prior=new(name, options),
        text=TextConfig(length=6, text_vocab_size=300, bpe_dropout=0.3),
    )


@pytest.mark.parametrize(("name", "options"), [("parti", PARTI), ("dalle", DALLE)])
def test_a_run_over_captions_resumes_bit_for_bit_and_draws_what_it_is_told(saved, monkeypatch, tmp_path, name, options):
    path = tmp_path / "recipe.yaml"
    path.write_text(write_yaml(captioned(saved, monkeypatch, name, options, caption_dropout=0.2).build()[1].plain()))
    whole = train(path, tmp_path / "whole", ["training.sample_every=20"], quiet=True)
    train(path, tmp_path / "parts", ["training.steps=9"], quiet=True)
    parts = train(path, tmp_path / "parts", quiet=True)
    more = {"text_nats"} if name == "dalle" else set()
    assert whole.metrics == parts.metrics and set(whole.metrics) == {"nats", "nats_per_code", "bits_per_image"} | more
    assert whole.metrics["nats_per_code"] == pytest.approx(whole.metrics["nats"] / 6)
    model = chainrule.load(tmp_path / "parts")
    assert model.sample(2, text="dark on the left").shape == (2, 1, 8, 12)
    nats = -model.log_prob(images(30).images, text=[f"dark on the {('left', 'right')[i]}" for i in images(30).labels])
    assert nats.mean().item() == pytest.approx(whole.metrics["nats"], rel=1e-5)


def test_captions_are_dropped_and_their_merges_too(saved, monkeypatch):
    task, _ = captioned(saved, monkeypatch, "parti", PARTI, caption_dropout=0.5).build()
    one, two = (task.batch(torch.arange(40), slice(0, 40), torch.Generator().manual_seed(n)) for n in (1, 2))
    for batch in (one, two):
        assert 8 < (batch.text == 0).all(1).sum() < 32
    assert not torch.equal(one.text, two.text)
    kept = (one.text != 0).any(1)
    assert not torch.equal(one.text[kept], task.captions.training[kept])
    assert task.captions.tokenizer.decode(one.text[kept])[0].startswith("dark")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text": None}, "'prior.text_length' is taken from the data, and these data have none"),
        (
            {"text": None, "prior": new("parti", PARTI | {"text_length": 6, "text_vocab_size": 9})},
            "the prior reads texts .*; add the section 'text'",
        ),
        (
            {"prior": new("gated_pixelcnn", {"num_layers": 1, "width": 4})},
            "gated_pixelcnn reads no texts",
        ),
        ({"text": TextConfig(length=6, text_vocab_size=100)}, "text_vocab_size must be at least 257"),
        (
            {"text": TextConfig(length=6, vocabulary=Path("nothing.json"))},
            "text.vocabulary nothing.json: .*No such file",
        ),
    ],
)
def test_captions_that_do_not_fit_are_refused(saved, monkeypatch, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(captioned(saved, monkeypatch, "parti", PARTI), **change).build()


def test_images_without_captions_are_refused(saved):
    with pytest.raises(ValueError, match="'text' needs captions, but halves has none"):
        replace(recipe(saved), prior=new("parti", PARTI), text=TextConfig(length=6, text_vocab_size=300)).build()
    with pytest.raises(ValueError, match="dalle draws a text and its image; add the section"):
        replace(recipe(saved), prior=new("dalle", DALLE)).build()


def test_another_tokenizer_at_the_same_path_is_noticed(saved, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(write_yaml(recipe(saved).build()[1].plain()))
    train(path, tmp_path / "run", ["training.steps=1"], quiet=True)
    save(tokenizer(seed=1), saved)
    with pytest.raises(ValueError, match=r"recipe.yaml.*: the tokenizer in .* is another than that of the recipe"):
        train(path, tmp_path / "run", quiet=True)
    path.write_text(path.read_text().replace("hash", "# hash"))
    with pytest.raises(ValueError, match="run of another recipe: tokenizer.hash was"):
        train(path, tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokenizer": new("vqvae")}, r"vqvae must be trained before a prior over its codes; write tokenizer"),
        ({"data": DataConfig("halves", split="odd")}, "halves are 6x12: .* must be multiples of 4, got 6"),
        ({"prior": new("gated_pixelcnn")}, "label_dropout would be ignored: the prior has no classes"),
        ({"prior": new("gated_pixelcnn", {"num_classes": 3})}, "the prior has num_classes 3 but halves has 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(saved, monkeypatch, change, sentence):
    if "data" in change:
        monkeypatch.setattr("chainrule.training.tasks.examples.load", lambda c, *_: images(20, height=6))
    with pytest.raises(ValueError, match=sentence):
        replace(recipe(saved, label_dropout=0.1), **change).build()


def test_a_prior_over_a_tokenizer_of_another_size(saved, monkeypatch, tmp_path):
    """What was trained on 8x12 gives codes of 12x8 as well; the saved model is of that size."""
    sizes = {"train": 40, "test": 30}
    monkeypatch.setattr(
        "chainrule.training.tasks.examples.load", lambda c, *_: images(sizes[c.split], height=12, width=8)
    )
    fit_recipe(recipe(saved, steps=2), tmp_path / "run")
    model, own = chainrule.load(tmp_path / "run"), load_tokenizer(saved)
    assert model.tokenizer.image_shape == (1, 12, 8) and model.sample(2, 0).shape == (2, 1, 12, 8)
    upright = images(3, height=12, width=8).images
    assert torch.equal(model.tokenizer.encode(upright)[0], own.encode(upright)[0])
    assert read_yaml(tmp_path / "run" / "recipe.yaml")["tokenizer"]["hash"] == tokenizer_hash(own)


def test_mistakes_in_the_recipe(saved):
    plain = recipe(saved).build()[1].plain()
    for change, sentence in [
        ({"tokenizer": {"path": "x", "name": "vqvae"}}, "unknown key 'name' in 'tokenizer'; there are: path, hash"),
        ({"training": plain["training"] | {"label_dropout": 1.0}}, "label_dropout must lie in 0..1, 1 excluded"),
        ({"training": plain["training"] | {"soft_targets": -1.0}}, "soft_targets must be at least 0"),
    ]:
        with pytest.raises(ValueError) as error:
            build_recipe(plain | change, "r.yaml")
        assert sentence in str(error.value)


def test_a_run_of_an_older_version_goes_on(saved, tmp_path):
    plain = recipe(saved).build()[1].plain()
    old = {key: value for key, value in plain["training"].items() if key not in ("label_dropout", "soft_targets")}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(write_yaml(plain | {"training": old}))
    check_folder(tmp_path / "run", plain, True)
    with pytest.raises(ValueError, match=r"training.label_dropout was 0.0 and is 0.1"):
        check_folder(tmp_path / "run", plain | {"training": old | {"label_dropout": 0.1}}, True)


# ---------------------------------------------------------------- vectors and soft targets


@pytest.mark.parametrize(
    ("name", "preset"),
    [("vqvae", "tiny"), ("vqvae", "tiny-loss"), ("vqgan", "tiny"), ("dvae", "tiny"), ("rqvae", "tiny"),
     ("rqvae", "tiny-separate")],
)  # fmt: skip
@torch.no_grad()
def test_the_quantized_features_are_sums_of_vectors(name, preset):
    found = entry("tokenizers", name)
    model = found.model(tiny("tokenizers", name, preset).config).eval()
    (vectors,) = model.vectors()
    grid = model.spec.only
    assert vectors.shape[:2] == (grid.depth, grid.codebook_size)
    codes = torch.randint(0, grid.codebook_size, (2, *grid.shape))
    total = sum(vectors[depth][codes[..., depth]] for depth in range(grid.depth))
    torch.testing.assert_close(total.permute(0, 3, 1, 2), model.embed(codes))


def test_a_prior_is_given_the_vectors(saved, monkeypatch):
    given = []
    monkeypatch.setattr(GatedPixelCNN, "attach", lambda self, vectors: given.append(vectors))
    recipe(saved).build()
    assert torch.equal(given[0][0], load_tokenizer(saved).vectors()[0])
    replace(recipe(saved), tokenizer=new("pixels", {"levels": 2}), data=DataConfig("halves")).build()
    assert given[1] is None


def test_soft_targets(saved, monkeypatch, tmp_path):
    model = tokenizer("rqvae")
    save(model, tmp_path / "rqvae")
    monkeypatch.setattr("chainrule.training.tasks.examples.load", lambda c, *_: images(20, *model.image_shape))
    hard, _ = recipe(tmp_path / "rqvae").build()
    cold, _ = recipe(tmp_path / "rqvae", soft_targets=1e-6).build()
    warm, full = recipe(tmp_path / "rqvae", soft_targets=0.5).build()
    for task in (hard, cold, warm):
        task.setup(torch.device("cpu"))
    assert hard.training_codes and not warm.training_codes and warm.evaluation_codes is not None
    assert full.training.soft_targets == 0.5
    batches = [task.batch(torch.arange(4), slice(0, 4), torch.Generator().manual_seed(1)) for task in (hard, cold)]
    losses = [task.loss(task.model, batch, 0.0) for task, batch in zip((hard, cold), batches, strict=True)]
    torch.testing.assert_close(losses[0][0], losses[1][0])  # without warmth, the codes of `encode`
    torch.testing.assert_close(losses[0][1]["nats"], losses[1][1]["nats"])

    torch.manual_seed(3)
    loss, metrics = warm.loss(warm.model, batches[1], 0.0)
    torch.manual_seed(3)
    codes, targets = model.encode_soft(batches[1].images, 0.5)
    context = warm._context(batches[1])
    log_prob = warm.model(codes, context)[0].log_softmax(-1)
    torch.testing.assert_close(loss, -(targets * log_prob).sum() / (4 * model.spec.length))
    torch.testing.assert_close(metrics["nats"], -warm.model.log_prob(codes, context).mean())
    with pytest.raises(ValueError, match="soft_targets need a tokenizer whose codes can be drawn, as rqvae, not vqvae"):
        monkeypatch.setattr("chainrule.training.tasks.examples.load", lambda c, *_: images(20))
        recipe(saved, soft_targets=0.5).build()


def test_noise_on_the_codes_that_a_prior_reads(saved, monkeypatch):
    clean, _ = recipe(saved).build()
    task, full = recipe(saved, code_noise=0.9).build()
    assert full.training.code_noise == 0.9
    batch = task.batch(torch.arange(8), slice(0, 8), torch.Generator().manual_seed(1))
    read = []
    monkeypatch.setattr(task.model, "forward", lambda codes, context: read.append(codes) or clean.model(codes, context))
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(task.loss(task.model, batch, 0.0)[0])
    codes, context = task._encode(batch)
    target = torch.nn.functional.cross_entropy(clean.model(read[0], context)[0].flatten(0, -2), codes[0].flatten())
    torch.testing.assert_close(losses[0], target)  # what it tells is the image's
    assert losses[0] == losses[1] and torch.equal(read[0][0], read[1][0])
    changed = (read[0][0] != codes[0]).flatten(1).float().mean(1)
    assert 0 < changed.mean() < 0.9 and changed.unique().numel() > 2
    assert task.evaluate(task.model, True) == clean.evaluate(clean.model, True)
    with pytest.raises(ValueError, match="code_noise must lie in 0..1, 1 excluded, got 1"):
        recipe(saved, code_noise=1.0)


@pytest.mark.parametrize("classes, dropped, found", [(0, 0.0, (0, False)), ("data", 0.0, (2, False))])
def test_a_trained_prior_takes_other_classes(saved, tmp_path, classes, dropped, found):
    fit_recipe(recipe(saved, label_dropout=0.2), tmp_path / "first")
    mapping = {
        "data": {"source": "halves"}, "prior": {"path": str(tmp_path / "first"), "num_classes": classes},
        "training": SIMPLE | {"steps": 2, "batch_size": 8, "label_dropout": dropped},
    }  # fmt: skip
    task, _ = build_recipe(mapping, "mine").build()
    assert (task.model.config.num_classes, task.model.config.null_label) == found
    weights, old = task.model.state_dict(), chainrule.load(tmp_path / "first").prior.state_dict()
    other = [name for name, value in weights.items() if not torch.equal(value, old[name])]
    assert len(other) == (0 if classes == 0 else 2) and all(value.requires_grad for value in task.model.parameters())
    with pytest.raises(ValueError, match="the prior has num_classes 5 but halves has 2"):
        build_recipe(mapping | {"prior": mapping["prior"] | {"num_classes": 5}}, "mine").build()


def test_a_trained_prior_goes_on_with_other_images(saved, monkeypatch, tmp_path):
    first = fit_recipe(recipe(saved, label_dropout=0.2), tmp_path / "first")
    mapping = {
        "data": {"source": "halves"}, "prior": {"path": str(tmp_path / "first")},
        "training": SIMPLE | {"steps": 4, "batch_size": 8, "learning_rate": 0.01, "label_dropout": 0.2},
        "evaluation": {"limit": 25, "batch_size": 10},
    }  # fmt: skip
    task, full = build_recipe(mapping, "mine").build()
    assert list(full.plain()) == ["data", "prior", "training", "evaluation"]
    before = chainrule.load(tmp_path / "first")
    assert task.evaluate(task.model, True)["nats"] == pytest.approx(first.metrics["nats"])
    assert tokenizer_hash(task.tokenizer) == tokenizer_hash(before.tokenizer)
    second = fit_recipe(build_recipe(mapping, "mine"), tmp_path / "second")
    after = chainrule.load(tmp_path / "second")
    assert second.steps == 4 and after.prior.config == before.prior.config
    assert after.card["recipe"]["prior"] == {"path": "first", "num_classes": None}
    assert any(not torch.equal(a, b) for a, b in zip(after.prior.parameters(), before.prior.parameters(), strict=True))

    for section, value in (("tokenizer", {"path": str(saved)}), ("text", {"length": 4})):
        with pytest.raises(ValueError, match=f"comes with its {section}; leave out '{section}'"):
            build_recipe(mapping | {section: value}, "mine")
    with pytest.raises(ValueError, match="unknown key 'width' in 'prior'"):
        build_recipe(mapping | {"prior": mapping["prior"] | {"width": 8}}, "mine")
    with pytest.raises(ValueError, match="the prior has the label for no class, which label_dropout 0.0 contradicts"):
        build_recipe(mapping | {"training": mapping["training"] | {"label_dropout": 0.0}}, "mine").build()
    monkeypatch.setattr("chainrule.training.tasks.examples.load", lambda c, *_: images(20, 3))
    with pytest.raises(ValueError, match=r"the tokenizer is for images \(1, 8, 12\)"):
        build_recipe(mapping, "mine").build()
