"""The files that docs/design/adding.md shows, each put into a copy of the package, are all that an addition takes."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import chainrule

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "design" / "adding.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package with the new files: links to its own files beside them."""
    folder = tmp_path_factory.mktemp("copy")
    package = Path(chainrule.__file__).parent
    for path in package.rglob("*"):
        target = folder / "chainrule" / path.relative_to(package)
        if path.is_file() and "__pycache__" not in path.parts:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    for name, text in FILES.items():
        path = folder / "chainrule" / name
        assert not path.exists(), f"{name} exists"
        path.write_text(text, encoding="utf-8")
    return folder


def run(copy, *arguments):
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_new_models_pass_the_contract_tests(copy):
    result = run(copy, "-m", "pytest", "tests/test_contract.py", "-k", "bag_of_codes or patch_means")
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= 10


def test_the_new_release_is_imported_and_the_new_task_trains(copy, tmp_path):
    """Commands one after the other in one process, whose imports take longer."""
    tensors = {"emb.weight": torch.randn(2, 8), "out.weight": torch.randn(2, 8), "pos": torch.zeros(784, 2)}
    torch.save(tensors, tmp_path / "bag.pt")
    (tmp_path / "recipe.yaml").write_text("data: {source: stripes}\nrotation: {width: 4}\n", encoding="utf-8")
    train = "train", str(tmp_path / "recipe.yaml"), "training.steps=30", "--out", str(tmp_path / "run")
    commands = [
        ("convert", str(tmp_path / "bag.pt"), str(tmp_path / "model")),
        ("sample", str(tmp_path / "model"), "-n", "1", "--out", str(tmp_path / "picture.png")),
        train, (*train, "training.stepz=3"),
    ]  # fmt: skip
    code = (
        "from typer.testing import CliRunner\nfrom chainrule.cli.app import app\n"
        f"results = [CliRunner().invoke(app, words) for words in {commands}]\n"
        "print([(result.exit_code, result.output) for result in results])"
    )
    result = run(copy, "-c", code)
    assert result.returncode == 0, result.stderr
    converted, sampled, trained, refused = ast.literal_eval(result.stdout)
    assert converted[0] == 0 and "bag_of_codes" in converted[1]
    assert sampled[0] == 0 and (tmp_path / "picture.png").exists(), sampled
    assert trained[0] == 0 and "accuracy" in trained[1] and (tmp_path / "run" / "model" / "weights.pt").exists()
    assert refused[0] != 0 and "did you mean 'steps'" in refused[1]


def test_the_new_source_is_read(copy):
    code = (
        "from chainrule.data import DataConfig, load\n"
        "data = load(DataConfig('stripes', 'test'))\n"
        "print(tuple(data.images.shape), data.class_names, data.labels[:4].tolist(), data.images[1, 0, 0].tolist())"
    )
    result = run(copy, "-c", code)
    assert result.returncode == 0, result.stderr
    row = [0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255, 0]
    assert result.stdout.strip() == f"(100, 1, 16, 16) ('horizontal', 'vertical') [0, 1, 0, 1] {row}"
