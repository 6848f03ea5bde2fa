"""Training released models further: whole tokenizers, priors of other classes, LoRA, images of other sizes.

The slow tests take 50 steps on every fixture of an official checkpoint and on bundled models.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import chainrule
from chainrule.core import Prior, entry
from chainrule.layers.lora import LoRAConfig, LowRank, add_lora, merge, trained
from chainrule.official import convert
from chainrule.recipe import build_recipe
from chainrule.saving.model import read_model
from chainrule.strict import write_yaml
from chainrule.training import train
from chainrule.training.tasks.further import with_classes
from chainrule.zoo import load_kind
from sizes import cases, tiny

FIXTURES = Path(
    os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[1].parent / "shared" / "fixtures")
)
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="no fixtures of official checkpoints; name their folder in CHAINRULE_FIXTURES"
)
ADVERSARY = {"adversarial": {"width": 8, "num_layers": 2, "start": 0.2}}
LORA = {"rank": 4}
TOKENIZERS = {"enhancing_vitvqgan": None, "kakao_rqvae": None, "openai_dvae": 32, "rosinality_vqvae2": None,
              "taming_gumbel_vqgan": None, "taming_vqgan": None}  # fmt: skip
"""Releases and the size of the images, where it is not the model's own."""
PRIORS = {"kakao_rqtransformer": None, "mindalle_kakao": None, "pclucas_pixelcnnpp": 16, "rosinality_vqvae2": None,
          "taming_net2net": None}  # fmt: skip


def mapping(part: str, path: str | Path, size: int | None = None, losses: dict | None = None, **training) -> dict:
    """A recipe that trains a model further on 32 pictures of shapes."""
    data = {"source": "shapes", "split": "train[:32]"} | ({} if size is None else {"size": size})
    found = {"data": data, part: {"path": str(path)}, "evaluation": {"split": "test[:8]", "batch_size": 16}}
    if part == "prior" and load_kind(path, "pipeline").num_classes:
        found["prior"]["num_classes"] = "data"
    usual = {
        "steps": 50,
        "batch_size": 8,
        "sample_every": 0,
        "precision": "float32",
        "compile": False,
        "ema_decay": 0.0,
    }
    return found | {"training": usual | training} | ({} if losses is None else {"losses": losses})


