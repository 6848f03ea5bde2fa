"""`fit`: what it finds in a folder, its plan, and a tiny model that is stopped and resumed."""

import json
from pathlib import Path

import pytest
import torch

import chainrule
from chainrule.fitting import plan as planning
from chainrule.fitting import run as running
from chainrule.fitting.doctor import Doctor
from chainrule.fitting.look import look
from chainrule.fitting.plan import FitPlan
from chainrule.images import to_pil
from chainrule.strict import read_yaml

TINY = [
    "tokenizer.width=16", "tokenizer.multipliers=[1, 1, 1]", "tokenizer.codebook_size=8", "tokenizer.norm_groups=8",
    "training.batch_size=4", "prior.width=16", "prior.num_layers=1", "prior.num_heads=2", "training.steps=3",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """24 pictures of two classes, one of them damaged and two alike."""
    pictures = torch.randint(256, (24, 3, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for index, picture in enumerate(to_pil(pictures)):
        path = tmp_path / "pictures" / ("cat" if index % 2 else "dog") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    (tmp_path / "pictures" / "cat" / "copy.png").write_bytes(path.read_bytes())
    (tmp_path / "pictures" / "dog" / "empty.png").write_bytes(b"")
    return tmp_path / "pictures"


def test_a_look_counts_sizes_classes_copies_and_damage(folder):
    found, examples = look(folder)
    assert found.count + found.held == 26 and found.split == "train" and found.held_out == "test"
    assert found.classes == ("cat", "dog") and found.channels == 3 and found.size == 16
    assert found.sizes[0][0] == "20x24" and found.modes[0][0] == "RGB"
    assert found.damaged == ("dog/empty.png",) and found.duplicates == 1
    assert len(examples) == found.count - 1 and {example.label for example in examples} == {0, 1}


def test_a_look_counts_captions_and_their_scripts(tmp_path):
    (tmp_path / "train").mkdir()
    for index, text in enumerate(["a red box", "красный", "a box", ""]):
        to_pil(torch.full((1, 1, 16, 16), index, dtype=torch.uint8))[0].save(tmp_path / "train" / f"{index}.png")
        (tmp_path / "train" / f"{index}.txt").write_text(text, encoding="utf-8")
    found, _ = look(tmp_path)
    assert (found.count, found.held, found.split, found.held_out) == (3, 1, "train[:-1]", "train[-1:]")
    assert found.captions == 3 and found.scripts == (("LATIN", 2), ("CYRILLIC", 1)) and found.channels == 1


def test_a_plan_prints_and_writes_nothing(folder, tmp_path, capsys):
    assert chainrule.fit(folder, out=tmp_path / "mine", overrides=[*TINY, "data.resize=pad"], plan_only=True) is None
    printed = capsys.readouterr().out
    assert "16x16, colour, padded with white to a square" in printed
    assert "RQ-Transformer" in printed and "3 steps" in printed and "conditioned on     label" in printed
    assert not (tmp_path / "mine").exists()


def test_a_fit_trains_resumes_and_refuses_another_wish(folder, tmp_path, monkeypatch):
    out = tmp_path / "mine"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("chainrule.fitting.run.train", killed)
        with pytest.raises(KeyboardInterrupt):
            chainrule.fit(folder, 5, out, overrides=TINY, quiet=True)
    kept = (out / "fit.json").read_bytes()
    model = chainrule.fit(folder, 5, out, overrides=TINY, quiet=True)
    assert (out / "fit.json").read_bytes() == kept and FitPlan.from_plain(json.loads(kept)).condition == "label"
    assert chainrule.load(model).sample(1, "cat").shape == (1, 3, 16, 16)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == page.count(' alt="') == 5 and "://" not in page
    assert "1: dog/empty.png" in page and "prior: nats per picture" in page
    assert read_yaml(out / "prior.yaml")["tokenizer"]["path"] == str(out / "tokenizer" / "model")
    with pytest.raises(ValueError, match="holds a fit with minutes"):
        chainrule.fit(folder, 6, out, overrides=TINY, quiet=True)


class Killed(BaseException):
    """As a kill, it lets nothing be saved."""


def kill(place: str, number: int, patch: pytest.MonkeyPatch) -> None:
    """Lets the call `number`, from 0, of a function kill the fit."""
    owner, name = place.rsplit(".", 1)
    owner = running if owner == "run" else Doctor
    original, calls = getattr(owner, name), []

    def call(*arguments, **options):
        calls.append(name)
        if len(calls) > number:
            raise Killed
        return original(*arguments, **options)

    patch.setattr(owner, name, call)


def test_a_fit_that_is_killed_anywhere_ends_as_one_that_is_not(folder, tmp_path, monkeypatch):
    """Within the tokenizer's training, the prior's, and before what follows: nothing is trained twice."""
    options = {"overrides": [*TINY, "training.save_every=1"], "quiet": True}
    chainrule.fit(folder, 5, tmp_path / "whole", **options)
    out, written = tmp_path / "killed", {}
    for place, number in (
        ("run.train", 0), ("Doctor.watch", 1), ("run.train", 1), ("Doctor.watch", 1), ("run.write_folder", 0),
        ("run.measure", 0), ("run.write_report", 0),
    ):  # fmt: skip
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill(place, number, patch)
            chainrule.fit(folder, 5, out, **options)
        last = {path: path.stat().st_mtime_ns for path in out.rglob("step-00000003.pt")}
        assert written.items() <= last.items(), place
        written = last
    assert len(written) == 2
    chainrule.fit(folder, 5, out, **options)
    for name in (
        "tokenizer/log.csv",
        "prior/log.csv",
        "prior/evaluation.csv",
        "model/prior.safetensors",
        "figures.json",
    ):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"system": "parti"}, "reads captions"),
        ({"system": "gan"}, "no system 'gan'"),
        ({"overrides": ["size=3"]}, "would be ignored"),
        ({"minutes": 0}, "above 0"),
    ],
)
def test_a_fit_refuses_what_cannot_be(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        chainrule.fit(folder, out=tmp_path / "mine", **options)


@pytest.mark.slow
@pytest.mark.parametrize("key", [system.key for system in planning.SYSTEMS])
def test_every_system_can_be_fitted(folder, tmp_path, key):
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"a picture of {index}")
    few = ["training.steps=2", "training.batch_size=2", "evaluation.every=1", "training.save_every=1", "data.size=16"]
    model = chainrule.load(chainrule.fit(folder, 1, tmp_path / key, system=key, overrides=few, quiet=True))
    assert model.tokenizer.image_shape == (3, 16, 16)
    assert read_yaml(tmp_path / key / "prior" / "recipe.yaml")["training"]["save_every"] == 1
    assert (tmp_path / key / "report.html").is_file()


@pytest.mark.parametrize("threshold, name", [(0.0, "emoji_rqvae"), (200.0, None)])
def test_few_pictures_use_a_bundled_tokenizer_that_keeps_enough_of_them(folder, monkeypatch, threshold, name):
    found, _ = look(folder)
    system = next(system for system in planning.SYSTEMS if system.key == "rq_transformer")
    monkeypatch.setattr(planning, "ENOUGH_PSNR", threshold)
    used, sentence = planning._bundled(system, found, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert used == name and f"{threshold:.0f} are needed" in sentence


def test_a_bundled_tokenizer_serves_pictures_of_other_sizes_under_a_prior_that_the_user_changes(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(planning, "ENOUGH_PSNR", 0.0)
    small = ["prior.width=16", "prior.num_heads=2", "prior.depth_heads=2", "training.batch_size=2", "training.steps=3"]
    chainrule.fit(folder, out=tmp_path / "mine", overrides=small, plan_only=True)
    printed = capsys.readouterr().out
    assert "16x16" in printed and "emoji_rqvae reconstructs" in printed and "rq_transformer, 3 steps" in printed
    assert "\n  tokenizer " not in printed
