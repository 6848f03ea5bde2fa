"""A process that is killed at any change of the disk leaves the old or the new, and nothing else after the next start.

The child of `os.fork` ends at its N-th change of the disk, for every N (of training: each seventh).  A new process
tells what a reader finds, does the same once more without a kill, and tells what is left over.
`python tests/test_kills.py FOLDER training 1` prints the counts for every N.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
KILLED = 9


@dataclass(frozen=True)
class Action:
    """Something that writes.

    start: makes what is there before, in an empty folder
    act:   writes anew
    read:  tells what a reader finds: "old" or "new"
    """

    start: Callable[[Path], object]
    act: Callable[[Path], object]
    read: Callable[[Path], str]


def kills(folder: Path, action: Action, every: int) -> tuple[int, list[str], int]:
    """Number of kills, what readers found after each, and number of files and folders left over after the next start.

    Args:
        folder: to work in.
        action: what is killed.
        every: kill at each change, or each second, third, …
    """
    expected: set[str] | None = None
    found, left, number = [], 0, 0
    for step in range(1, 10_000, every):
        place = folder / f"{step:04d}"
        place.mkdir()
        in_child(lambda: action.start(place))  # noqa: B023 (of this turn)
        code = in_child(lambda: dying(action.act, place, step))  # noqa: B023
        if code == KILLED:
            number += 1
            found.append(told(lambda: action.read(place)))  # noqa: B023
            in_child(lambda: action.act(place))  # noqa: B023
        assert told(lambda: action.read(place)) == "new"  # noqa: B023
        names = tree(place)
        if expected is None:
            (clean := folder / "clean").mkdir()
            in_child(lambda: [action.start(clean), action.act(clean)])
            expected = tree(clean)
        left += len(names - expected)
        if names - expected:
            print(step, sorted(names - expected), file=sys.stderr)
        assert not expected - names, expected - names
        if code != KILLED:
            break
    return number, found, left


def tree(folder: Path) -> set[str]:
    """Names of all files and folders, except the logs of TensorBoard, of which every start begins one."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in paths if "tensorboard" not in path.parts}


def dying(act: Callable[[Path], object], place: Path, step: int) -> None:
    """Ends the process at its `step`-th change of the disk."""
    done = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal done
        written = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in CHANGES or written:
            done += 1
            if done == step:
                os._exit(KILLED)

    sync = os.fsync
    os.fsync = lambda handle: [count("os.rename", ()), sync(handle)]
    sys.addaudithook(count)
    act(place)


def in_child(function: Callable[[], object]) -> int:
    """Calls a function in a process of its own; returns the exit code, which is 0 or KILLED."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            function()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, KILLED), code
    return code


def told(function: Callable[[], str]) -> str:
    """The text that a function returns in a process of its own."""
    end, start = os.pipe()
    in_child(lambda: os.write(start, function().encode()))
    os.close(start)
    with os.fdopen(end) as file:
        return file.read()


def actions(folder: Path) -> dict[str, Action]:
    """The actions, by name."""
    import torch
    from PIL import Image

    import chainrule
    from chainrule import cli
    from chainrule.data import DataConfig, load
    from chainrule.official import Imported
    from chainrule.priors.pixelcnn import PixelCNN, PixelCNNConfig
    from chainrule.tokenizers.pixels import Pixels, PixelsConfig
    from chainrule.training import Hardware, train

    for module in ("datasets", "lightning_fabric", "torch.utils.tensorboard", "chainrule.training.tasks.prior"):
        importlib.import_module(module)  # once, not in every child
    torch.set_num_threads(1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "CHAINRULE_NATIVE": "off"}

    def model(levels: int) -> chainrule.Pipeline:
        tokenizer = Pixels(PixelsConfig(image_height=4, image_width=4, levels=levels))
        prior = PixelCNN(tokenizer.spec, PixelCNNConfig(num_layers=1, width=4, head_width=4))
        return chainrule.Pipeline(tokenizer, prior, card={"levels": levels})

    def saved(place: Path) -> str:
        found = chainrule.load(place / "model")
        levels = found.card["levels"] if isinstance(found, chainrule.Pipeline) else found.config.levels
        assert found.tokenizer.config.levels == levels if isinstance(found, chainrule.Pipeline) else True
        return {2: "old", 3: "new"}[levels]

    def convert(place: Path) -> None:
        chainrule.official.import_release = lambda source: Imported(
            Pixels(PixelsConfig(image_height=4, image_width=4, levels=3)), "a release", "MIT", False, {}
        )
        try:
            cli.app(["convert", str(folder / "release"), str(place / "model"), "--force", "--json"])
        except SystemExit as end:
            assert end.code == 0, end.code

    (folder / "release").mkdir()
    (folder / "pictures").mkdir()
    for index in range(8):
        Image.new("L", (6, 4), index).save(folder / "pictures" / f"{index}.png")

    def build_cache(place: Path) -> None:
        os.environ["CHAINRULE_CACHE"] = str(place / "cache")
        load(DataConfig(str(folder / "pictures")))

    def cached(place: Path) -> str:
        entries = [path for path in (place / "cache" / "data").glob("[!.]*") if path.is_dir()]
        build_cache(place)
        found = load(DataConfig(str(folder / "pictures"))).images[:, 0, 0, 0].tolist()
        assert found == sorted(set(found)) and len(found) > 4
        return "new" if entries else "old"

    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"data: {{source: {folder / 'pictures'}, size: [4, 6], channels: 1}}\n"
        "tokenizer: {name: pixels, levels: 2}\n"
        "prior: {name: pixelcnn, num_layers: 1, width: 4, head_width: 4}\n"
        "training: {steps: 4, batch_size: 2, learning_rate: 0.01, compile: false, save_every: 2, sample_every: 2}\n"
        "evaluation: {split: test, every: 2}\n"
    )

    def run(place: Path) -> None:
        os.environ["CHAINRULE_CACHE"] = str(folder / "cache")
        train(recipe, place / "run", quiet=True, hardware=Hardware("cpu"))

    def trained(place: Path) -> str:
        try:
            found = chainrule.load(place / "run")
        except ValueError:  # there is no model yet, rather than a damaged one
            assert not (place / "run" / "model").exists()
            return "old"
        return "new" if found.card["steps"] == 4 else "old"

    def save_old(place: Path) -> None:
        model(2).save(place / "model")

    return {
        "save": Action(save_old, lambda place: model(3).save(place / "model"), saved),
        "convert --force": Action(save_old, convert, saved),
        "cache": Action(lambda place: None, build_cache, cached),
        "training": Action(lambda place: None, run, trained),
    }


def main(folder: Path, name: str, every: int) -> None:
    number, found, left = kills(folder, actions(folder)[name], every)
    print(f"{name}: {number} kills, {found.count('old')} old, {found.count('new')} new, {left} left over")
    assert found == sorted(found, reverse=True), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every", "least"), [("save", 1, 15), ("convert --force", 1, 15), ("cache", 1, 20), ("training", 7, 20)]
)
def test_kills(tmp_path, name, every, least):
    words = [sys.executable, __file__, str(tmp_path), name, str(every)]
    done = subprocess.run(words, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    number = int(re.fullmatch(f"{name}: (\\d+) kills, .* 0 left over\n", done.stdout)[1])
    assert number >= least


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
