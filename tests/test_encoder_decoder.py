"""Decoders that read a memory: one token at a time against whole sequences, in plain torch and in compiled code."""

import pytest
import torch

from chainrule.core import CodeSpec, Context, select
from chainrule.kernels import transformer
from chainrule.priors.dalle_bart import DalleBart, DalleBartConfig
from chainrule.priors.parti import Parti, PartiConfig

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.05}  # of logits of deviation about 1
SPEC = CodeSpec.single(4, 6, 1, 37)
MODELS = {
    "parti": (
        Parti,
        PartiConfig(encoder_layers=1, decoder_layers=2, width=128, num_heads=4, text_length=9, text_vocab_size=20),
    ),
    "parti-320": (
        Parti,
        PartiConfig(encoder_layers=1, decoder_layers=2, width=320, num_heads=5, text_length=9, text_vocab_size=20),
    ),
    "parti-sparse": (
        Parti,
        PartiConfig(
            encoder_layers=1,
            decoder_layers=2,
            width=192,
            num_heads=4,
            text_length=9,
            text_vocab_size=20,
            attention_radius=1,
        ),
    ),
    "dalle_bart": (
        DalleBart,
        DalleBartConfig(
            num_layers=2, width=128, num_heads=4, mlp_width=150, num_rows=40, text_length=9, text_vocab_size=20
        ),
    ),
}
needs_compiler = pytest.mark.skipif(transformer.native_library() is None, reason="no C++ compiler")
forms = pytest.mark.parametrize("form", ["plain", pytest.param("native", marks=needs_compiler)])
models = pytest.mark.parametrize("name", MODELS)
TEXT = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 2, 3], [3, 4, 0, 0, 0, 0, 0, 0, 0], [5, 3, 1, 4, 1, 1, 1, 1, 1]] * 2)


def build(name):
    """A model whose logits have a deviation of about 1 and depend on everything."""
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind(SPEC, config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.5)
    return model


def packed(model, precision, form, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("CHAINRULE_NATIVE", {"plain": "off", "native": "require"}[form])
        made = model.runner(precision)
    assert type(made.decoder.form).__name__ == {"plain": "PlainStep", "native": "NativeStep"}[form]
    return made


def run(runner, codes, text):
    state, previous, found = runner.init_state(len(codes), Context(text=text)), codes[:, 0], []
    for t in range(codes.shape[1]):
        logits, state = runner.step(previous, state)
        found.append(logits)
        previous = codes[:, t]
    return torch.stack(found, 1)


@forms
@models
@pytest.mark.parametrize("precision", TOLERANCE)
def test_steps_equal_the_whole_sequence(monkeypatch, name, form, precision):
    model, codes = build(name), torch.randint(0, 37, (6, 24))
    expected = model(SPEC.unflatten(codes), Context(text=TEXT))[0].flatten(1, 3)
    found = run(packed(model, precision, form, monkeypatch), codes, TEXT)
    if precision == "float32":
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[precision])
    error = (found - expected).square().mean().sqrt() / expected.std()
    assert error < TOLERANCE[precision], error


@needs_compiler
@pytest.mark.parametrize("name", ["parti-sparse", "dalle_bart"])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_numbers_depend_neither_on_the_batch_nor_on_threads(monkeypatch, name, precision):
    runner, codes = packed(build(name), precision, "native", monkeypatch), torch.randint(0, 37, (6, 9))
    together, before = run(runner, codes, TEXT), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(run(runner, codes, TEXT), together)
    finally:
        torch.set_num_threads(before)
    everything, alone = (runner.init_state(len(text), Context(text=text)) for text in (TEXT, TEXT[1:2]))
    alone.memory = tuple(part[1:2] for part in everything.memory)  # torch's own depend on the batch
    for t in range(9):
        logits, alone = runner.step(codes[1:2, max(t - 1, 0)], alone)
        assert torch.equal(logits[0], together[1, t])


@forms
def test_a_state_can_be_reordered(monkeypatch, form):
    runner, codes = packed(build("parti-320"), "float32", form, monkeypatch), torch.randint(0, 37, (3, 24))
    order = torch.tensor([2, 0])
    expected, state = run(runner, codes, TEXT[:3]), runner.init_state(3, Context(text=TEXT[:3]))
    _, state = runner.step(codes[:, 0], state)
    logits, _ = runner.step(codes[order, 0], select(state, order))
    torch.testing.assert_close(logits, expected[order, 1], rtol=0, atol=1e-4)


def test_other_sizes_and_types_are_decoded_in_plain_torch():
    for config, kind in [
        (
            PartiConfig(encoder_layers=1, decoder_layers=1, width=48, num_heads=3, text_length=9, text_vocab_size=20),
            torch.float32,
        ),
        (MODELS["parti"][1], torch.float64),
    ]:
        assert type(Parti(SPEC, config).to(kind).runner().decoder.form).__name__ == "PlainStep"
