"""The doctor of `fit`: what it sees in the tables of a run, and what it does about it."""

from pathlib import Path

import pytest
import torch

import chainrule
from chainrule.fitting import run as running
from chainrule.fitting.doctor import Curves, Doctor, Treatment, detail, overfits_since, rate_is_too_high
from chainrule.strict import read_yaml
from chainrule.training import Diverged


def curves(nats=(), held_out=(), psnr=()) -> Curves:
    """Tables with a row of the log per step, and an evaluation every ten."""
    every = [10.0 * (index + 1) for index in range(max(len(held_out), len(psnr)))]
    judged = {"step": every} | ({"nats": list(held_out)} if held_out else {}) | ({"psnr": list(psnr)} if psnr else {})
    return Curves(training={"step": [1.0 + i for i in range(len(nats))], "nats": list(nats)}, held_out=judged)


def test_overfitting_is_worse_twice_while_training_nats_fall():
    falling = [100.0 - step for step in range(50)]
    assert overfits_since(curves(falling, [90, 80, 85, 86])) == 20
    assert overfits_since(curves(falling, [90, 80, 85])) is None  # once may be chance
    assert overfits_since(curves(falling, [90, 80, 80.1, 80.2])) is None  # hardly worse
    assert overfits_since(curves([50.0] * 50, [90, 80, 85, 86])) is None  # nothing is learned by heart
    assert overfits_since(curves(falling, psnr=[20.0, 21.0])) is None


def test_a_rate_is_too_high_where_training_becomes_worse():
    assert rate_is_too_high(curves([50.0] * 20 + [80.0] * 10))
    assert not rate_is_too_high(curves([80.0] * 10 + [50.0] * 20))
    assert rate_is_too_high(curves(psnr=[20.0, 24.0, 15.0])) and not rate_is_too_high(curves(psnr=[20.0, 24.0, 22.5]))


def test_the_tables_of_a_run_are_read(tmp_path):
    assert Curves.read(tmp_path) == Curves(training={}, held_out={})
    (tmp_path / "log.csv").write_text("step,nats\n10,5.5\n20,4.5\n")
    assert Curves.read(tmp_path).training == {"step": [10, 20], "nats": [5.5, 4.5]}


def test_the_doctor_begins_again_while_there_is_time_and_speaks_otherwise(tmp_path, capsys):
    doctor = Doctor(tmp_path / "doctor.json", quiet=False)
    found = curves([100.0 - step for step in range(50)], [90, 80, 85, 86])
    with pytest.raises(Treatment, match="best after 20 steps") as raised:
        doctor.watch("prior", found, 40, 100)
    assert (raised.value.steps, raised.value.rate) == (20, 1)
    for _ in range(2):
        doctor.watch("prior", found, 40, 50)
    assert capsys.readouterr().out.count("it overfits") == 1
    (note,) = Doctor(tmp_path / "doctor.json", quiet=True).notes
    assert note.startswith("prior: it overfits")


def test_collapse_and_washed_out_decoders_are_named(tmp_path):
    doctor = Doctor(tmp_path / "doctor.json", quiet=True)
    doctor.look_back("tokenizer", Curves(training={}, held_out={"step": [1.0], "usage": [0.9]}))
    doctor.judge_decoder("tokenizer", 0.9)
    assert not doctor.notes
    doctor.look_back("tokenizer", Curves(training={}, held_out={"step": [1.0], "usage": [0.05]}))
    doctor.judge_decoder("tokenizer", 0.3)
    assert "only 5% of the codes" in doctor.notes[0] and "30% of the contrast" in doctor.notes[1]


def test_detail_is_the_contrast_that_is_kept():
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert detail(images, images) == 1 and detail(images, torch.full_like(images, 128)) == 0
    assert 0.4 < detail(images, images // 2) < 0.6


def test_a_loss_that_is_not_finite_begins_again_with_a_third_of_the_rate(tmp_path, monkeypatch):
    stage = running.StagePlan(name="prior", recipe={"training": {"steps": 90}, "evaluation": {}}, seconds=1.0)
    doctor, rates = Doctor(tmp_path / "doctor.json", quiet=True), []

    def train(file: Path, run: Path, **_):
        rate = read_yaml(file)["training"].get("learning_rate", 9e-3)
        rates.append(rate)
        run.mkdir(exist_ok=True)
        (run / "recipe.yaml").write_text(f"training: {{learning_rate: {rate}}}")
        if rate > 2e-3:
            raise Diverged("the loss is nan at step 5; start a new run")
        return chainrule.training.TrainResult(90, {"nats": 1.0}, run, 1.0)

    monkeypatch.setattr(running, "train", train)
    for _ in range(2):  # the second is a fit that was killed and repeated
        result = running._train_stage(stage, tmp_path, doctor, quiet=True)
        assert result.folder.name == "prior-3"
    assert rates == pytest.approx([9e-3, 3e-3, 1e-3, 1e-3])
    assert len(doctor.notes) == 2 and "the loss is nan at step 5" in doctor.notes[0]
