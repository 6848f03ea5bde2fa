"""The report of `fit`: what it says about invented figures."""

from dataclasses import replace

import pytest
import torch

from chainrule.fitting.doctor import Curves
from chainrule.fitting.evaluate import Figures
from chainrule.fitting.look import Look
from chainrule.fitting.plan import FitPlan
from chainrule.fitting.report import advice, margin, measured, write_report
from chainrule.images import to_pil

LOOK = Look(
    source="/somewhere/<pets>", split="train", held_out="test", count=5000, held=100, size=64, channels=3, side=480,
    sizes=(("480x640", 5000),), aspect=(1.0, 1.3, 1.5), modes=(("RGB", 5000),), classes=("cat", "dog"), captions=4000,
    scripts=(("LATIN", 4000),), duplicates=3, damaged=("a.png",), findings=(),
)  # fmt: skip
PLAN = FitPlan(
    wish={"minutes": 20.0}, look=LOOK, system="parti", condition="caption", stages=(), bundled=None, notes=(), memory=0,
)  # fmt: skip
FIGURES = Figures(
    model="prior", held_out=100, nats=300.0, error=5.0, training_nats=290.0, others={}, samples=400, near=0.06,
    wishes=("a <i>cat</i>",), psnr=24.0, detail=0.9, codes_used=0.8, frechet=50.0, floor=20.0,
    precision=0.5, recall=0.4, features="EfficientNet-Lite0",
)  # fmt: skip
CURVES = {"prior": Curves(training={}, held_out={"step": [1.0, 2.0], "nats": [301.0, 300.0]})}


def test_the_page_is_complete_and_what_users_wrote_is_text(tmp_path):
    for name in ("samples", "nearest"):
        to_pil(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))[0].save(tmp_path / f"{name}.png")
    page = write_report(PLAN, FIGURES, CURVES, ["prior: <b>it</b> overfits"], tmp_path)
    assert page.count("<img ") == 2 and page.count(' alt="') == 2 and "<script" not in page and "https:" not in page
    for text in ("&lt;pets&gt;", "a &lt;i&gt;cat&lt;/i&gt;", "&lt;b&gt;it&lt;/b&gt;", "300.0 ± 5.0 nats", "a.png"):
        assert text in page


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"nats": 400.0}, "More pictures: the model knows training pictures by 110 nats better"),
        ({"floor": 30.0}, "A better tokenizer"),
        ({"detail": 0.3}, "reconstructions are washed out"),
        ({}, "Captions for the other 1,000 pictures."),
        ({}, "No copies of pictures (3 found)"),
        ({}, "data.size=128"),
    ],
)
def test_what_would_help(change, sentence):
    assert any(sentence in one for one in advice(PLAN, replace(FIGURES, **change), CURVES))


def test_more_minutes_help_while_nats_fall():
    falling = {"prior": Curves(training={}, held_out={"nats": [310.0, 300.0]})}
    said = [any("More minutes" in one for one in advice(PLAN, FIGURES, curves)) for curves in (CURVES, falling)]
    assert said == [False, True]


def test_the_margin_over_training_from_nothing_is_stated():
    assert margin(FIGURES) == "" and len(measured(FIGURES)) == 8
    better = replace(FIGURES, others={"prior-from-nothing-2": (115.6, 11.6)})
    assert "better than training from nothing by 115.6 nats per held-out picture (standard error 11.6)" in margin(
        better
    )
    worse = replace(FIGURES, model="prior-from-nothing", others={"prior": (2.0, None)})
    assert "so it was kept" in margin(worse) and len(measured(worse)) == 9
