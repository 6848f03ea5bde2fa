"""The timeline: verdicts, the page, the recipes of its systems, and the measuring of one of them."""

import json
from dataclasses import asdict, replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch

import chainrule
from chainrule.images import to_pil
from chainrule.pages import Point, scatter
from chainrule.recipe import read_recipe
from chainrule.strict import build_dataclass, write_yaml
from chainrule.timeline import run, timeline
from chainrule.timeline.architecture import blocks, conditions
from chainrule.timeline.claims import CLAIMS, Claim, judge
from chainrule.timeline.measure import Scale, measure_system
from chainrule.timeline.page import COLUMNS, judged, write_html, write_markdown
from chainrule.timeline.results import Block, Estimate, SystemResult
from chainrule.timeline.systems import BUNDLED_RERANKER, RERANKER, SYSTEMS, TOKENIZER


def result(index: int, key: str) -> SystemResult:
    """Invented figures."""
    mean = Estimate(value=10.0 + index, error=0.5)
    return SystemResult(
        key=key, model=f"model_{key}", image_shape=(3, 32, 32), parameters=1000 * (index + 1), codes=64, bits=mean,
        nats=mean, exact=index < 2, frechet=mean, floor=3.0, precision=0.5, recall=0.25, features="features",
        seconds={"1": 0.1, "16": 0.02}, minutes=2.0, psnr=None if index < 2 else mean, completion=mean, strangers=mean,
        obedience={"guidance 1": mean}, blocks=(Block(title="image", detail="32x32"),), wishes=("a <b>red</b> circle",),
    )  # fmt: skip


RESULTS = {system.key: result(index, system.key) for index, system in enumerate(SYSTEMS)}


@pytest.mark.parametrize(
    "larger, smaller, factor, verdict",
    [
        ((2.0, 0.3), (1.0, 0.3), 1, "holds"),
        ((1.0, 0.3), (2.0, 0.3), 1, "does not hold"),
        ((2.0, 0.4), (1.0, 0.4), 1, "undecided"),
        ((2.0, None), (1.9, None), 1, "holds"),
        ((2.0, 0.1), (1.5, 0.1), 2, "does not hold"),
        (None, (1.0, 0.1), 1, "not measured"),
    ],
)
def test_two_standard_errors_decide_a_claim(larger, smaller, factor, verdict):
    def give(pair):
        return lambda results: None if pair is None else Estimate(value=pair[0], error=pair[1])

    claim = Claim(
        sentence="A is larger", source="none", figure="m", larger=("A", give(larger)), smaller=("B", give(smaller)),
        factor=factor,
    )  # fmt: skip
    assert judge(claim, {}).verdict == judge(claim, {}).in_words == verdict
    reasoned = judge(replace(claim, reason="A is small here"), {}).in_words
    assert reasoned == verdict + ": A is small here" * (verdict == "does not hold")


def test_figures_of_the_same_images_are_compared_image_by_image():
    apart, gain = Estimate(value=0.5, error=0.1), Estimate(value=0.1, error=0.01)
    larger, smaller = ("A", lambda _: replace(apart, value=0.6)), ("B", lambda _: apart)
    claim = Claim(sentence="A is larger", source="none", figure="m", larger=larger, smaller=smaller)
    assert judge(claim, {}).verdict == "undecided"
    paired = judge(replace(claim, gain=lambda _: gain), {})
    assert paired.verdict == "holds" and paired.measured == "A 0.6 ± 0.1, B 0.5 ± 0.1, difference 0.1 ± 0.01"
    assert judge(replace(claim, gain=lambda _: None), {}).verdict == "undecided"


def test_decoders_of_different_losses_are_not_compared():
    claim = next(claim for claim in CLAIMS if claim.alike)
    plain = replace(RESULTS["vqvae"], perceptual=Estimate(value=0.2, error=0.01))
    better = replace(RESULTS["vqvae2"], perceptual=Estimate(value=0.1, error=0.01))
    assert judge(claim, {"vqvae": plain, "vqvae2": better}).verdict == "holds"
    found = judge(claim, {"vqvae": plain, "vqvae2": replace(better, losses=("adversarial", "perceptual"))})
    assert found.in_words == "not comparable: the decoders were trained with different losses"
    assert judge(claim, {"vqvae": plain}).verdict == "not measured"


def test_each_claim_reads_figures_that_exist():
    verdicts = {one.claim.sentence: one.verdict for one in judged(RESULTS)}
    assert len(verdicts) == len(CLAIMS)
    assert {one.verdict for one in judged({})} == {"not measured"}


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_no_network_and_every_picture_has_a_text(tmp_path):
    for system in SYSTEMS:
        (tmp_path / system.key).mkdir()
        to_pil(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))[0].save(tmp_path / system.key / "samples.png")
    page = Page(write_html(RESULTS, tmp_path, "Invented figures."))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(SYSTEMS)
    assert all(one["src"].startswith("data:image/png;base64,") and one["alt"] for one in pictures)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    targets = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a" and attributes["href"][0] == "#"}
    assert targets <= {attributes.get("id") for _, attributes in page.tags}
    text = " ".join(page.words)
    assert all(system.title in text for system in SYSTEMS) and all(claim.sentence in text for claim in CLAIMS)
    assert "a <b>red</b> circle" in text  # a caption is text, not markup


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_asks_for_nothing(tmp_path, chromium, scheme):
    """In Chromium: no horizontal scrolling, all pictures shown, no request, and the colours of the scheme."""
    for system in SYSTEMS:
        (tmp_path / system.key).mkdir()
        to_pil(torch.zeros(1, 3, 64, 256, dtype=torch.uint8))[0].save(tmp_path / system.key / "samples.png")
    file = tmp_path / "index.html"
    file.write_text(write_html(RESULTS, tmp_path, "Invented figures."), encoding="utf-8")
    page, asked = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme).new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth)")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 29)"}[scheme]


