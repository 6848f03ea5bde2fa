"""What is particular to DALL-E; the contract tests hold it to what all priors do."""

import re
from pathlib import Path

import pytest
import torch

import chainrule
from chainrule.core import CodeSpec, Context, GridSpec, Prior, entry
from chainrule.decoding import Known, Sampling, image_seeds, sample
from chainrule.pipeline import Pipeline
from chainrule.priors._sparse_attention import visible
from chainrule.priors.dalle import DALLE, DALLEConfig, stream
from chainrule.text.bpe import train_bpe
from chainrule.tokenizers.pixels import Pixels, PixelsConfig

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "green") for shape in ("circle", "square")]


def test_patterns_are_those_of_the_paper():
    """Figure 11: a text of 6, an image of 4 x 4, kernel 3 x 3; a code sees 5 codes by row, with itself."""
    row, column, convolutional, full = (
        visible(pattern, 6, 4, 4, 3) for pattern in ("row", "column", "convolutional", "full")
    )
    causal = torch.ones(22, 22, dtype=torch.bool).tril()
    assert torch.equal(full, causal)
    for mask in (row, column, convolutional):
        assert torch.equal(mask[:6], causal[:6]) and mask[6:, :6].all() and not (mask & ~causal).any()
    image = [mask[6 + 9, 6:].nonzero().flatten().tolist() for mask in (row, column, convolutional)]
    assert image == [[5, 6, 7, 8, 9], [1, 5, 9], [4, 5, 6, 8, 9]]
    assert convolutional[6 + 8, 6:].nonzero().flatten().tolist() == [3, 4, 5, 7, 8], "rows are not told apart"
    assert (visible("convolutional", 0, 1, 3, 11) == causal[:3, :3]).all()


def test_layers_are_in_the_order_of_the_paper():
    patterns = [DALLEConfig().pattern(layer) for layer in range(1, 65)]
    assert patterns[:6] == ["row", "column", "row", "row", "row", "column"]
    assert patterns[-2:] == ["row", "convolutional"] and patterns.count("column") == 16
    assert {DALLEConfig(attention="full").pattern(layer) for layer in (1, 2, 64)} == {"full"}


@pytest.mark.parametrize(
    ("preset", "blocks", "total"),
    [("dalle", 12_095_479_808, 12_292_820_352), ("mindalle", 1_189_923_840, 1_291_180_032)],
)
def test_parameter_counts(preset, blocks, total):
    found = entry("priors", "dalle").presets[preset]
    with torch.device("meta"):
        model = DALLE(found.spec, found.config)
    assert sum(p.numel() for p in model.blocks.parameters()) == blocks
    assert sum(p.numel() for p in model.parameters()) == total


