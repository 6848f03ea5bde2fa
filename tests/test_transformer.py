"""One token at a time against whole sequences: in plain torch and in compiled code, in every precision."""

import threading

import pytest
import torch
from torch import nn

from chainrule.kernels import packing
from chainrule.layers.transformer import Block, BlockRunner, Head, initialize

PRECISIONS = ["float32", "bfloat16", "int8"]
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.02, "int8": 0.05}  # of outputs of deviation 1
LIBRARY = packing.native_library()
needs_compiler = pytest.mark.skipif(LIBRARY is None, reason="no C++ compiler")
forms = pytest.mark.parametrize("backend", ["plain", pytest.param("native", marks=needs_compiler)])


def stack(width=128, heads=4, layers=3, outputs=37, bias=False):
    generator = torch.Generator().manual_seed(0)
    blocks = nn.ModuleList(Block(width, heads) for _ in range(layers)).eval().requires_grad_(False)
    head = Head(width, outputs, bias).eval().requires_grad_(False)
    for parameter in [*blocks.parameters(), *head.parameters()]:
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return blocks, head


def runner(blocks, precision, head, backend):
    made = BlockRunner(blocks, precision, head, backend)
    assert type(made.form).__name__ == {"plain": "PlainStep", "native": "NativeStep"}[backend]
    return made


def run(runner, x, known=0):
    cache = runner.init_cache(len(x), x.shape[1])
    runner.prefill(x[:, :known], cache)
    return torch.stack([runner.step(x[:, t], cache) for t in range(known, x.shape[1])], 1)


@forms
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("width", "heads", "batch"), [(128, 8, 1), (128, 2, 3), (256, 2, 9), (384, 4, 2)])
def test_steps_equal_the_whole_sequence(backend, precision, width, heads, batch):
    blocks, head = stack(width, heads, bias=batch == 2)
    x = torch.randn(batch, 35, width)
    states = x
    for block in blocks:
        states = block(states)
    expected = head(states)
    for last, whole in [(head, expected), (None, states)]:
        found = run(runner(blocks, precision, last, backend), x)
        error = (found - whole).square().mean().sqrt() / whole.std()
        assert error < TOLERANCE[precision], error
    known = run(runner(blocks, precision, head, backend), x, known=20)
    assert ((known - expected[:, 20:]).square().mean().sqrt() / expected.std()) < TOLERANCE[precision]


@needs_compiler
@pytest.mark.parametrize("instructions", ["", "vectors"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_numbers_depend_neither_on_the_batch_nor_on_threads(monkeypatch, instructions, precision):
    monkeypatch.setenv("CHAINRULE_NATIVE", instructions)
    blocks, head = stack(192)
    made, x = runner(blocks, precision, head, "native"), torch.randn(37, 9, 192)
    together = run(made, x)
    for start, end in [(0, 1), (1, 3), (3, 6), (6, 11), (11, 28), (1, 36)]:
        assert torch.equal(run(made, x[start:end]), together[start:end])
    before = torch.get_num_threads()
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(run(made, x), together)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not LIBRARY or not packing.has_amx(LIBRARY), reason="no AMX")
def test_amx_gives_what_vectors_give(monkeypatch):
    blocks, head = stack(192)
    x = torch.randn(37, 9, 192)
    amx = {precision: run(runner(blocks, precision, head, "native"), x) for precision in PRECISIONS}
    monkeypatch.setenv("CHAINRULE_NATIVE", "vectors")
    vectors = {precision: run(runner(blocks, precision, head, "native"), x) for precision in PRECISIONS}
    assert torch.equal(amx["float32"], vectors["float32"]) and torch.equal(amx["int8"], vectors["int8"])
    assert not torch.equal(amx["bfloat16"], vectors["bfloat16"]), "AMX was not used"
    torch.testing.assert_close(amx["bfloat16"], vectors["bfloat16"], rtol=0, atol=0.02)


@needs_compiler
def test_several_callers_at_once():
    blocks, head = stack()
    made, x = runner(blocks, "int8", head, "native"), torch.randn(3, 30, 128)
    expected, found = run(made, x), []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        callers = [threading.Thread(target=lambda: found.append(run(made, x))) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(before)
    assert len(found) == 3 and all(torch.equal(one, expected) for one in found)


@forms
@pytest.mark.parametrize("precision", PRECISIONS)
def test_undefined_values_stay_undefined(backend, precision):
    blocks, head = stack()
    x = torch.randn(2, 3, 128)
    x[0, 0, 5] = float("nan")
    found = run(runner(blocks, precision, head, backend), x)
    assert found[0, 0].isnan().all() and found[1].isfinite().all(), "a model that diverges must not look well"


def test_a_cache_may_be_emptied_and_is_full_at_its_end():
    blocks, head = stack()
    made, x = BlockRunner(blocks, "float32", head), torch.randn(1, 3, 128)
    cache = made.init_cache(1, 3)
    first = [made.step(x[:, t], cache) for t in range(3)]
    with pytest.raises(AssertionError, match="full"):
        made.step(x[:, 0], cache)
    cache.lengths.zero_()
    assert all(torch.equal(made.step(x[:, t], cache), first[t]) for t in range(3))


def test_other_sizes_and_types_are_decoded_in_plain_torch():
    for blocks, head in [stack(48, 4), stack(128, 16), (part.double() for part in stack())]:
        made = BlockRunner(blocks, "float32", head)
        assert type(made.form).__name__ == "PlainStep"
        x = torch.randn(2, 5, made.blocks[0].query_key_value.in_features, dtype=head.norm.weight.dtype)
        expected = x
        for block in blocks:
            expected = block(expected)
        torch.testing.assert_close(run(made, x), head(expected))


def test_an_unknown_precision_is_refused():
    blocks, head = stack()
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, int8, got 'float16'"):
        BlockRunner(blocks, "float16", head)


def test_initialisation():
    block = Block(64, 4).apply(initialize)
    assert block.expand.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.expand.bias.any() and block.mlp_norm.weight.eq(1).all()
