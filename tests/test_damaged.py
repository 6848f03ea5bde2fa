"""Damaged and nonsensical files: a command is carried out, or answered in one sentence of ours.

`pytest -m slow tests/test_damaged.py -s` prints how many cases of each kind were carried out and refused.
"""

from __future__ import annotations

import io
import random
import re
import resource
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from chainrule.cli.app import app
from chainrule.core import CodeSpec
from chainrule.pipeline import Pipeline
from chainrule.priors.dalle import DALLE, DALLEConfig
from chainrule.strict import write_yaml
from chainrule.text.bpe import train_bpe
from chainrule.tokenizers.vqvae import VQVAE, VQVAEConfig
from chainrule.zoo import save
from test_cli import tiny

VALUES = (
    -1, 0, 1, 2, 7, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e308, 5e-324, float("nan"), float("inf"), None, True, "",
    "data", "auto", "x" * 3000, "a\nb", "\x00", "../..", "/etc", [], [1], [None], [[1]], {}, {"a": 1}, "test[5:2]",
)  # fmt: skip
FOREIGN = re.compile(
    "invalid literal|could not convert|codec can't|object is not|has no attribute|not supported between|NoneType|"
    "unhashable|list index|must be str|shape '\\[|mat1 and mat2|size mismatch|out of bounds|fault in chainrule"
)
RECIPE = """
data: {source: pictures, size: 16, split: train, levels: 4}
tokenizer: {name: pixels, levels: 4}
prior: {name: gated_pixelcnn, num_layers: 2, width: 4, kernel_size: 3, head_width: 4, num_classes: data}
training: {steps: 1, batch_size: 2, learning_rate: 1.0e-3, label_dropout: 0.1, ema_decay: 0.9, compile: false}
evaluation: {split: "train[:8]", limit: 4, batch_size: 4}
"""


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bytes with some changed, cut off, doubled or put between them."""
    changed, place = bytearray(data), chance.randrange(len(data) + 1)
    what = chance.choice(("flip", "flip", "cut", "zero", "double", "insert", "empty"))
    if what == "flip":
        for _ in range(chance.choice((1, 2, 20))):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
    elif what == "zero":
        changed[place : place + 16] = bytes(len(changed[place : place + 16]))
    elif what == "insert":
        changed[place:place] = chance.randbytes(7)
    elif what == "double":
        changed += data
    else:
        del changed[0 if what == "empty" else place :]
    return bytes(changed)


def altered(value: object, chance: random.Random) -> object:
    """A plain value with something else at one place inside."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {name: one for name, one in value.items() if name != key}
        return value | {key: altered(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        index = chance.randrange(len(value))
        return [*value[:index], altered(value[index], chance), *value[index + 1 :]]
    return chance.choice(VALUES)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of tiny models, and an image."""
    home = tmp_path_factory.mktemp("models")
    tiny(3, channels=3, side=16).save(home / "classes")
    torch.manual_seed(0)
    tokenizer = VQVAE(VQVAEConfig(image_height=16, image_width=16, width=8, residual_width=4, codebook_size=9))
    save(tokenizer.eval(), home / "tokenizer")
    text = train_bpe(["a red circle", "a green square"], 300, 6)
    spec = CodeSpec((text.grid, *tokenizer.spec.grids))
    prior = DALLE(spec, DALLEConfig(num_layers=1, width=16, num_heads=2, kernel_size=3))
    Pipeline(tokenizer, prior, text_tokenizer=text).save(home / "joint")
    for kind in ("cat", "dog"):
        (home / "pictures" / kind).mkdir(parents=True)
        for number in range(6):
            Image.effect_noise((16, 16), 90).convert("RGB").save(home / "pictures" / kind / f"{number}.png")
    Image.effect_noise((16, 16), 90).convert("RGB").save(home / "image.png")
    return home


def model_case(chance: random.Random, models: Path) -> list[str]:
    name = chance.choice(("classes", "tokenizer", "joint"))
    shutil.copytree(models / name, "m")
    path = chance.choice(sorted(Path("m").iterdir()))
    if chance.random() < 0.5:
        path = Path("m/config.yaml")
        path.write_text(write_yaml(altered(yaml.safe_load(path.read_text()), chance)))
    else:
        path.write_bytes(damaged(path.read_bytes(), chance))
    drawn = ["sample", "m", "-n", "1", *{"classes": ["--label", "0"], "joint": ["--text", "a"]}.get(name, [])]
    encoded = ["encode", "m", str(models / "image.png"), "--out", "x.safetensors"]
    return chance.choice((["info", "m"], encoded if name == "tokenizer" else drawn))


def recipe_case(chance: random.Random, models: Path) -> list[str]:
    recipe, more = yaml.safe_load(RECIPE), ["training.steps=1"]  # where the change takes it away
    Path("pictures").symlink_to(models / "pictures")
    section = chance.choice(list(recipe))
    if chance.random() < 0.3:
        more += [f"{section}.{chance.choice(list(recipe[section]))}={chance.choice(VALUES)}".replace("\0", "")]
    if chance.random() < 0.2:
        Path("r.yaml").write_bytes(damaged(RECIPE.encode(), chance))
    else:
        recipe = altered(recipe, chance)
        Path("r.yaml").write_text(write_yaml(recipe))
        training = recipe.get("training") if isinstance(recipe, dict) else None
        more = more[isinstance(training, dict) and "steps" in training :]
    return ["train", "r.yaml", *more, "--out", "run", "--quiet"]


def image_case(chance: random.Random, models: Path) -> list[str]:
    buffer, kind = io.BytesIO(), chance.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"))
    Image.open(models / "image.png").save(buffer, kind)
    Path("i.png").write_bytes(damaged(buffer.getvalue(), chance))
    encoded = ["encode", str(models / "tokenizer"), "i.png", "--out", "x.safetensors"]
    return chance.choice((encoded, ["score", str(models / "classes"), "i.png", "--label", "0", "--resize"]))


def codes_case(chance: random.Random, models: Path) -> list[str]:
    words = "encode", models / "tokenizer", models / "image.png", "--out", "x.safetensors"
    CliRunner().invoke(app, [str(word) for word in words])
    Path("x.safetensors").write_bytes(damaged(Path("x.safetensors").read_bytes(), chance))
    return ["decode", str(models / "tokenizer"), "x.safetensors", "--out", "out"]


KINDS: tuple[Callable, ...] = (model_case, recipe_case, image_case, codes_case)


def answer(kind: Callable, number: int, models: Path, folder: Path, monkeypatch) -> str:
    """How a case ends: "carried out" or "refused"."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    words = kind(random.Random(f"{kind.__name__} {number}"), models)
    result = CliRunner().invoke(app, words)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    if result.exit_code == 0:
        return "carried out"
    assert result.exit_code == 2 and len(lines) == 1, (number, words, result.output, result.exception)
    assert len(lines[0]) < 2000 and not FOREIGN.search(lines[0]), (number, words, lines[0])
    shutil.rmtree(folder, ignore_errors=True)
    return "refused"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_answered_in_a_sentence(kind, models, tmp_path, monkeypatch):
    for number in range(12):
        answer(kind, number, models, tmp_path / str(number), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind, models, tmp_path, monkeypatch):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = Counter(answer(kind, number, models, tmp_path / str(number), monkeypatch) for number in range(1000, 1500))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"{kind.__name__}: {dict(found)}, {grown:.2f} GiB more memory at most")
    assert grown < 4
