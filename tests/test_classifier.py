"""The classifier: its scores, its folder, its training, and rejection by it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import chainrule
from chainrule import Pipeline
from chainrule.data import DataConfig, ImageDataset
from chainrule.priors.pixelcnn import PixelCNN, PixelCNNConfig
from chainrule.recipe import build_recipe
from chainrule.scorers.classifier import Classifier, ClassifierConfig
from chainrule.tokenizers.pixels import Pixels, PixelsConfig
from chainrule.training import train
from chainrule.training.tasks import examples
from chainrule.training.tasks.classifier import ClassifierTask
from chainrule.zoo import load_kind, load_scorer, load_tokenizer, read_card, save

CONFIG = ClassifierConfig((1, 8, 8), 3, ("cat", "dog", "red fish"), 16, 2, 1)
RECIPE = {
    "data": {"source": "stripes", "flip": False},
    "classifier": {"width": 16, "num_stages": 2, "num_blocks": 1, "dropout": 0.0},
    "training": {
        "steps": 30, "batch_size": 16, "learning_rate": 3e-3, "precision": "float32", "ema_decay": 0.9,
        "save_every": 20, "log_every": 10,
    },
    "evaluation": {"split": "test", "every": 60, "limit": 20},
}  # fmt: skip


def noise(count: int, shape: tuple[int, int, int] = (1, 8, 8)) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def stripes(monkeypatch) -> None:
    """A data set of noise with a bright stripe on the left, in the middle or on the right."""

    def read(config, *_):
        labels = torch.arange(90 if config.split == "train" else 30) % 3
        images = noise(len(labels)) // 2
        for index, label in enumerate(labels.tolist()):
            images[index, :, :, 2 * label : 2 * label + 3] += 100
        return ImageDataset(images, labels, None, CONFIG.class_names, 3, config.source)

    monkeypatch.setattr("chainrule.training.tasks.examples.load", read)


def build() -> Classifier:
    torch.manual_seed(5)
    return Classifier(CONFIG).eval()


def changed(**sections) -> dict:
    """The recipe with other keys in its sections; None leaves a section out."""
    both = {name: {**RECIPE.get(name, {}), **(keys or {})} for name, keys in (RECIPE | sections).items()}
    return {name: keys for name, keys in both.items() if sections.get(name, {}) is not None}


# ---------------------------------------------------------------- saved models


def test_a_saved_classifier_is_the_same(tmp_path):
    save(build(), tmp_path / "scorer", {"licence": "none"})
    again = load_scorer(tmp_path / "scorer")
    assert again.config == CONFIG and not again.training
    assert torch.equal(again(noise(3)), build()(noise(3)))
    assert read_card(tmp_path / "scorer") == {"licence": "none"}


def test_a_narrow_classifier_learns_alike_in_both_orders_of_memory():
    """A stride inside its 1x1 convolutions ended the process on some processors."""
    gradients = []
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = Classifier(ClassifierConfig((1, 16, 16), 3, None, 4, 2, 1)).to(memory_format=order)
        model(noise(2, (1, 16, 16))).square().sum().backward()
        gradients.append([weight.grad.contiguous() for weight in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_classifiers_and_models_are_told_apart(tmp_path):
    save(build(), tmp_path / "scorer")
    assert isinstance(chainrule.load(tmp_path / "scorer"), Classifier)
    for open_other in (
        partial(load_kind, tmp_path / "scorer", "pipeline"),
        partial(load_tokenizer, tmp_path / "scorer"),
    ):
        with pytest.raises(ValueError, match=r"holds a classifier, but a .*pipeline is needed; .* as --reranker"):
            open_other()
    save(Pixels(PixelsConfig(image_height=8, image_width=8, image_channels=1, levels=2)), tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="holds a tokenizer, but a reranker or classifier is needed"):
        load_scorer(tmp_path / "tokenizer")
    (tmp_path / "scorer" / "classifier.safetensors").unlink()
    with pytest.raises(ValueError, match="classifier.safetensors is missing or damaged"):
        load_scorer(tmp_path / "scorer")


# ---------------------------------------------------------------- the classifier


def test_scores_are_log_probabilities_of_the_wanted_classes():
    model, images = build(), noise(4)
    log_prob = model(images).log_softmax(1)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(4))
    scores = model.for_labels(["dog", 0, "2", "red fish"])(images)
    torch.testing.assert_close(scores, log_prob[torch.arange(4), torch.tensor([1, 0, 2, 2])])
    torch.testing.assert_close(model.for_labels("dog")(images), log_prob[:, 1])
    torch.testing.assert_close(model.for_labels(torch.tensor([1, 1, 1, 1]))(images), log_prob[:, 1])
    assert not scores.requires_grad
    alone = torch.cat([model.for_labels("dog")(one[None]) for one in images])
    torch.testing.assert_close(alone, log_prob[:, 1], rtol=1e-4, atol=1e-5)  # not of the images beside it


def test_mistakes_in_classifying():
    model = build()
    with pytest.raises(ValueError, match=r"no class 'bird'; it knows 3: cat, dog, red fish"):
        model.for_labels("bird")
    with pytest.raises(ValueError, match=r"label must lie in 0\.\.2, got 3"):
        model.for_labels([0, 3])
    with pytest.raises(ValueError, match="2 labels are wanted of 4 images"):
        model.for_labels([0, 1])(noise(4))
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, 1, 8, 8\), got uint8 \(4, 3, 8, 8\)"):
        model(noise(4, (3, 8, 8)))
    with pytest.raises(ValueError, match="class_names must be 3 names, got 2"):
        ClassifierConfig((1, 8, 8), 3, ("cat", "dog"))
    with pytest.raises(ValueError, match="sides of at least 8"):
        ClassifierConfig((1, 4, 8), 3)


def test_of_several_candidates_the_surest_is_kept():
    torch.manual_seed(1)
    tokenizer = Pixels(PixelsConfig(image_height=8, image_width=8, image_channels=1, levels=2))
    pipeline = Pipeline(
        tokenizer,
        PixelCNN(tokenizer.spec, PixelCNNConfig(num_layers=2, width=4, head_width=6, num_classes=3)),
        CONFIG.class_names,
    )
    scorer = build().for_labels([0, 1, 2, 1, 0])
    labels = ["cat", "dog", "red fish", "dog", "cat"]
    plain, best = pipeline.sample(5, labels), pipeline.sample(5, labels, best_of=6, scorer=scorer)
    assert scorer(best).mean() > scorer(plain).mean()
    with pytest.raises(ValueError, match="2 seeds were given for 5 images"):
        pipeline.sample(5, labels, seed=[1, 2])


# ---------------------------------------------------------------- training


def test_a_recipe_trains_a_classifier_and_goes_on(tmp_path, stripes):
    Path(tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    result = train(tmp_path / "recipe.yaml", tmp_path / "run", quiet=True)
    data = examples.load(DataConfig("stripes", "test"))
    scorer = load_scorer(tmp_path / "run")
    assert scorer.config.class_names == data.class_names and scorer.config.width == 16
    right = (scorer(data.images).argmax(1) == data.labels).double().mean().item()
    assert result.metrics["accuracy"] == pytest.approx(right) and right > 0.9
    nats = -scorer.for_labels(data.labels)(data.images).mean().item()
    assert result.metrics["nats"] == pytest.approx(nats, rel=1e-3)
    assert read_card(tmp_path / "run")["recipe"]["classifier"]["num_classes"] == data.num_classes
    again = train(tmp_path / "run" / "recipe.yaml", tmp_path / "run", ["training.steps=31"], quiet=True)
    assert again.steps == 31
    with pytest.raises(ValueError, match=r"another recipe: classifier\.width was 16 and is 8"):
        train(tmp_path / "recipe.yaml", tmp_path / "run", ["classifier.width=8"], quiet=True)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (changed(tokenizer={"name": "pixels"}), "leave out 'tokenizer'"),
        (changed(prior={"name": "gpt"}), "leave out 'prior'"),
        (changed(classifier=None), "a recipe needs one of the sections classifier, "),
    ],
)  # fmt: skip
def test_sections_that_do_not_go_together(recipe, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_recipe(recipe, "r")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.label_dropout=0.1", "'training.label_dropout' belongs to a recipe with 'prior' and would"),
        ("training.sample_every=10", "'training.sample_every' would be ignored by a classifier"),
        ("classifier.image_shape=[3,8,8]", r"'classifier\.image_shape' must be \(1, 8, 8\), as stripes has it"),
        ("classifier.widht=8", "unknown key 'widht' in 'classifier'; did you mean 'width'"),
        ("classifier.num_stages=9", "sides of at least 512"),
    ],
)  # fmt: skip
def test_mistakes_in_recipes_of_classifiers(tmp_path, stripes, override, sentence):
    Path(tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path / "recipe.yaml", tmp_path / "run", [override], quiet=True)


def test_a_classifier_needs_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "chainrule.training.tasks.examples.load", lambda config, *_: ImageDataset(noise(4), name="drawings")
    )
    with pytest.raises(ValueError, match="needs labels, but drawings has none; see data.label_column"):
        build_recipe(RECIPE, "r").build()


def test_training_images_are_flipped_and_those_of_evaluation_are_not():
    images = ImageDataset(noise(6), torch.arange(6) % 3, num_classes=3)
    task = ClassifierTask(
        build(),
        examples.Examples(data=DataConfig("drawings", flip=True), training=images, evaluation=images, batch_size=4),
    )
    batch = task.batch(torch.arange(6), slice(1, 5), torch.Generator().manual_seed(0))
    flipped = [torch.equal(one, other.flip(-1)) for one, other in zip(batch.images, images.images[1:5], strict=True)]
    kept = [torch.equal(one, other) for one, other in zip(batch.images, images.images[1:5], strict=True)]
    assert sum(flipped) and sum(kept) and sum(flipped) + sum(kept) == 4
    assert batch.labels.tolist() == [1, 2, 0, 1]
    with torch.no_grad():
        nats = -build().for_labels(images.labels)(images.images).mean().item()
        assert task.evaluate(task.model, True)["nats"] == pytest.approx(nats, rel=1e-5)
