"""The builder of the data set emoji, on a tiny folder of packages; nothing is fetched."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chainrule.data import DataConfig, load
from chainrule.data.sources import emoji

EMOJI = {"1F3BB": "violin", "2764-FE0F": "red heart", "1F995": "sauropod"}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHAINRULE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def fake_packages(target: Path) -> None:
    """The files of the packages that are read: red discs, half transparent; no sauropod in fluent."""
    packages = target / "node_modules"
    for style, folder in emoji.FOLDERS.items():
        (packages / folder).mkdir(parents=True)
        for codepoints in EMOJI:
            if (style, codepoints) == ("fluent", "1F995"):
                continue
            name = codepoints.removesuffix("-FE0F") if style == "openmoji" else codepoints.lower()
            path = packages / folder / name
            if style == "openmoji":
                path.with_suffix(".svg").write_text("<svg/>")
            else:
                size = 256 if style == "fluent" else 64
                Image.new("RGBA", (size, size), (255, 0, 0, 128)).save(path.with_suffix(".png"))
    entries = [{"unified": key, "category": "Group", "subcategory": "subgroup"} for key in EMOJI]
    (packages / "emoji-datasource-google" / "emoji.json").write_text(json.dumps(entries))
    details = [
        {"hexcode": key.removesuffix("-FE0F"), "annotation": name, "tags": "a, b"} for key, name in EMOJI.items()
    ]
    (packages / "openmoji" / "data").mkdir()
    (packages / "openmoji" / "data" / "openmoji.json").write_text(json.dumps(details))


def fake_draw(pairs, packages) -> None:
    for source, target in pairs:
        assert source.suffix == ".svg"
        Image.new("RGBA", (256, 256), (0, 0, 0, 0)).save(target)


def test_emoji_is_built_at_first_use(monkeypatch):
    monkeypatch.setattr(emoji, "_fetch", fake_packages)
    monkeypatch.setattr(emoji, "_draw", fake_draw)
    monkeypatch.setattr(emoji, "split", lambda codepoints, style: "test" if style == "twemoji" else "train")
    train, test = load(DataConfig("emoji")), load(DataConfig("emoji", split="test"))
    assert (train.name, len(train), len(test)) == ("emoji", 8, 3)
    assert train.images.shape == (8, 3, 64, 64)
    assert test.texts == ["violin, twemoji style", "red heart, twemoji style", "sauropod, twemoji style"]
    assert {text.split(", ")[1] for text in train.texts} == {"noto style", "fluent style", "openmoji style"}
    assert np.asarray(test.images[0, :, 5, 5]).tolist() == [255, 127, 127]
    assert (train.images[[text.endswith("openmoji style") for text in train.texts]] == 255).all()
    monkeypatch.setattr(emoji, "_fetch", None)
    assert len(load(DataConfig("emoji", size=32))) == 8  # from the cache


def test_the_split_is_a_function_of_the_pair():
    assert [emoji.split("1F496", style) for style in emoji.FOLDERS] == ["train", "train", "test", "train"]
    parts = [emoji.split(f"{number:X}", "noto") for number in range(0x1F300, 0x1F700)]
    assert 0.03 < parts.count("test") / len(parts) < 0.07


def test_without_npm(monkeypatch):
    monkeypatch.setattr(emoji.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="npm and node are needed, which are not installed; install Node.js"):
        load(DataConfig("emoji"))


def test_npm_that_fails(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error no network' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(emoji.shutil, "which", lambda name: str(npm))
    with pytest.raises(ValueError, match=r"could not fetch emoji-datasource-google@16.0.0 .*no network"):
        load(DataConfig("emoji"))
