"""Work that several processes share: evaluation gives the figures of one process.

As a script, under torchrun, it evaluates in a folder with models: python test_processes.py FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import chainrule
from chainrule.core import entry
from chainrule.data import ImageDataset
from chainrule.evaluation import measure
from chainrule.processes import agreed, joined, shared, shares
from chainrule.scorers import features
from chainrule.zoo import save
from forks import run_script
from test_cli import SIDE, tiny
from test_reconstruction import Brightness, noise


def figures() -> dict:
    """Of two models in this folder, and what the functions of `processes` give."""
    records = [
        chainrule.evaluate("classes", samples=11, batch_size=3, binarize="sample", seeds=2, sampling={"top_k": 1}),
        chainrule.evaluate("tokenizer", batch_size=3),
    ]
    found = {"shared": shared(lambda number: number**2, range(7)), "agreed": [agreed(True), agreed(False)]}
    for record in records:
        found |= record.figures()
    return json.loads(json.dumps(found))


def load(config) -> ImageDataset:
    channels, side = (3, 16) if config.channels == 3 else (1, SIDE)
    images = noise(20, channels, side, side)
    return ImageDataset(images, torch.arange(20) % 3, None, None, 3, config.source)


def test_two_processes_evaluate_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny(3).save("classes")
    pixels = entry("tokenizers", "pixels")
    card = {"recipe": {"data": {"source": "digits"}}}
    save(pixels.model(pixels.config(image_height=16, image_width=16, image_channels=3, levels=5)), "tokenizer", card)
    child = run_script(__file__, "found", processes=2)
    assert child.returncode == 0, child.stderr
    monkeypatch.setattr(measure, "load", load)
    monkeypatch.setattr(features, "load_features", lambda name: Brightness(0))
    expected = figures()
    assert expected["shared"] == [0, 1, 4, 9, 16, 25, 36] and expected["agreed"] == [True, False]
    for rank in range(2):
        assert json.loads(Path(f"found-{rank}.json").read_text()) == expected


def test_one_process_has_one_share():
    assert shares(5) == [range(5)] and shares(0) == []


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure.load, features.load_features = load, lambda name: Brightness(0)
    with joined() as (rank, _, wait):
        Path(f"{sys.argv[1]}-{rank}.json").write_text(json.dumps(figures()))
        wait()
