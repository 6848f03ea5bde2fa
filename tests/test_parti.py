"""What is particular to Parti; the contract tests hold it to what all priors do."""

from dataclasses import replace

import pytest
import torch

from chainrule.core import CodeSpec, Context, entry
from chainrule.decoding import image_seeds, sample
from chainrule.priors.parti import PADDING, Parti, PartiConfig, attention_distances
from sizes import tiny

PRESETS = entry("priors", "parti").presets
TINY = tiny("priors", "parti")


def build(config=TINY.config, spec=TINY.spec) -> Parti:
    """A model with weights large enough that every path matters."""
    torch.manual_seed(0)
    model = Parti(spec, config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize(
    ("preset", "core", "billions"),
    [
        ("350m", 352_321_536, 0.3523), ("750m", 754_974_720, 0.7550), ("3b", 3_019_898_880, 3.020),
        ("20b", 20_401_094_656, 20.40),
    ],
)  # fmt: skip
def test_parameters_of_the_paper(preset, core, billions):
    """The matrices of the blocks; words, codes and classifier are about 33M at width 1024."""
    with torch.device("meta"):
        model = Parti(PRESETS[preset].spec, PRESETS[preset].config)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert sum(counts) == core == pytest.approx(billions * 1e9, rel=2e-4)
    tables = [part.weight.numel() for part in (model.words, model.codes, model.head.linear)]
    assert sum(tables) == (16000 + 8192 + 8192) * model.config.width


@torch.no_grad()
def test_padding_is_not_seen_and_words_are():
    model = build(replace(TINY.config, text_length=4))
    codes = tuple(torch.randint(0, 2, (1, *grid.shape)) for grid in TINY.spec.grids)
    logits = {words: model(codes, Context(text=torch.tensor([words])))[0] for words in
              [(2, 3, 0, 0), (2, 4, 0, 0), (3, 2, 0, 0), (2, 0, 0, 0), (0, 0, 0, 0)]}  # fmt: skip
    found = list(logits.values())
    for i, one in enumerate(found):
        assert one.isfinite().all()
        for other in found[i + 1 :]:
            assert not torch.allclose(one, other)
    model.word_positions[2:, 0] += 1  # those of the padding
    torch.testing.assert_close(model(codes, Context(text=torch.tensor([[2, 3, 0, 0]])))[0], logits[(2, 3, 0, 0)])
    model.words.weight[PADDING, 0] += 1
    torch.testing.assert_close(model(codes, Context(text=torch.tensor([[2, 3, 0, 0]])))[0], logits[(2, 3, 0, 0)])
    assert not torch.allclose(model(codes, Context(text=torch.zeros(1, 4, dtype=torch.int64)))[0], found[-1])


def test_the_empty_text_has_a_vector_that_is_learned():
    model = build()
    codes = tuple(torch.zeros(2, *grid.shape, dtype=torch.int64) for grid in TINY.spec.grids)
    model.log_prob(codes, Context(text=torch.tensor([[0, 0, 0], [2, 3, 0]]))).sum().backward()
    assert model.words.weight.grad[PADDING].any() and model.words.weight.grad[2].any()


@pytest.mark.parametrize(("height", "width", "radius"), [(4, 7, 1), (6, 6, 2), (3, 2, 2)])
def test_the_window_is_that_of_a_convolution(height, width, radius):
    """Inside the grid: the rows above and the row itself, as far as the radius goes; never a later token."""
    distances = attention_distances(height * width, width, radius)
    assert distances[0] == 0 and distances == sorted(set(distances))
    for t in range(height * width):
        row, column = divmod(t, width)
        seen = {t - distance for distance in distances if distance <= t}
        inside = {
            r * width + c
            for r in range(max(0, row - radius), row + 1)
            for c in range(max(0, column - radius), min(width, column + radius + 1))
            if r * width + c <= t
        }
        assert inside <= seen
        if radius <= column < width - radius and row >= radius and width > 2 * radius:
            assert inside == seen
    assert attention_distances(height * width, width, 0) == list(range(height * width))


def test_presets_of_the_paper_have_dalles_window():
    assert len(attention_distances(1024, 32, 5)) == 5 * 11 + 6


@torch.no_grad()
def test_sparse_attention_of_one_block_sees_its_window_only():
    config = replace(TINY.config, decoder_layers=1, attention_radius=1)
    model = build(config, CodeSpec.single(3, 5, 1, 2))
    codes = torch.randint(0, 2, (1, 15))
    context = Context(text=torch.tensor([[2, 3, 0]]))
    reference = model(model.spec.unflatten(codes), context)[0].flatten(1, 3)
    for t in range(15):
        other = codes.clone()
        other[:, t] = 1 - other[:, t]
        changed = (model(model.spec.unflatten(other), context)[0].flatten(1, 3) - reference).abs().amax(-1)[0] > 1e-9
        expected = {t + 1 + distance for distance in (0, 1, 4, 5, 6)}
        assert set(changed.nonzero().flatten().tolist()) == {i for i in expected if i < 15}


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@torch.no_grad()
def test_other_precisions_are_close_and_leave_the_model_as_it_is(precision):
    torch.manual_seed(0)
    spec = CodeSpec.single(2, 4, 1, 16)
    model = Parti(
        spec, PartiConfig(encoder_layers=1, decoder_layers=2, width=64, num_heads=4, text_length=5, text_vocab_size=20)
    ).eval()
    codes, context = torch.randint(0, 16, (3, 8)), Context(text=torch.randint(0, 20, (3, 5)))
    expected = model(spec.unflatten(codes), context)[0].flatten(1, 3)
    packed = model.runner(precision)
    state, previous = packed.init_state(3, context), codes[:, 0]
    for t in range(8):
        logits, state = packed.step(previous, state)
        assert (logits - expected[:, t]).abs().max() < 0.02
        previous = codes[:, t]
    torch.testing.assert_close(model(spec.unflatten(codes), context)[0].flatten(1, 3), expected)
    assert sample(packed, context, image_seeds(0, 3))[0].shape == (3, 2, 4, 1)


def test_what_does_not_fit_is_refused():
    model = build()
    codes = tuple(torch.zeros(2, *grid.shape, dtype=torch.int64) for grid in TINY.spec.grids)
    for context, sentence in [
        (Context(), r"text must be token ids, int64 \(2, 3\), got nothing"),
        (Context(text=torch.zeros(2, 4, dtype=torch.int64)), r"got int64 \(2, 4\)"),
        (Context(text=torch.full((2, 3), 5)), r"text must lie in 0\.\.4, got 5\.\.5"),
        (Context(label=torch.zeros(2, dtype=torch.int64)), "no classes"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            model.log_prob(codes, context)
        with pytest.raises(ValueError, match=sentence):
            model.runner().init_state(2, context)
    with pytest.raises(ValueError, match="precision must be one of"):
        model.runner("float16")
    for change, sentence in [
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"text_vocab_size": 1}, "at least 2"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1"),
        ({"attention_radius": -1}, "attention_radius"),
        ({"dropout": 1.0}, "dropout"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            replace(TINY.config, **change)
