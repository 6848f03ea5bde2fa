"""Every section of `benchmarks/run.py` gives its rows, at tiny sizes; nothing is timed here."""

import sys
from pathlib import Path

import pytest

from sizes import tiny

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """The script, whose module `sizes` is another than that of the tests."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for path in BENCHMARKS.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    import run

    for module in (run.decoding, run.sampling, run.rq_transformer):
        small = {name: tiny("priors", name) for name in ("gpt", "gated_pixelcnn", "rq_transformer")}
        monkeypatch.setattr(module, "SIZES", small)
    found = tiny("tokenizers", "vqgan")
    model = run.tokenizer.entry("tokenizers", "vqgan").model(found.config).eval()
    monkeypatch.setattr(run.tokenizer, "random_tokenizer", lambda: model)
    monkeypatch.setattr(run.tokenizer, "LIBRARY", ("float32", "last"))
    monkeypatch.setattr(run.training, "SYSTEMS", ("pixelcnn",))
    monkeypatch.setattr(run.training, "compare", lambda *_: {"best_images_per_second": 2, "plain_images_per_second": 1})
    return run


@pytest.mark.parametrize(
    "section, count", [("codes", 6), ("residual_codes", 4), ("tokenizers", 4), ("trainings", 1), ("pixels", 2)]
)
def test_a_section_gives_its_rows(benchmark, section, count):
    rows = list(benchmark.SECTIONS[section][1](1))
    assert len(rows) == count and all(row.ours > 0 and row.line().count("|") == 8 for row in rows)


def test_other_sections_and_machines_are_kept(benchmark, tmp_path, monkeypatch):
    for section, machine in (("trainings", "one"), ("pixels", "other"), ("pixels", "one")):
        monkeypatch.setattr(benchmark, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(sys, "argv", ["run.py", section, "--out", str(tmp_path / "page.md")])
        benchmark.main()
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    titles = [line for line in page.splitlines() if line.startswith("##")]
    assert titles == ["## one", "### Training", "### Pixels", "## other", "### Pixels"]
    assert "| training pixelcnn | images/s | 2 | 1 |" in page