def further(folder: Path, *args, **kwargs) -> tuple[float, float]:
    """The held-out loss before and after, of the model that is saved in `folder / "run"`."""
    recipe = mapping(*args, **kwargs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(write_yaml(recipe), encoding="utf-8")
    task, _ = build_recipe(recipe, "mine").build()
    before, after = task.evaluate(task.model, True), train(folder / "recipe.yaml", folder / "run", quiet=True).metrics
    return (-before["psnr"], -after["psnr"]) if "psnr" in before else (before["nats"], after["nats"])


# ---------------------------------------------------------------- LoRA


TRANSFORMERS = ("gpt", "rq_transformer", "dalle", "parti", "dalle_bart")


@pytest.mark.parametrize(
    ("registered", "preset"), [case for case in cases("priors", Prior) if case.values[0].name in TRANSFORMERS]
)
def test_a_change_of_low_rank_begins_as_none_and_merges(registered, preset):
    torch.manual_seed(0)
    prior = registered.model(preset.spec, preset.config).eval()
    plain = {name: value.clone() for name, value in prior.state_dict().items()}
    add_lora(prior, LoRAConfig(rank=2))
    changes = [layer for layer in prior.modules() if isinstance(layer, LowRank)]
    assert changes and all(torch.equal(layer.weight, layer.frozen.weight) for layer in changes)
    assert sorted(trained(prior)) == sorted(name for name in trained(prior) if name.endswith((".up", ".down")))
    for layer in changes:
        torch.nn.init.normal_(layer.up)
    x = torch.randn(3, changes[0].in_features)
    expected = changes[0](x)
    torch.testing.assert_close(torch.nn.functional.linear(x, changes[0].weight, changes[0].bias), expected)
    merge(prior)
    assert prior.state_dict().keys() == plain.keys()
    moved = [name for name, value in prior.state_dict().items() if not torch.equal(value, plain[name])]
    assert len(moved) == len(changes)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> tuple[Path, float, float]:
    """An adapter of a bundled model, and the held-out loss before and after."""
    folder = tmp_path_factory.mktemp("adapted")
    losses = further(folder, "prior", "emoji_gpt", steps=8, batch_size=4, lora=LORA, learning_rate=1e-2)
    return folder / "run" / "model", *losses


def test_an_adapter_is_small_lowers_the_loss_and_draws(adapted, tmp_path):
    folder, before, after = adapted
    base = chainrule.load("emoji_gpt")
    assert after < before
    saved, bytes_of = read_model(folder), (folder / "prior.safetensors").stat().st_size
    assert saved.adapter.base == "emoji_gpt" and not (folder / "tokenizer.safetensors").exists()
    assert bytes_of / 4 < 0.02 * sum(value.numel() for value in base.prior.parameters())
    model = chainrule.load(folder)
    assert model.num_classes == 40 and not any(isinstance(layer, LowRank) for layer in model.prior.modules())
    images = {precision: model.sample(2, "red star", seed=1, precision=precision) for precision in ("float32", "int8")}
    assert images["float32"].shape == images["int8"].shape == (2, 3, 64, 64)
    chainrule.save(model, tmp_path / "whole")
    whole = chainrule.load(tmp_path / "whole")
    assert torch.equal(whole.sample(2, "red star", seed=1), images["float32"])
    assert chainrule.info(folder)["prior"]["num_classes"] == 40


def test_an_adapter_of_something_else_is_refused(adapted, tmp_path):
    folder, *_ = adapted
    text = (folder / "config.yaml").read_text()
    other = shutil.copytree(folder, tmp_path / "other")

    def refused(old: str, new: str, sentence: str) -> None:
        (other / "config.yaml").write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=sentence):
            chainrule.load(other)

    number = read_model(folder).adapter.hash
    refused(number, "f" * 64, "is an adapter of another emoji_gpt than the one that is here")
    refused("base: emoji_gpt", "base: /nowhere/mine", "is an adapter of /nowhere/mine, which is not here")
    refused("rank: 4", "rank: 3", "holds weights of another architecture")
    refused("num_layers: 7", "num_layers: 6", "holds weights of another architecture")
    refused("base: emoji_gpt", f"base: {folder}", "is an adapter itself; save it whole")
    shutil.copytree(Path(chainrule.__file__).parent / "pretrained" / "emoji_vqvae", tmp_path / "mine")
    refused("base: emoji_gpt", "base: /nowhere/mine", "holds a tokenizer, but a pipeline is needed")


@pytest.mark.parametrize(("recipe", "sentence"), [
    ({"prior": {"path": "emoji_pixelsnail", "num_classes": "data"}}, "lora adapts the attention of transformers"),
    ({"prior": {"name": "gpt"}, "tokenizer": {"path": "emoji_vqvae"}}, "lora changes a trained prior: give prior.path"),
    ({"prior": {"path": "emoji_gpt"}, "training": {"lora": {"rank": 0}}}, "the rank of lora must be at least 1"),
])  # fmt: skip
def test_mistakes_with_lora(recipe, sentence):
    data = {"source": "shapes", "split": "train[:4]"}
    with pytest.raises(ValueError, match=sentence):
        build_recipe(
            {"data": data, "training": {"lora": LORA}, "evaluation": {"split": "test[:4]"}} | recipe, "mine"
        ).build()


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize("name", ["gpt", "rq_transformer", "pixelcnn", "gated_pixelcnn", "pixelsnail"])
@pytest.mark.parametrize("null_label", [False, True])
def test_new_classes_begin_as_what_the_model_knows(name, null_label):
    preset = tiny("priors", name)
    config = replace(preset.config, num_classes=3, null_label=null_label)
    model = entry("priors", name).model(preset.spec, config)
    new, changed, note = with_classes(model, 70, null_label=False)
    assert new.conditions.num_classes == 70 and note.startswith("num_classes was 3 and is 70: new are")
    old, weights = model.state_dict(), new.state_dict()
    for key in weights:
        assert (key in changed) == (weights[key].shape != old[key].shape)
    rows = weights[changed[0]][-2:]
    labels = old[changed[0]][: 3 + null_label] if name == "gpt" else old[changed[0]]
    torch.testing.assert_close(rows[0], labels[-1] if null_label else labels.mean(0))


