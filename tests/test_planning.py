"""The cost of a training, counted and measured."""

import datasets
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import chainrule
from chainrule.cli.app import app
from chainrule.planning import Machine, plan
from chainrule.planning.machine import quantity

SMALL = ["training.steps=4", "training.batch_size=4", "training.compile=false", "training.optimizer=adamw"]
DEVICE = Machine(memory=80 * 10**9, rate=1e12)


@pytest.fixture
def recipe(tmp_path):
    for number in range(8):
        path = tmp_path / "pictures" / ("test" if number < 2 else "train") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    path = tmp_path / "tiny.yaml"
    model = {"name": "gpt", "width": 16, "num_layers": 1, "num_heads": 2}
    path.write_text(yaml.safe_dump({"data": {"source": str(tmp_path / "pictures")}, "prior": model}))
    return path


def test_a_stated_machine_needs_no_step(recipe):
    found = plan(recipe, SMALL, machine=DEVICE)
    cost = found.cost
    assert not found.measured and found.fits and not found.changes
    assert cost.weights >= 4 * cost.parameters and cost.gradients == 4 * cost.parameters
    assert cost.average == cost.weights and cost.optimizer >= cost.gradients
    assert found.seconds == cost.flops / (1e12 * 0.4)
    twice = plan(recipe, [*SMALL, "training.batch_size=8"], machine=DEVICE)
    assert twice.cost.activations > 1.5 * cost.activations and twice.cost.states == cost.states
    assert plan(recipe, [*SMALL, "training.batch_size=8"], machine=Machine(devices=2, rate=1e12)).cost == cost


def test_a_stated_machine_trains_in_bfloat16(recipe):
    """So a plan does not depend on the processor that makes it."""
    auto, half, whole = (
        plan(recipe, [*SMALL, *more], machine=DEVICE).cost
        for more in ([], ["training.precision=bfloat16"], ["training.precision=float32"])
    )
    assert auto == half and auto.activations < whole.activations


def test_operations_of_a_transformer():
    """2 for each weight and position forward, 4 backward, and those of attention."""
    found = plan("gpt", ["training.batch_size=1", "training.optimizer=adamw"], preset="rin", machine=DEVICE)
    least = 6 * found.cost.parameters * 256
    assert 0.95 * least < found.cost.flops < 1.2 * least
    assert found.cost.optimizer == pytest.approx(8 * found.cost.parameters, rel=1e-3)


def test_what_does_not_fit_is_changed(recipe):
    large = [*SMALL, "training.batch_size=16", "training.optimizer=muon"]
    roomy = plan(recipe, large, machine=DEVICE)
    tight = Machine(memory=roomy.memory // 2, rate=1e12)
    found = plan(recipe, large, machine=tight)
    assert not found.fits and found.changes[0].startswith("training.accumulate=")
    again = plan(recipe, [*large, found.changes[0]], machine=tight)
    assert again.fits


def test_steps_are_measured_here(recipe):
    found = plan(recipe, SMALL)
    assert found.measured and found.seconds > 0 and found.evaluating > 0
    assert found.memory > found.cost.peak and found.hours > 4 * found.seconds / 3600


@pytest.mark.parametrize("tables", [False, True])
def test_a_stream_is_planned_by_its_first_images(recipe, tmp_path, tables):
    size = {"image_height": 8, "image_width": 8, "image_channels": 3, "codebook_size": 32, "embedding_dim": 4}
    chainrule.save(chainrule.create("vqvae", width=8, num_blocks=1, residual_width=4, **size), tmp_path / "tokenizer")
    whole = [*SMALL, f"tokenizer.path={tmp_path / 'tokenizer'}", "data.size=8"]
    if tables:
        loaded = datasets.load_dataset(str(tmp_path / "pictures"), cache_dir=tmp_path / "loaded")
        loaded.save_to_disk(tmp_path / "saved")
        whole += [f"data.source={tmp_path / 'saved'}", "data.label_column=label"]
    plain, found = plan(recipe, whole, machine=DEVICE), plan(recipe, [*whole, "data.stream=true"], machine=DEVICE)
    unlabelled = plan(recipe, [*whole, "prior.num_classes=0"], machine=DEVICE)
    assert found.cost == plain.cost and found.cost.parameters != unlabelled.cost.parameters
    measured = plan(recipe, [*whole, "data.stream=true"])
    assert measured.encoding > 0 == measured.preparing and measured.evaluating > 0
    assert "for each 1,000 images of the stream" in dict(measured.lines())["encoding"]


def test_the_model_stays_as_it_is(recipe):
    """Counting neither draws random numbers nor allocates weights."""
    before = torch.get_rng_state()
    plan("gpt", ["training.batch_size=1", "training.optimizer=adamw"], preset="rin", machine=DEVICE)
    assert torch.equal(before, torch.get_rng_state())


def test_wrong_words(recipe):
    with pytest.raises(ValueError, match="memory must be a number with its unit, such as 80GB"):
        Machine.described(1, "much", "1TFLOPS")
    assert quantity("1.5 PFLOPS", "FLOPS", "rate") == 1.5e15
    with pytest.raises(ValueError, match="no preset"):
        plan("pixels", preset="any", machine=DEVICE)
    with pytest.raises(ValueError, match="multiple of the devices"):
        plan(recipe, SMALL, machine=Machine(devices=3, rate=1e12))
    with pytest.raises(ValueError, match="a preset has no data"):
        plan("gpt", preset="imagenet")
    with pytest.raises(ValueError, match="only keys of 'training'"):
        plan("gpt", ["prior.width=3"], preset="imagenet", machine=DEVICE)


def test_command(recipe):
    result = CliRunner().invoke(app, ["plan", str(recipe), *SMALL, "--memory", "8GB", "--rate", "1TFLOPS"])
    assert result.exit_code == 0 and "of 8 GB on each device" in result.output and "peak rate" in result.output
