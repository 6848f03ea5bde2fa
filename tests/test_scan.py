"""The compiled scan against the plain one, and both against the definition."""

import pytest
import torch

from chainrule.layers import scan
from chainrule.layers.scan import NUM_TAPS, lstm_cell, lstm_scan, reference_scan

ORDERS = [("row", False), ("diagonal", False), ("diagonal", True)]

needs_compiler = pytest.mark.skipif(scan.native_library() is None, reason="no C++ compiler")


def arguments(order, height=4, width=5, left=1, batch=2, depth=16, hidden=16, base=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (batch, height, width, depth), (*base, 4 * hidden), (left + 1, depth, 4 * hidden),
        (NUM_TAPS[order], hidden, 4 * hidden),
    ]  # fmt: skip
    return [
        (torch.randn(shape, generator=generator, dtype=dtype) * 0.3).requires_grad_() for shape in shapes
    ]


def scan_by_definition(x, base, input_weight, weight, order, mirrored):
    """Pixel by pixel, as the formulas of the module's docstring read."""
    batch, height, width, _ = x.shape
    left, hidden = len(input_weight) - 1, weight.shape[1]
    side = 1 if mirrored else -1
    taps = [(-1, -1), (-1, 0), (-1, 1)] if order == "row" else [(-1, 0), (0, side)]
    states, cells = {}, {}
    zeros = x.new_zeros(batch, hidden)
    for r in range(height):
        for column in reversed(range(width)) if mirrored else range(width):
            z = base.expand(batch, height, width, -1)[:, r, column]
            for j in range(left + 1):
                if column - (left - j) >= 0:
                    z = z + x[:, r, column - (left - j)] @ input_weight[j]
            for k, (dr, dc) in enumerate(taps):
                z = z + states.get((r + dr, column + dc), zeros) @ weight[k]
            dr, dc = taps[1]
            states[r, column], cells[r, column] = lstm_cell(z, cells.get((r + dr, column + dc), zeros))
    rows = [torch.stack([states[r, column] for column in range(width)], 1) for r in range(height)]
    return torch.stack(rows, 1)


@pytest.mark.parametrize(("order", "mirrored"), ORDERS)
@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 2), (3, 1), (1, 3)])
def test_reference_is_the_definition(order, mirrored, height, width):
    tensors = arguments(order, height, width, depth=3, hidden=2)
    expected = scan_by_definition(*tensors, order, mirrored)
    torch.testing.assert_close(reference_scan(*tensors, order, mirrored), expected)


@needs_compiler
@pytest.mark.parametrize(("order", "mirrored"), ORDERS)
@pytest.mark.parametrize(
    ("height", "width", "left", "base"),
    [
        (3, 4, 1, ()),
        (4, 2, 0, (3, 1, 1)),
        (1, 1, 0, (3, 1, 1)),
        (5, 1, 1, (3, 5, 1)),
        (1, 3, 3, ()),
        (9, 11, 0, (3, 9, 11)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_scan_and_gradients(order, mirrored, height, width, left, base, dtype):
    tensors = arguments(order, height, width, left, 3, 32, 16, base, dtype)
    compiled, plain = lstm_scan(*tensors, order, mirrored), reference_scan(*tensors, order, mirrored)
    assert compiled.dtype == dtype and type(compiled.grad_fn).__name__ == "_NativeScanBackward"
    weights = torch.randn(compiled.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    for one, other in zip(
        [compiled, *torch.autograd.grad((compiled * weights).sum(), tensors)],
        [plain, *torch.autograd.grad((plain * weights).sum(), tensors)],
        strict=True,
    ):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, **({} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}))


@needs_compiler
@pytest.mark.parametrize(("order", "mirrored"), ORDERS)
def test_numerical_gradient(order, mirrored):
    tensors = arguments(order, 3, 3, batch=1)
    assert torch.autograd.gradcheck(lambda *t: lstm_scan(*t, order, mirrored), tensors, fast_mode=True)


@needs_compiler
@pytest.mark.parametrize("hidden", [32, 48])
def test_wider_states_and_threads(hidden):
    tensors = arguments("row", 3, 9, batch=5, depth=2 * hidden, hidden=hidden, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = lstm_scan(*tensors, "row")
            results.append([out, *torch.autograd.grad(out.sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    for one, two, plain in zip(*results, _plain(tensors), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-4)


def _plain(tensors):
    out = reference_scan(*tensors, "row")
    return [out, *torch.autograd.grad(out.sum(), tensors)]


@needs_compiler
def test_extreme_and_undefined_values():
    tensors = [tensor.detach().float() for tensor in arguments("row", 3, 3)]
    tensors[1][:32], tensors[1][32:] = 500.0, -500.0
    torch.testing.assert_close(lstm_scan(*tensors, "row"), reference_scan(*tensors, "row"), rtol=1e-5, atol=1e-6)
    tensors[0][0, 0, 0, 0] = float("nan")
    assert lstm_scan(*tensors, "row")[0].isnan().any(), "a model that diverges must not look well"


def test_without_a_compiler(monkeypatch):
    tensors = [tensor.detach() for tensor in arguments("diagonal")]
    expected = lstm_scan(*tensors, "diagonal")
    monkeypatch.setattr(scan, "native_library", lambda: None)
    torch.testing.assert_close(lstm_scan(*tensors, "diagonal"), expected)


def test_half_precision_gives_float32():
    tensors = [tensor.detach().bfloat16() for tensor in arguments("row")]
    assert lstm_scan(*tensors, "row").dtype == torch.float32