# ---------------------------------------------------------------- sizes and whole tokenizers


def test_a_convolutional_prior_goes_on_at_another_size_and_a_transformer_says_why_not(tmp_path):
    recipe = mapping("prior", "emoji_gated_pixelcnn", 32)
    del recipe["prior"]["num_classes"]
    recipe["prior"]["num_classes"] = 0
    task, _ = build_recipe(recipe, "mine").build()
    assert task.tokenizer.image_shape == (3, 32, 32) and task.model.spec.only.shape[:2] == (8, 8)
    old = chainrule.load("emoji_gated_pixelcnn").prior.state_dict()
    assert all(torch.equal(value, old[name]) for name, value in task.model.state_dict().items())
    with pytest.raises(
        ValueError, match="this gpt has weights for each position of 16x16 codes, and these images have 8x8"
    ):
        build_recipe(mapping("prior", "emoji_gpt", 32), "mine").build()


@pytest.mark.parametrize("losses", [None, ADVERSARY], ids=["alone", "adversary"])
def test_a_whole_tokenizer_is_trained_further_at_another_size(tmp_path, capsys, losses):
    before, after = further(tmp_path, "tokenizer", "emoji_vqvae", 16, losses, steps=15)
    assert after < before
    old, new = chainrule.load("emoji_vqvae"), chainrule.load(tmp_path / "run")
    assert new.image_shape == (3, 16, 16) and not old.at_size(16, 16).same_codes(new)
    if losses:
        assert "adversary" in (tmp_path / "run" / "log.csv").read_text()
    task, _ = build_recipe(mapping("tokenizer", "emoji_vqvae", 16), "mine").build()
    assert "its codes change" in task.notes[0]


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@needs_fixtures
@pytest.mark.slow
def test_released_tokenizers_learn_in_50_steps(tmp_path, name):
    convert(FIXTURES / name, tmp_path / "model")
    for losses in (None, ADVERSARY):
        before, after = further(
            tmp_path / f"run{losses is None}", "tokenizer", tmp_path / "model", TOKENIZERS[name], losses
        )
        assert after < before


@pytest.mark.parametrize("name", sorted(PRIORS))
@needs_fixtures
@pytest.mark.slow
def test_released_priors_learn_in_50_steps(tmp_path, name):
    convert(FIXTURES / name, tmp_path / "model")
    model = tmp_path / "model"
    before, after = further(tmp_path, "prior", model, PRIORS[name])
    assert after < before
    if name not in ("pclucas_pixelcnnpp", "rosinality_vqvae2"):  # which are no transformers
        before, after = further(tmp_path / "lora", "prior", model, lora=LORA, learning_rate=1e-2)
        assert after < before


@needs_fixtures
def test_a_release_with_captions_learns_by_lora(tmp_path):
    convert(FIXTURES / "mindalle_kakao", tmp_path / "model")
    before, after = further(tmp_path, "prior", tmp_path / "model", lora=LORA, steps=20, learning_rate=1e-2)
    assert after < before
    assert read_model(tmp_path / "run" / "model").adapter.base == str((tmp_path / "model").resolve())
    shutil.move(tmp_path / "model", tmp_path / "run" / "model2")
    with pytest.raises(ValueError, match="which is not here"):
        chainrule.load(tmp_path / "run")
    shutil.move(tmp_path / "run" / "model2", tmp_path / "model")
    assert chainrule.load(tmp_path / "run").sample(1, text="a red star").shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", ["emoji_gpt", "emoji_rq_transformer", "emoji_gated_pixelcnn", "emoji_pixelsnail"])
@pytest.mark.slow
def test_bundled_priors_learn_other_pictures_in_50_steps(tmp_path, name):
    before, after = further(tmp_path, "prior", name)
    assert after < before


@pytest.mark.parametrize("name", ["emoji_dvae", "emoji_rqvae", "emoji_vqgan", "emoji_vqvae", "emoji_vqvae2"])
@pytest.mark.slow
def test_bundled_tokenizers_learn_other_pictures_in_50_steps(tmp_path, name):
    """At the rate of docs/how-to/own-images.md: at the rate of a new model, the codes of VQ-VAE-2 need longer."""
    before, after = further(tmp_path, "tokenizer", name, 32, learning_rate=1e-4)
    assert after < before
