"""Parts of the engine, the prior task, and `fit` from a recipe."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from chainrule import load
from chainrule.data import DataConfig, ImageDataset
from chainrule.files import owned
from chainrule.images import image_grid
from chainrule.priors.pixelcnn import PixelCNNConfig
from chainrule.recipe import RECIPES, NewModel, build_recipe, read_recipe, recipe_names
from chainrule.strict import parse_yaml, to_plain, write_yaml
from chainrule.training import EvaluationConfig, TrainingConfig, train
from chainrule.training.engine.average import Average
from chainrule.training.engine.log import Table
from chainrule.training.engine.order import batch_indices, derive_seed, epoch_order
from chainrule.training.engine.schedule import learning_rate
from chainrule.training.run import check_folder
from chainrule.training.tasks.prior import PriorRecipe, PriorTrainingConfig

TRAINING = TrainingConfig(steps=100, batch_size=10, learning_rate=2.0, schedule="constant", warmup_steps=0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {0: 2.0, 99: 2.0}),
        ({"warmup_steps": 4}, {0: 0.5, 1: 1.0, 3: 2.0, 4: 2.0, 99: 2.0}),
        ({"schedule": "linear"}, {0: 2.0, 50: 1.0, 99: 0.02}),
        ({"schedule": "linear", "warmup_steps": 50}, {49: 2.0, 50: 2.0, 75: 1.0, 99: 0.04}),
        ({"schedule": "cosine"}, {0: 2.0, 25: 1 + 2**-0.5, 50: 1.0, 75: 1 - 2**-0.5}),
        ({"schedule": "wsd", "decay_share": 0.2, "warmup_steps": 2}, {0: 1.0, 2: 2.0, 80: 2.0, 90: 1.0, 99: 0.1}),
    ],
)
def test_schedules(change, expected):
    schedule = replace(TRAINING, **change)
    assert {step: learning_rate(schedule, step) for step in expected} == pytest.approx(expected)
    assert all(0 < learning_rate(schedule, step) <= 2 for step in range(100))


def test_every_epoch_sees_every_example_once():
    seen = torch.cat([batch_indices(7, step, 4, 10) for step in range(5)])
    assert seen[:10].sort().values.tolist() == seen[10:].sort().values.tolist() == list(range(10))
    assert seen[:10].tolist() == epoch_order(7, 0, 10).tolist() != seen[10:].tolist()
    assert batch_indices(7, 1, 25, 10)[:5].tolist() == epoch_order(7, 2, 10)[5:].tolist()  # a batch of several epochs
    assert epoch_order(8, 0, 10).tolist() != epoch_order(7, 0, 10).tolist()


def test_seeds_do_not_depend_on_the_machine():
    assert derive_seed(0, "batch", 1) == 2328629843013765859
    assert len({derive_seed(seed, step) for seed in range(9) for step in range(9)}) == 81


def test_average_follows_its_equation():
    module = nn.BatchNorm1d(2)
    average = Average(module, copy.deepcopy(module), 0.5)
    expected = module.weight.detach().clone()
    for update, decay in enumerate([0.1, 2 / 11, 0.25, 4 / 13, 5 / 14, 0.4, 7 / 16, 8 / 17, 0.5, 0.5, 0.5]):
        module.weight.data.fill_(update)
        module.running_mean.fill_(update)
        average.update()
        expected = decay * expected + (1 - decay) * update
        torch.testing.assert_close(average.module.weight.data, expected)
    assert average.module.running_mean.tolist() == [10.0, 10.0] and not average.module.training
    assert Average(module, module, 0.0).whole() is module


def test_table_can_be_cut_back(tmp_path):
    table = Table(tmp_path / "log.csv")
    table.add({"step": 1, "loss": 0.1})
    size = table.size()
    table.add({"step": 2, "loss": float("nan")})
    table.cut(size)
    table.cut(10**6)
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,0.1\n"


def test_image_grid():
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 3)
    picture = image_grid(images)
    assert picture.shape == (7, 13, 3) and picture[4:6, 5:8].tolist() == np.full((2, 3, 3), 4).tolist()
    assert (picture[0] == 128).all() and (picture[4:, 9:] == 128).all()


# ---------------------------------------------------------------- a prior, from a recipe


def new(name: str, options: Mapping = {}) -> NewModel:
    return NewModel(name=name, options=options)


def images(count: int, labels: bool = True) -> ImageDataset:
    """Left or right half on, class 0 or 1."""
    generator = torch.Generator().manual_seed(count)
    label = torch.randint(0, 2, (count,), generator=generator)
    data = torch.zeros(count, 1, 4, 6, dtype=torch.uint8)
    data[label == 0, :, :, :3] = 230
    data[label == 1, :, :, 3:] = 230
    return ImageDataset(data, label if labels else None, None, ("left", "right"), 2 if labels else None, "halves")


@pytest.fixture
def halves(monkeypatch):
    """The data set `halves` in place of all sources."""
    sizes = {"train": 64, "test": 30}
    monkeypatch.setattr(
        "chainrule.training.tasks.examples.load", lambda c, *_: images(sizes[c.split], c.source == "labelled")
    )


RECIPE = PriorRecipe(
    data=DataConfig("labelled", binarize="sample"),
    tokenizer=new("pixels"),
    prior=new("gated_pixelcnn", {"num_layers": 2, "width": 4, "head_width": 8, "num_classes": "data"}),
    training=PriorTrainingConfig(
        steps=60,
        batch_size=16,
        learning_rate=0.02,
        optimizer="adam",
        schedule="constant",
        warmup_steps=0,
        gradient_clip=0.0,
        ema_decay=0.9,
        precision="float32",
        compile=False,
        log_every=20,
    ),
    evaluation=EvaluationConfig(every=30, limit=25, batch_size=10),
)


def test_recipe_is_written_out_in_full(halves):
    task, full = RECIPE.build()
    plain = full.plain()
    assert plain["tokenizer"] == {
        "name": "pixels",
        "image_height": 4,
        "image_width": 6,
        "image_channels": 1,
        "levels": 2,
    }
    assert plain["prior"]["num_classes"] == 2 and plain["prior"]["kernel_size"] == 3
    again = build_recipe(plain, "again")
    assert again.build()[1].plain() == plain
    assert parse_yaml(write_yaml(plain), "yaml") == plain
    assert sum(p.sum().item() for p in task.model.parameters()) == sum(
        p.sum().item() for p in again.build()[0].model.parameters()
    )


def test_prior_task_measures(halves):
    task, _ = RECIPE.build()
    task.setup(torch.device("cpu"))
    batch = task.batch(torch.arange(6), slice(2, 5), torch.Generator().manual_seed(0))
    whole = task.batch(torch.arange(6), slice(0, 6), torch.Generator().manual_seed(0))
    assert torch.equal(batch.images, whole.images[2:5]) and torch.equal(batch.labels, whole.labels[2:5])
    assert set(batch.images.unique().tolist()) == {0, 255}
    loss, metrics = task.loss(task.model, batch, 0.0)
    codes, context = task._encode(batch)
    nats = -task.model.log_prob(codes, context).mean()
    torch.testing.assert_close(metrics["nats"], nats)
    torch.testing.assert_close(loss, nats / 24)
    torch.testing.assert_close(metrics["bits_per_dim"], nats / 24 / torch.tensor(2.0).log())
    with torch.no_grad():
        scores = task.evaluate(task.model.eval(), final=False)
        assert scores == task.evaluate(task.model, final=False) != task.evaluate(task.model, final=True)
    assert scores["nats"] == pytest.approx(24 * 0.69, rel=0.2)


def test_classes_must_agree(halves):
    wrong = replace(RECIPE, prior=new("gated_pixelcnn", {"num_classes": 3}))
    with pytest.raises(ValueError, match="the prior has num_classes 3 but halves has 2; write num_classes: data"):
        wrong.build()
    wrong = replace(RECIPE, data=DataConfig("unlabelled"))
    with pytest.raises(ValueError, match="'prior.num_classes' is taken from the data, and these data have none"):
        wrong.build()


def test_unknown_model_fields_are_named(halves):
    for part, sentence in [
        ({"num_leyers": 2}, "unknown key 'num_leyers' in 'prior'; did you mean 'num_layers'?"),
        ({"num_layers": "two"}, "'prior.num_layers' must be a whole number, got 'two'"),
    ]:
        with pytest.raises(ValueError) as error:
            replace(RECIPE, prior=new("gated_pixelcnn", part)).build()
        assert str(error.value) == sentence
    with pytest.raises(ValueError, match="no prior is called 'gated_pixlcnn'; did you mean 'gated_pixelcnn'"):
        replace(RECIPE, prior=new("gated_pixlcnn")).build()


def test_fit_trains_saves_and_resumes(halves, tmp_path):
    recipe = tmp_path / "halves.yaml"
    plain = RECIPE.build()[1].plain()
    recipe.write_text(write_yaml(plain))
    out = tmp_path / "run"
    first = train(recipe, out, ["training.steps=30"], quiet=True)
    assert first.steps == 30
    result = train(out / "recipe.yaml", out, ["training.steps=60", "training.sample_every=60"], quiet=True)
    uniform = first.metrics["nats"] / first.metrics["bits_per_dim"]  # nats of one bit per pixel
    assert first.metrics["nats"] < 0.5 * uniform
    assert result.steps == 60 and result.metrics["nats"] < first.metrics["nats"]
    assert (out / "samples" / "step-00000060.png").is_file()
    pipeline = load(out / "model")
    assert pipeline.sample(2, label=1, seed=0).shape == (2, 1, 4, 6)

    with pytest.raises(ValueError, match="run of another recipe: training.learning_rate was 0.02 and is 0.01"):
        train(recipe, out, ["training.learning_rate=0.01"], quiet=True)
    with pytest.raises(ValueError, match="already holds a run"):
        train(recipe, out, resume=False, quiet=True)
    with owned(out), pytest.raises(ValueError, match=f"run is in use by process {os.getpid()} on "):
        train(recipe, out, ["training.steps=90"], quiet=True)
    assert not (out / ".lock").exists()


def test_a_run_of_an_older_version_goes_on(tmp_path):
    """What it did not write down was as the defaults are."""
    (tmp_path / "run").mkdir()
    prior = {"name": "pixelcnn"} | to_plain(PixelCNNConfig(num_layers=2))
    plain = {"prior": prior, "training": to_plain(TrainingConfig(steps=3, batch_size=8, learning_rate=0.1))}
    training = {"steps": 2, "batch_size": 8, "learning_rate": 0.1}
    old = {"prior": {"name": "pixelcnn", "num_layers": 2}, "training": training}
    (tmp_path / "run" / "recipe.yaml").write_text(write_yaml(old))
    check_folder(tmp_path / "run", plain, True)
    with pytest.raises(ValueError, match="prior.embedding_dim was 0 and is 4"):
        check_folder(tmp_path / "run", {**plain, "prior": prior | {"embedding_dim": 4}}, True)


def test_folders_that_are_no_run_are_left_alone(tmp_path):
    check_folder(tmp_path / "new", {}, True)
    check_folder(tmp_path, {}, True)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is not a run"):
        check_folder(tmp_path, {}, True)


# ---------------------------------------------------------------- recipes of the package


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    for word in ("Command:   chainrule train " + name, "Hardware:", "Minutes:", "Expected:", "Measured:"):
        assert f"\n# {word}" in text
    recipe = read_recipe(name)
    words = {"num_classes": 10, "text_length": 8, "text_vocab_size": 300}
    size = recipe.data.size or 28
    sizes = {"image_height": size, "image_width": size, "image_channels": 1}
    if isinstance(getattr(recipe, "tokenizer", None), NewModel):
        recipe.tokenizer.config("tokenizers", sizes, words)
    if isinstance(getattr(recipe, "prior", None), NewModel):
        recipe.prior.config("priors", {}, words)
