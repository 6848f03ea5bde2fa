"""Models of texts on the command line; guidance and agreement of joint streams."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import chainrule
from chainrule import Pipeline
from chainrule.core import Codes, CodeSpec, Context, map_state, select
from chainrule.data import ImageDataset, binarize
from chainrule.decoding import Guided, GuidedContext, Known, Rerun, image_seeds, sample
from chainrule.evaluation import frechet_distance
from chainrule.images import grid, to_pil
from chainrule.pictures import captioned
from chainrule.priors.dalle import DALLE, DALLEConfig
from chainrule.priors.parti import Parti, PartiConfig
from chainrule.text.bpe import train_bpe
from chainrule.tokenizers.pixels import Pixels, PixelsConfig
from test_cli import CliRunner, app, refused, run
from test_reconstruction import Brightness

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "green") for shape in ("circle", "square")]
ODD = ["日本語 🎻👩‍👩‍👧", "שלום\tעולם", "", "half \ud83d of a pair", "a" * 500, "a\x1b[31mred circle"]  # noqa: RUF001
MODELS = ("joint", "encoded")


def build(joint: bool) -> Pipeline:
    """Random weights over 4 x 4 black or white pixels, and a tokenizer of captions."""
    torch.manual_seed(2)
    tokenizer, text = (
        Pixels(PixelsConfig(image_height=4, image_width=4, image_channels=1, levels=2)),
        train_bpe(CAPTIONS * 3, 300, 6),
    )
    if joint:
        spec = CodeSpec((text.grid, *tokenizer.spec.grids))
        prior = DALLE(spec, DALLEConfig(num_layers=2, width=16, num_heads=2, kernel_size=3))
    else:
        prior = Parti(
            tokenizer.spec,
            PartiConfig(
                encoder_layers=1,
                decoder_layers=2,
                width=16,
                num_heads=2,
                text_length=text.length,
                text_vocab_size=text.text_vocab_size,
            ),
        )
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=0.8)
    return Pipeline(tokenizer, prior, text_tokenizer=text, card={"recipe": {"data": {"source": "drawings"}}})


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build(True).save(folder / "joint")
    build(False).save(folder / "encoded")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models) -> Path:
    monkeypatch.chdir(tmp_path)
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    to_pil(torch.randint(0, 256, (1, 1, 4, 4), dtype=torch.uint8))[0].save("image.png")
    return tmp_path


# ---------------------------------------------------------------- guidance of one stream


def streams(model: Pipeline) -> tuple[Guided, GuidedContext, Known, Codes]:
    """A guided joint stream, what it is drawn of, its known texts, and what is drawn."""
    ids = model.text_tokenizer.encode(["a red circle", "a green square", "a red square"])
    other = model.text_tokenizer.encode(["", "a red circle", ""])
    guided, context = Guided(model.prior), GuidedContext(Context(), Context(), torch.full((3,), 2.5), other)
    known = Known(torch.cat([ids, torch.zeros(3, 16, dtype=torch.int64)], 1), torch.arange(22) < 6)
    return guided, context, known, sample(guided.runner(), context, image_seeds(1, 3), known=known)


@torch.no_grad()
def test_two_streams_have_their_texts_and_one_image():
    model = build(True)
    guided, context, known, drawn = streams(model)
    negative = context.negative_text[:, None, :, None], drawn[1]
    c, u, both = model.prior(drawn, Context()), model.prior(negative, Context()), guided(drawn, context)
    torch.testing.assert_close(both[0], c[0])  # a text is given, not guided
    torch.testing.assert_close(both[1], u[1] + 2.5 * (c[1] - u[1]))
    assert not torch.allclose(c[1], u[1])
    again = sample(Rerun(guided), context, image_seeds(1, 3), known=known)
    assert torch.equal(again[1], drawn[1])
    one = torch.tensor([1])
    alone = sample(
        guided.runner(), select(context, one), image_seeds(1, 3)[1:2], known=Known(known.codes[1:2], known.mask)
    )
    assert torch.equal(alone[1], drawn[1][1:2])
    assert torch.equal(map_state(torch.Tensor.cpu, context).negative_text, context.negative_text)


def test_negative_texts_that_do_not_fit_are_refused():
    joint, encoded = build(True).prior, build(False)
    wrong, scale = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2)
    with pytest.raises(ValueError, match=r"negative_text must be int64 \(2, 6\), got int64 \(2, 5\)"):
        Guided(joint).runner().init_state(2, GuidedContext(Context(), Context(), scale, wrong))
    with pytest.raises(ValueError, match=r"negative_text must lie in 0"):
        Guided(joint).runner().init_state(2, GuidedContext(Context(), Context(), scale, torch.full((2, 6), 999)))
    text = Context(text=encoded.text_tokenizer.encode(["", ""]))
    with pytest.raises(ValueError, match="this one's is in the context"):
        Guided(encoded.prior).runner().init_state(2, GuidedContext(text, text, scale, wrong))


@pytest.mark.parametrize("joint", [True, False])
def test_guidance_draws_what_agrees_with_the_text(joint):
    model, text = build(joint), "a red circle"
    plain, guided = (model.sample(100, text=text, guidance=scale, seed=3) for scale in (1.0, 3.0))
    assert model.agreement(guided, text).mean() > model.agreement(plain, text).mean()
    images = plain[:5]
    expected = model.log_prob(images, text=text) - model.log_prob(images, text="")
    torch.testing.assert_close(model.agreement(images, text), expected)
    away = model.sample(4, text=text, guidance=3.0, negative="a green square", seed=3)
    assert not torch.equal(away, guided[:4])
    assert torch.equal(model.sample(4, text=text, guidance=3.0, negative="", seed=3), guided[:4])
    assert torch.equal(model.sample(2, text=text, guidance=3.0, seed=3), guided[:2])
    mask = torch.arange(16).view(4, 4) < 8
    for particles in (1, 3):
        drawn = model.complete(images[0], mask, 2, text=text, guidance=2.0, negative="a square", particles=particles)
        assert torch.equal(drawn[:, :, mask], images[:1, :, mask].expand(2, -1, -1))
    with pytest.raises(ValueError, match="a negative text would be ignored without guidance"):
        model.sample(1, text=text, negative="a green square")
    with pytest.raises(ValueError, match="a label or a text to draw towards"):
        model.sample(1, guidance=2.0)


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("name", MODELS)
def test_sample_from_a_text(here, name):
    model, text = chainrule.load(name), "a red circle"
    run("sample", name, "-n", "3", "--text", text, "--seed", "4", "--scale", "1")
    expected = grid(model.sample(3, text=text, seed=4))
    assert Image.open("samples.png").tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_best_of_keeps_what_agrees_with_the_text(here, name):
    words = ["--text", "a red circle", "-n", "2", "--guidance", "2", "--negative", "a green square", "--best-of", "3"]
    run("sample", name, *words, "--precision", "bfloat16", "--separate", "--out", "best")
    model = chainrule.load(name)
    best = model.sample(
        2, text="a red circle", guidance=2.0, negative="a green square", precision="bfloat16", best_of=3,
        scorer=lambda images: model.agreement(images, "a red circle"),
    )  # fmt: skip
    for index, expected in enumerate(to_pil(best)):
        assert Image.open(f"best/{index}.png").tobytes() == expected.tobytes()
    assert "give --label, --text" in refused("sample", name, "--best", "3", "--text", "")


@pytest.mark.parametrize("name", MODELS)
def test_best_keeps_some_images_of_each_text(here, name):
    Path("prompts.txt").write_text("a red circle\na green square\n", encoding="utf-8")
    words = ["sample", name, "--texts", "prompts.txt", "-n", "8", "--seed", "5", "--scale", "16"]
    output = run(*words, "--best", "2", "--watch", "grow.gif", "--separate", "--out", "best")
    model, texts = chainrule.load(name), ["a red circle", "a green square"] * 4
    images = model.sample(8, text=texts, seed=5)
    scores = model.agreement(images, texts)
    order = [i for start in (0, 1) for i in sorted(range(start, 8, 2), key=lambda i: -scores[i])[:2]]
    assert "4 images of 8" in output and Image.open("grow.gif").size == grid(images[:4], scale=16).size
    for index, expected in enumerate(to_pil(images[order].repeat_interleave(16, 2).repeat_interleave(16, 3))):
        assert Image.open(f"best/{index}.png").tobytes() == expected.tobytes()
    assert "--best 5 is more than the images drawn of 'a red circle', 4" in refused(*words, "--best", "5")
    assert "leave one of them out" in refused(*words, "--best", "2", "--best-of", "2")


@pytest.mark.parametrize("name", MODELS)
def test_texts_of_every_script(here, name):
    texts = [text.encode("utf-8", "replace").decode() for text in ODD]
    Path("prompts.txt").write_text("\n".join(text.replace("\n", " ") for text in texts) + "\n", encoding="utf-8")
    output = run("sample", name, "--texts", "prompts.txt", "--guidance", "2", "--watch", "grow.gif", "--force")
    assert f"{len(ODD)} images" in output and Image.open("grow.gif").n_frames > 3
    run("sample", name, "--texts", "prompts.txt", "-n", "8", "--out", "more.png")
    assert Image.open("more.png").height > 3 * 128


def test_long_texts_are_cut_with_a_warning(here):
    result = CliRunner().invoke(app, ["sample", "joint", "-n", "1", "--text", "violet " * 30])
    assert result.exit_code == 0 and "longer than 6 tokens and are cut" in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--text", "a", "--texts", "b.txt"], "--text and --texts exclude each other"),
        (["--texts", "none.txt"], "none.txt: No such file"),
        (["--texts", "empty.txt"], "empty.txt is empty"),
        (["--texts", "image.png"], "image.png is no text in UTF-8"),
        (["--texts", "two.txt", "-n", "1"], "2 texts are too many for 1 images"),
        (["--text", "a", "--negative", "b"], "would be ignored without guidance"),
        (["--text", "a", "--precision", "int4"], "precision must be one of"),
    ],
)  # fmt: skip
def test_mistakes_in_texts(here, words, sentence):
    Path("empty.txt").write_text("")
    Path("two.txt").write_text("a\nb\n")
    assert sentence in refused("sample", "joint", *words)


@pytest.mark.parametrize("name", MODELS)
def test_complete_and_score_under_a_text(here, name):
    run("complete", name, "image.png", "--keep", "top", "-n", "2", "--text", "a red circle", "--guidance", "2")
    model, (pixels,) = chainrule.load(name), [chainrule.data.load_images([Path("image.png")], None, 1)[0]]
    nats = -model.log_prob(pixels[None], text="a red circle").item()
    assert f"{nats:.2f}" in run("score", name, "image.png", "--text", "a red circle", "--map", "map.png")


@pytest.mark.parametrize("name", MODELS)
def test_evaluate_reads_captions(here, monkeypatch, name):
    images = torch.randint(0, 256, (4, 1, 4, 4), dtype=torch.uint8)
    drawings = ImageDataset(images, texts=CAPTIONS, name="drawings")
    monkeypatch.setattr("chainrule.evaluation.measure.load", lambda config: drawings)
    nats = -chainrule.load(name).log_prob(images, text=CAPTIONS).mean().item()
    assert f"{nats:.3f}" in run("evaluate", name, "--binarize", "none")
    monkeypatch.setattr("chainrule.evaluation.measure.load", lambda config: ImageDataset(images, name="drawings"))
    assert "this model needs captions, but drawings has none" in refused("evaluate", name, "--record", "r.json")


@pytest.mark.parametrize("name", MODELS)
def test_evaluate_draws_from_captions(here, monkeypatch, name):
    images = torch.randint(0, 256, (4, 1, 4, 4), dtype=torch.uint8)
    monkeypatch.setattr(
        "chainrule.evaluation.measure.load", lambda config: ImageDataset(images, texts=CAPTIONS, name="four")
    )
    monkeypatch.setattr("chainrule.scorers.features.load_features", lambda name: Brightness(0))
    words = shlex.split("--binarize threshold --samples 6 --guidance 2 --precision bfloat16 --top-k 2 --json")
    value = json.loads(run("evaluate", name, *words, "--record", "r.json"))
    drawn = chainrule.load(name).sample(6, text=[*CAPTIONS, *CAPTIONS[:2]], guidance=2.0, top_k=2, precision="bfloat16")
    features = [Brightness(0).pooled(each.float() / 255) for each in (binarize(images, "threshold"), drawn)]
    assert value["samples"]["quality"]["frechet"] == pytest.approx(frechet_distance(*features))
    assert "--guidance 2.0" in value["command"] and "agrees" in run("evaluate", "--from", "r.json")


def test_a_caption_is_broken_into_lines():
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    short, long = captioned(images, ["a", "", "b"], 2), captioned(images, ["a " * 60, *ODD[3:5]], 2)
    assert short.width == long.width and short.height < long.height
    sheet = torch.from_numpy(np.array(short))
    assert (sheet[4:20, 44:60] == 0).all() and sheet[21:].min() == 0