def random_model(config: DALLEConfig, spec: CodeSpec, deviation: float = 0.1) -> DALLE:
    torch.manual_seed(0)
    model = DALLE(spec, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=deviation)
    return model


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("attention", ["paper", "full"])
@torch.no_grad()
def test_step_equals_forward_at_a_size_that_compiled_code_may_take(attention, quick_gelu):
    spec = stream(3, 7, 3, 4, 11)
    model = random_model(
        DALLEConfig(num_layers=3, width=128, num_heads=8, attention=attention, kernel_size=3, quick_gelu=quick_gelu),
        spec,
    )
    codes = tuple(torch.randint(0, grid.codebook_size, (2, *grid.shape)) for grid in spec.grids)
    expected = [one for grid in model(codes, Context()) for one in grid.flatten(1, 3).unbind(1)]
    flat, runner = spec.flatten(codes), model.runner()
    state = runner.init_state(2, Context())
    for t in range(spec.length):
        logits, state = runner.step(flat[:, t - 1], state)
        torch.testing.assert_close(logits, expected[t], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_has_a_vector_at_each_position():
    spec = stream(3, 7, 2, 2, 5)
    model = random_model(DALLEConfig(num_layers=1, width=8, num_heads=2, attention="full"), spec)
    codes = torch.tensor([[2, 0, 0]])[:, None, :, None], torch.zeros(1, 2, 2, 1, dtype=torch.int64)
    embedded = model.embed(codes) - torch.cat([model.text_positions, model._places()])
    torch.testing.assert_close(embedded[0, 1:3], model.padding[1:])
    torch.testing.assert_close(embedded[0, 0], model.tokens[0].weight[2])
    before = model(codes, Context())[1]
    model.padding[0] += 1  # stands where a token does: not read
    assert torch.equal(model(codes, Context())[1], before)
    model.padding[2] += 1  # attended to
    assert not torch.equal(model(codes, Context())[1], before)


def test_the_text_weighs_an_eighth():
    model = DALLE(stream(3, 7, 2, 2, 5), DALLEConfig(num_layers=1, width=8, num_heads=2))
    assert model.grid_weights == (0.125, 0.875)

    class Two(DALLE):
        grid_weights = Prior.grid_weights

    assert Two(stream(3, 7, 2, 2, 5), DALLEConfig(num_layers=1, width=8, num_heads=2)).grid_weights == (3 / 7, 4 / 7)


def test_what_does_not_fit_is_refused():
    for spec in (CodeSpec.single(4, 4, 1, 8), CodeSpec((GridSpec(2, 3, 1, 4), GridSpec(4, 4, 1, 8))),
                 CodeSpec((GridSpec(1, 3, 1, 4), GridSpec(4, 4, 2, 8)))):  # fmt: skip
        with pytest.raises(ValueError, match=r"a text \(1, L, 1\) and an image \(h, w, 1\), got"):
            DALLE(spec, DALLEConfig(num_layers=1, width=8, num_heads=2))
    for wrong, message in (
        ({"width": 9}, r"width \(9\) must be a multiple of num_heads"), ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"text_weight": 2.0}, "text_weight must lie"), ({"dropout": 1.0}, "dropout must lie"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            DALLEConfig(**{"num_layers": 1, "width": 8, "num_heads": 2} | wrong)
    model = DALLE(stream(3, 7, 2, 2, 5), DALLEConfig(num_layers=1, width=8, num_heads=2))
    with pytest.raises(ValueError, match="no text in its context: it is the first grid of the codes"):
        model.runner().init_state(1, Context(text=torch.zeros(1, 3, dtype=torch.int64)))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """Random weights over 3 x 3 pixels of 4 levels, and a tokenizer of captions."""
    text_tokenizer, tokenizer = (
        train_bpe(CAPTIONS * 3, 300, 5),
        Pixels(PixelsConfig(image_height=3, image_width=3, image_channels=1, levels=4)),
    )
    spec = CodeSpec((text_tokenizer.grid, *tokenizer.spec.grids))
    model = random_model(DALLEConfig(num_layers=2, width=16, num_heads=2, kernel_size=3), spec, 0.5)
    return Pipeline(tokenizer, model, text_tokenizer=text_tokenizer)


def test_a_caption_is_a_known_first_grid(pipeline):
    prior, text = pipeline.prior, ["a red circle", ""]
    ids = pipeline.text_tokenizer.encode(text)
    known = Known(torch.cat([ids, torch.zeros(2, 9, dtype=torch.int64)], 1), torch.arange(14) < 5)
    expected = pipeline.tokenizer.decode(sample(prior.runner(), Context(), image_seeds(3, 2), Sampling(), known)[1:])
    grown = []
    drawn = pipeline.sample(2, text=text, seed=3, on_image=lambda t, images: grown.append((t, images())))
    assert torch.equal(drawn, expected)
    assert [t for t, _ in grown] == list(range(1, 15)) and torch.equal(grown[-1][1], drawn)
    assert torch.equal(pipeline.sample(2, seed=3)[1], drawn[1]), "no text is an empty one"
    assert torch.equal(pipeline.sample(2, text="a red circle", seed=3)[0], drawn[0]), "alone or in a batch"
    ones = pipeline.sample(8, text="a red circle", seed=1), pipeline.sample(8, text="a green square", seed=1)
    assert not torch.equal(*ones)


def test_images_are_scored_and_completed_under_a_text(pipeline):
    images = pipeline.sample(2, text="a red circle", seed=5)
    nats = pipeline.log_prob(images, text="a red circle")
    texts = pipeline.log_prob_text(["a red circle"] * 2)
    codes = pipeline.text_tokenizer.encode(["a red circle"] * 2)[:, None, :, None], *pipeline.tokenizer.encode(images)
    torch.testing.assert_close(nats + texts, pipeline.prior.log_prob(codes).detach())
    torch.testing.assert_close(pipeline.surprise(images, text="a red circle").sum((1, 2)), -nats)
    assert not torch.equal(pipeline.log_prob(images), nats)
    mask = torch.arange(9).reshape(3, 3) < 4
    for particles in (1, 3):
        completed = pipeline.complete(images[0], mask, 2, text="a red circle", particles=particles)
        assert torch.equal(completed[:, :, mask], images[:1].expand(2, -1, -1, -1)[:, :, mask])


def test_the_text_tokenizer_is_saved_with_the_model(pipeline, tmp_path):
    pipeline.save(tmp_path / "model")
    again = chainrule.load(tmp_path / "model")
    assert again.text_tokenizer.hash() == pipeline.text_tokenizer.hash()
    assert torch.equal(again.sample(2, text="a red circle"), pipeline.sample(2, text="a red circle"))
    other = train_bpe(["x y z"] * 3, 300, 5)
    (tmp_path / "model" / "text.json").write_text(other.files()["text.json"], encoding="utf-8")
    with pytest.raises(ValueError, match="trained on another text tokenizer"):
        chainrule.load(tmp_path / "model")
    (tmp_path / "model" / "text.json").unlink()
    with pytest.raises(ValueError, match=r"text\.json is missing or damaged"):
        chainrule.load(tmp_path / "model")


def test_texts_where_none_is_read_are_refused(pipeline):
    with pytest.raises(ValueError, match="3 texts were given for 2 images"):
        pipeline.sample(2, text=["a", "b", "c"])
    with pytest.raises(ValueError, match="models texts of 5 tokens"):
        Pipeline(pipeline.tokenizer, pipeline.prior, text_tokenizer=train_bpe(CAPTIONS, 270, 6))
    without = Pipeline(pipeline.tokenizer, pipeline.prior)
    with pytest.raises(ValueError, match="saved without a text tokenizer"):
        without.sample(1, text="a red circle")
    found = entry("priors", "gpt")
    gpt = found.model(CodeSpec.single(3, 3, 1, 4), found.config(num_layers=1, width=8, num_heads=2))
    with pytest.raises(ValueError, match="reads no texts"):
        Pipeline(pipeline.tokenizer, gpt).sample(1, text="a red circle")
    with pytest.raises(ValueError, match="gives texts no probability"):
        Pipeline(pipeline.tokenizer, gpt).log_prob_text(["a red circle"])
    with pytest.raises(ValueError, match="reads texts of 0 tokens"):
        Pipeline(pipeline.tokenizer, gpt, text_tokenizer=pipeline.text_tokenizer)


@torch.no_grad()
def test_narrow_weights_give_nearly_the_same_logits():
    prior = random_model(DALLEConfig(num_layers=2, width=16, num_heads=2, kernel_size=3), stream(2, 7, 2, 2, 5))
    for precision, tolerance in (("float32", 0.0), ("bfloat16", 0.02), ("int8", 0.02)):
        runners = prior.runner(), prior.runner(precision)
        assert runners[1].prior.conditions.joint_text
        states, previous = [one.init_state(3, Context()) for one in runners], torch.zeros(3, dtype=torch.int64)
        for _ in range(6):
            (one, states[0]), (two, states[1]) = (r.step(previous, s) for r, s in zip(runners, states, strict=True))
            torch.testing.assert_close(two, one, rtol=0, atol=tolerance)
            previous = (previous + 1) % 5


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[1] / "docs" / "systems" / "dalle.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, page.name, "exec"), {})
    assert (tmp_path / "my_dalle" / "text.json").exists()
