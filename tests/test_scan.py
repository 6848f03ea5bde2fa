"""The compiled scan against the plain one, and both against the definition."""

import pytest
import torch

from chainrule.kernels import scan
from chainrule.kernels.scan import NUM_TAPS, lstm_cell, lstm_scan, reference_scan

ORDERS = [("row", False), ("diagonal", False), ("diagonal", True)]

needs_compiler = pytest.mark.skipif(scan.KERNEL.load() is None, reason="no C++ compiler")


def arguments(order, height=4, width=5, batch=2, hidden=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, height, width, 4 * hidden), (NUM_TAPS[order], hidden, 4 * hidden)]
    return [(torch.randn(shape, generator=generator, dtype=dtype) * 0.3).requires_grad_() for shape in shapes]


def scan_by_definition(z, weight, order, mirrored):
    """Pixel by pixel, as the formulas of the module's docstring read."""
    batch, height, width, _ = z.shape
    side = 1 if mirrored else -1
    taps = [(-1, -1), (-1, 0), (-1, 1)] if order == "row" else [(-1, 0), (0, side)]
    states, cells = {}, {}
    zeros = z.new_zeros(batch, weight.shape[1])
    for r in range(height):
        for column in reversed(range(width)) if mirrored else range(width):
            gates = z[:, r, column]
            for k, (dr, dc) in enumerate(taps):
                gates = gates + states.get((r + dr, column + dc), zeros) @ weight[k]
            dr, dc = taps[1]
            states[r, column], cells[r, column] = lstm_cell(gates, cells.get((r + dr, column + dc), zeros))
    rows = [torch.stack([states[r, column] for column in range(width)], 1) for r in range(height)]
    return torch.stack(rows, 1)


@pytest.mark.parametrize(("order", "mirrored"), ORDERS)
@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 2), (3, 1), (1, 3)])
def test_reference_is_the_definition(order, mirrored, height, width):
    tensors = arguments(order, height, width, hidden=2)
    expected = scan_by_definition(*tensors, order, mirrored)
    torch.testing.assert_close(reference_scan(*tensors, order, mirrored), expected)


def outcomes(function, tensors, weights, *how):
    """The states and the gradients of their weighted sum."""
    out = function(*tensors, *how)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


@needs_compiler
@pytest.mark.parametrize(("order", "mirrored"), ORDERS)
@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 2), (1, 1), (5, 1), (1, 3), (9, 11)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_scan_and_gradients(order, mirrored, height, width, dtype):
    tensors = arguments(order, height, width, 3, dtype=dtype)
    weights = torch.randn(3, height, width, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)
    compiled = outcomes(lstm_scan, tensors, weights, order, mirrored)
    assert compiled[0].dtype == dtype and type(compiled[0].grad_fn).__name__ == "_NativeScanBackward"
    for one, other in zip(compiled, outcomes(reference_scan, tensors, weights, order, mirrored), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, **({} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}))


@needs_compiler
@pytest.mark.parametrize(("order", "mirrored"), ORDERS)
def test_bfloat16_is_that_of_its_float32(order, mirrored):
    z, weight = arguments(order, 9, 11, 3, dtype=torch.float32)
    half = z.detach().bfloat16().requires_grad_()
    weights = torch.randn(3, 9, 11, 16, generator=torch.Generator().manual_seed(1))
    compiled = outcomes(lstm_scan, [half, weight], weights, order, mirrored)
    plain = outcomes(lstm_scan, [half.detach().float().requires_grad_(), weight], weights, order, mirrored)
    assert torch.equal(compiled[0], plain[0]) and torch.equal(compiled[2], plain[2])
    assert compiled[1].dtype == torch.bfloat16 and torch.equal(compiled[1], plain[1].bfloat16())


@needs_compiler
@pytest.mark.parametrize(("order", "mirrored"), ORDERS)
@pytest.mark.parametrize(("hidden", "height", "width"), [(32, 1, 1), (32, 3, 40), (64, 37, 5)])
def test_products_by_amx_round_factors_only(order, mirrored, hidden, height, width, monkeypatch):
    z, weight = arguments(order, height, width, 3, hidden=hidden, dtype=torch.float32)
    z, weight = z.detach().bfloat16().requires_grad_(), (weight.detach() * 0.3).requires_grad_()
    weights = torch.randn(3, height, width, hidden, generator=torch.Generator().manual_seed(1))
    found = outcomes(lstm_scan, [z, weight], weights, order, mirrored)
    monkeypatch.setenv("CHAINRULE_NATIVE", "vectors")
    for one, other in zip(found, outcomes(lstm_scan, [z, weight], weights, order, mirrored), strict=True):
        assert one.dtype == other.dtype and (one - other).float().norm() <= 1e-2 * other.float().norm()


@needs_compiler
@pytest.mark.parametrize(("order", "mirrored"), ORDERS)
def test_numerical_gradient(order, mirrored):
    tensors = arguments(order, 3, 3, batch=1)
    assert torch.autograd.gradcheck(lambda *t: lstm_scan(*t, order, mirrored), tensors, fast_mode=True)


@needs_compiler
@pytest.mark.parametrize("hidden", [32, 48])
def test_wider_states_and_threads(hidden):
    tensors = arguments("row", 3, 9, batch=5, hidden=hidden, dtype=torch.float32)
    weights = torch.ones(5, 3, 9, hidden)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(outcomes(lstm_scan, tensors, weights, "row"))
    finally:
        torch.set_num_threads(before)
    for one, two, plain in zip(*results, outcomes(reference_scan, tensors, weights, "row"), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_extreme_and_undefined_values():
    z, weight = (tensor.detach().float() for tensor in arguments("row", 3, 3))
    z[..., :32], z[..., 32:] = 500.0, -500.0
    torch.testing.assert_close(lstm_scan(z, weight, "row"), reference_scan(z, weight, "row"), rtol=1e-5, atol=1e-6)
    for dtype in (torch.float32, torch.bfloat16):
        z[0, 0, 0, 0] = float("nan")
        states = lstm_scan(z.to(dtype), weight, "row")[0]
        assert states.isnan().any(), "a model that diverges must not look well"


def test_without_a_compiler():
    tensors = [tensor.detach() for tensor in arguments("diagonal")]
    expected = lstm_scan(*tensors, "diagonal")
    torch.testing.assert_close(lstm_scan(*tensors, "diagonal", backend="plain"), expected)


def test_half_precision_gives_float32():
    tensors = [tensor.detach().bfloat16() for tensor in arguments("row")]
    assert lstm_scan(*tensors, "row").dtype == torch.float32
