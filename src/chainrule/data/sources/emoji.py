"""The data set ``emoji``: 1,911 emoji in four styles, 64x64 RGB on white, with captions such as "violin, noto style".

Built from packages of the npm registry, which its client fetches:

    style     package                         licence
    noto      emoji-datasource-google 16.0.0  Apache-2.0, OFL
    twemoji   emoji-datasource-twitter 16.0.0 CC BY 4.0
    fluent    @lobehub/fluent-emoji-3d 1.1.0  MIT; 59 emoji are missing
    openmoji  openmoji 17.0.0                 CC BY-SA 4.0; SVG, drawn by @resvg/resvg-js at 256x256

Larger pictures are resized by Lanczos before they are laid on white.  Names and keywords are OpenMoji's, groups those
of emoji-datasource.  A row is in "test" if SHA-256 of its code points and style, "1F3BBnoto", is a multiple of 20: a
twentieth of the pairs, most of whose emoji are in "train" in other styles.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ...files import cache_root
from .. import cache
from ..config import DataConfig
from ..source import Source
from ..tables import quiet
from .folder import find_folder, open_folder

PACKAGES = (
    "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter@16.0.0",
    "@lobehub/fluent-emoji-3d@1.1.0",
    "openmoji@17.0.0",
    "@resvg/resvg-js@2.6.2",
)
FOLDERS = {
    "noto": "emoji-datasource-google/img/google/64",
    "twemoji": "emoji-datasource-twitter/img/twitter/64",
    "fluent": "@lobehub/fluent-emoji-3d/assets",
    "openmoji": "openmoji/color/svg",
}
"""Pictures of each style, named by their code points."""
COLUMNS = ("text", "name", "keywords", "group", "subgroup", "style", "codepoints")
SIZE, DRAWN_SIZE = 64, 256
CHUNK = 64
"""Drawings per start of node."""
DRAW = """
const { Resvg } = require("@resvg/resvg-js"), fs = require("fs");
for (const [from, to] of JSON.parse(fs.readFileSync(0, "utf8")))
  fs.writeFileSync(to, new Resvg(fs.readFileSync(from), { fitTo: { mode: "width", value: SIZE } }).render().asPng());
""".replace("SIZE", str(DRAWN_SIZE))


def find(config: DataConfig) -> Source | None:
    """The source, if the config names `emoji` and no folder of that name is here; it is built at first use."""
    if config.source != "emoji" or find_folder("emoji") is not None:
        return None
    return open_folder(config, folder(), "emoji")


def folder() -> Path:
    """The folder of the data set in the user's cache; fetched and built at first use, about 200 MB and some minutes.

    Raises:
        ValueError: without npm and node, or where the packages cannot be fetched.
    """

    def fetch_and_build(target: Path) -> None:
        with cache.scratch() as scratch:
            _fetch(scratch)
            build(scratch / "node_modules", target)

    return cache.built_once(cache_root() / "emoji", fetch_and_build, _check)[1]


def build(packages: Path, target: Path) -> None:
    """Writes train and test as parquet files into `target`.

    Args:
        packages: the folder of the packages, `node_modules`.
    """
    import datasets
    from datasets.utils import tqdm

    emoji = _read(packages / "emoji-datasource-google" / "emoji.json")
    details = {_plain(entry["hexcode"]): entry for entry in _read(packages / "openmoji" / "data" / "openmoji.json")}
    files = {style: {_plain(path.stem): path for path in (packages / FOLDERS[style]).iterdir()} for style in FOLDERS}
    count = sum(_plain(entry["unified"]) in files[style] for style in FOLDERS for entry in emoji)
    features = {"image": datasets.Image(), **{column: datasets.Value("string") for column in COLUMNS}}
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    with tqdm(total=count, mininterval=1, desc="drawing emoji", leave=False) as progress:
        for style in FOLDERS:
            found = [entry for entry in emoji if _plain(entry["unified"]) in files[style]]
            paths = [files[style][_plain(entry["unified"])] for entry in found]
            for entry, picture in zip(found, _pictures(paths, packages), strict=True):
                detail, codepoints = details[_plain(entry["unified"])], entry["unified"]
                rows[split(codepoints, style)].append(
                    {
                        "image": {"bytes": picture, "path": None},
                        "text": f"{detail['annotation']}, {style} style",
                        "name": detail["annotation"],
                        "keywords": detail["tags"],
                        "group": entry["category"],
                        "subgroup": entry["subcategory"],
                        "style": style,
                        "codepoints": codepoints,
                    }
                )
                progress.update()
    target.mkdir(parents=True, exist_ok=True)
    for name, part in rows.items():
        table = {column: [row[column] for row in part] for column in features}
        dataset = datasets.Dataset.from_dict(table, features=datasets.Features(features))
        with quiet():
            dataset.to_parquet(str(target / f"{name}-00000-of-00001.parquet"))


def split(codepoints: str, style: str) -> str:
    """ "train" or "test", by the hash of the pair."""
    return "train" if int(hashlib.sha256((codepoints + style).encode()).hexdigest(), 16) % 20 else "test"


def _fetch(target: Path) -> None:
    """Lets npm put the packages into `target`/node_modules."""
    from datasets.utils import tqdm

    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise ValueError(
            "the data set emoji is no folder here or in CHAINRULE_DATA, and to build it npm and node are needed, which "
            "are not installed; install Node.js"
        )
    for package in (progress := tqdm(PACKAGES, desc="fetching emoji", leave=False)):
        progress.set_postfix_str(package)
        options = ["--prefix", str(target), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run([npm, "install", *options, package], capture_output=True, text=True, cwd=target)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if line.strip()), "no message")
            raise ValueError(f"npm could not fetch {package} for the data set emoji ({reason})")


def _pictures(paths: list[Path], packages: Path) -> Iterator[bytes]:
    """The pictures of files, of any size or SVG, as PNG files of 64x64 pixels."""
    for start in range(0, len(paths), CHUNK):
        part = paths[start : start + CHUNK]
        with cache.scratch() as scratch:
            if part[0].suffix == ".svg":
                drawn = [scratch / f"{path.stem}.png" for path in part]
                _draw(list(zip(part, drawn, strict=True)), packages)
                part = drawn
            for path in part:
                yield _on_white(path)


def _draw(pairs: list[tuple[Path, Path]], packages: Path) -> None:
    """Draws SVG files as PNG files."""
    work = json.dumps([[str(path) for path in pair] for pair in pairs])
    done = subprocess.run(["node", "-e", DRAW], input=work, capture_output=True, text=True, cwd=packages)
    if done.returncode:
        raise ValueError(f"node could not draw {pairs[0][0].name} and those after it ({done.stderr.strip()[-200:]})")


def _on_white(path: Path) -> bytes:
    with Image.open(path) as opened:
        image = opened.convert("RGBA")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _plain(codepoints: str) -> str:
    """Code points without the selector of the coloured form, which file names have or lack."""
    return "-".join(part for part in codepoints.upper().split("-") if part != "FE0F")


def _check(folder: Path) -> None:
    """Raises OSError or ValueError unless both files are there and have their ends."""
    for name in ("train", "test"):
        with open(folder / f"{name}-00000-of-00001.parquet", "rb") as file:
            file.seek(-4, os.SEEK_END)
            if file.read() != b"PAR1":
                raise ValueError(f"{file.name} is damaged")


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))