def test_a_system_that_was_not_measured_has_no_section(tmp_path):
    some = {key: value for key, value in RESULTS.items() if key != "dalle"}
    page = write_html(some, tmp_path, "")
    assert 'id="dalle"' not in page and 'id="parti"' in page


def test_markdown_has_a_row_per_system_and_per_claim():
    lines = write_markdown(RESULTS, "Invented.").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(SYSTEMS) + 2 + len(CLAIMS)
    assert all(line.count(" | ") == len(COLUMNS) - 1 for line in rows[: 2 + len(SYSTEMS)])


def test_points_lie_in_the_plot_in_their_order():
    svg = ElementTree.fromstring(scatter([Point(1, 5, "a"), Point(10, 50, "b"), Point(100, 20, "c")], "x", "y"))
    places = [(float(one.get("cx")), float(one.get("cy"))) for one in svg.iter("circle")]
    assert len(places) == 3 and all(64 <= x <= 536 and 16 <= y <= 272 for x, y in places)
    assert [x for x, _ in sorted(places)] == sorted(x for x, _ in places)
    assert min(places, key=lambda place: place[1])[0] == sorted(x for x, _ in places)[1]  # b is the highest


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.key)
def test_the_recipes_of_a_system_are_recipes(system, tmp_path):
    plan = run._plan(None, quick=True, size=None, effort=0.5)
    for index, stage in enumerate(system.stages):
        recipe = run._recipe(stage, plan, system, ["before"] * index, labelled=system.wants == "label")
        path = tmp_path / f"{index}.yaml"
        path.write_text(write_yaml(recipe))
        assert read_recipe(path).training.steps == round(stage["training"]["steps"] / 2)
        assert (stage.get("tokenizer", {}).get("path") == TOKENIZER) == (index > 0)


def test_the_reranker_is_bundled_or_trained_once(tmp_path, monkeypatch):
    full, quick = run._plan(None, False, None, 1.0), run._plan(None, True, None, 0.5)
    system = next(system for system in SYSTEMS if system.wants == "caption")
    assert run._reranker(system, full, tmp_path) == BUNDLED_RERANKER
    monkeypatch.setattr(run, "_train_stage", lambda name, recipe, folder: (name, recipe))
    name, recipe = run._reranker(system, quick, tmp_path)
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    assert name == "reranker" and read_recipe(tmp_path / "recipe.yaml").training.steps == 150
    assert recipe["reranker"] == RERANKER["reranker"]


def test_the_architecture_is_read_from_the_model():
    model = chainrule.load("emoji_dalle")
    titles = [block.title for block in blocks(model)]
    assert titles == ["image", model.tokenizer.name, "codes", "dalle"]
    assert blocks(model)[-1].parameters == sum(value.numel() for value in model.prior.parameters())
    assert "caption" in conditions(model)
    assert [block.title for block in blocks(chainrule.load("mnist_pixelcnn"))] == ["image", "pixels", "pixelcnn"]


def test_one_system_is_measured_and_its_figures_are_kept(tmp_path):
    scale = Scale(samples=20, against="train[:20]", limit=6, prompts=3, best_of=2, halves=2)
    system = next(system for system in SYSTEMS if system.key == "parti")
    found = measure_system(system, ["shapes_vqvae", "shapes_parti"], "shapes_reranker", None, scale, tmp_path)
    assert found.codes == 64 and not found.exact and set(found.seconds) == {"1", "16"}
    assert set(found.obedience) == {"guidance 1", "guidance 2", "ranked"} and found.frechet.error > 0
    assert set(found.gains) == {"completion", "guidance", "ranking"}
    assert abs(found.gains["completion"].value - found.completion.value + found.strangers.value) < 1e-4
    assert len(found.wishes) == 8
    names = {"samples.png", "growing.gif", "completions.png", "reconstructions.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert build_dataclass(SystemResult, json.loads(json.dumps(asdict(found))), "kept") == found


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    measured = []

    def measure(system, *_):
        measured.append(system.key)
        return replace(RESULTS[system.key], model="new")

    monkeypatch.setattr(run, "_train", lambda *_: ["model"])
    monkeypatch.setattr(run, "_reranker", lambda *_: "reranker")
    monkeypatch.setattr(run, "measure_system", measure)
    for _ in range(2):
        page = timeline(tmp_path, quick=True, systems=["vqgan", "parti"])
    assert measured == ["vqgan", "parti"] and "VQGAN" in page.read_text() and (tmp_path / "timeline.md").is_file()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"systems": ["imagen"]}, "there is no system 'imagen'"),
        ({"size": 20, "quick": True}, "multiple of 8"),
        ({"effort": 0.0}, "effort must be above 0"),
        ({"size": 32}, "the bundled models of emoji draw 64x64"),
    ],
)
def test_mistakes_are_named(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        timeline(tmp_path, **options)


def test_bundled_models_come_after_the_tokenizer_of_their_codes():
    for system in SYSTEMS:
        if system.bundled:
            *tokenizer, prior = run._bundled(system.bundled)
            assert prior == system.bundled and len(tokenizer) == (not system.pixels)
            assert chainrule.load(prior).tokenizer.image_shape == ((3, 32, 32) if system.pixels else (3, 64, 64))
