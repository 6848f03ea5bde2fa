"""What is particular to PixelRNN; the contract tests hold it to what all priors do."""

import pytest
import torch

from chainrule.core import CodeSpec, Context, GridSpec, entry, select
from chainrule.priors.pixelrnn import (
    DiagonalBiLSTM,
    MultiScalePixelRNN,
    MultiScalePixelRNNConfig,
    PixelRNNConfig,
    RowLSTM,
)  # fmt: skip
from chainrule.tokenizers.pixels import MultiScalePixels, MultiScalePixelsConfig

MODELS = [RowLSTM, DiagonalBiLSTM]


def build(model, spec, num_layers, width, head_width, **options):
    torch.manual_seed(0)
    config = MultiScalePixelRNNConfig if model is MultiScalePixelRNN else PixelRNNConfig
    return model(spec, config(num_layers=num_layers, width=width, head_width=head_width, **options)).double()


def random_codes(spec, batch=2):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(g.codebook_size, (batch, *g.shape), generator=generator) for g in spec.grids)


def influence(model, context=Context()):
    """Absolute gradient of every code's logits with respect to every code's value, (T, T) in order."""
    codes = random_codes(model.spec, batch=1)
    inputs = model.embed(codes).requires_grad_()
    logits = model.logits(model.features(inputs, context)).unflatten(1, (model.grid.depth, -1))
    logits = logits.permute(0, 3, 4, 1, 2).flatten(0, -2)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(logits.shape[-1], generator=generator, dtype=logits.dtype)
    rows = [torch.autograd.grad(row @ weights, inputs, retain_graph=True)[0] for row in logits]
    return torch.stack([row[0, : model.grid.depth].permute(1, 2, 0).flatten() for row in rows]).abs()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("depth", "hidden"), [(1, 4), (1, 16), (3, 5), (3, 16)])
def test_no_code_sees_itself_or_later_ones(model, depth, hidden):
    network = build(model, CodeSpec.single(4, 5, depth, 3), 2, hidden, 12)
    assert influence(network).triu().max() == 0


def test_diagonal_sees_every_earlier_pixel_but_one():
    network = build(DiagonalBiLSTM, CodeSpec.single(9, 10, 1, 2), 2, 16, 16)
    seen = (influence(network) > 0).reshape(9, 10, 9, 10)
    expected = torch.ones(90, 90).tril(-1).bool().reshape(9, 10, 9, 10)
    for row in range(1, 9):
        expected[row, :6, row - 1, 9] = False
    assert (seen == expected).all()


def test_row_lstm_sees_a_triangle():
    """With one layer: 7x7 at the centre and to its left, then one more column per row and side above."""
    network = build(RowLSTM, CodeSpec.single(14, 14, 1, 2), 1, 16, 16)
    seen = (influence(network) > 0).unflatten(1, (14, 14))[13 * 14 + 7]
    assert not seen[13, :3].any() and seen[13, 3:7].all() and not seen[13, 7:].any()
    assert seen[7:13, 5:10].all() and not seen[12, 12:].any()


@pytest.mark.parametrize("model", MODELS)
def test_a_code_sees_the_earlier_codes_of_its_pixel(model):
    seen = influence(build(model, CodeSpec.single(3, 3, 3, 3), 2, 16, 120)) > 0
    for pixel in range(1, 9):
        block = seen[pixel * 3 : pixel * 3 + 3]
        assert (block[:, pixel * 3 : pixel * 3 + 3] == torch.ones(3, 3).tril(-1).bool()).all()
        assert block[:, pixel * 3 - 3 : pixel * 3].all(), "the codes of the pixel before are all visible"


SPECS = [CodeSpec.single(*shape) for shape in ((5, 4, 1, 3), (3, 4, 3, 4), (1, 3, 1, 2), (3, 1, 2, 2))]


@torch.no_grad()
def assert_steps_agree(network, context=Context()):
    codes = random_codes(network.spec)
    expected = [row for logits in network(codes, context) for row in logits.flatten(1, 3).unbind(1)]
    flat, runner = network.spec.flatten(codes), network.runner()
    state = runner.init_state(2, context)
    swapped = torch.tensor([1, 0])
    for t in range(len(expected)):
        actual, state = runner.step(flat[:, max(0, t - 1)], state)
        torch.testing.assert_close(actual, expected[t], rtol=0, atol=1e-9)
        # The images change places.
        state, flat, expected = select(state, swapped), flat[swapped], [row[swapped] for row in expected]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("hidden", "num_classes", "residual"), [(16, 0, True), (4, 3, False)])
def test_steps_agree_with_forward(model, spec, hidden, num_classes, residual):
    network = build(model, spec, 2, hidden, 8, num_classes=num_classes, residual=residual)
    assert_steps_agree(network, Context(label=torch.tensor([0, 2])) if num_classes else Context())


@pytest.mark.parametrize("variant", ["row_lstm", "diagonal_bilstm"])
@pytest.mark.parametrize("factor", [2, 3])
def test_multiscale_steps_agree_with_forward(variant, factor):
    spec = CodeSpec((GridSpec(2, 1, 2, 3), GridSpec(2 * factor, factor, 2, 3)))
    network = build(MultiScalePixelRNN, spec, 2, 16, 8, num_classes=2, variant=variant, condition_width=5)
    assert_steps_agree(network, Context(label=torch.tensor([1, 0])))


@pytest.mark.parametrize("variant", ["row_lstm", "diagonal_bilstm"])
@torch.no_grad()
def test_multiscale_is_a_distribution_over_images(variant):
    """Probabilities of all images, each with the codes that its tokenizer gives, sum to 1."""
    tokenizer = MultiScalePixels(
        MultiScalePixelsConfig(image_height=2, image_width=4, image_channels=1, levels=2, factor=2)
    )
    network = build(MultiScalePixelRNN, tokenizer.spec, 2, 4, 6, variant=variant)
    images = (torch.arange(256)[:, None] >> torch.arange(8) & 1).mul(255).to(torch.uint8).reshape(-1, 1, 2, 4)
    total = network.log_prob(tokenizer.encode(images)).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)


def test_multiscale_trains_all_its_parts():
    spec = CodeSpec((GridSpec(2, 2, 1, 3), GridSpec(4, 4, 1, 3)))
    network = build(MultiScalePixelRNN, spec, 1, 4, 6)
    codes = random_codes(spec)
    network.log_prob((codes[1][:, ::2, ::2], codes[1])).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_multiscale_refuses_grids_that_do_not_fit():
    for grids in [((2, 2, 1, 2),), ((2, 2, 1, 2), (5, 4, 1, 2)), ((2, 2, 1, 2), (4, 4, 3, 2)), ((2, 2, 1, 2),) * 2]:
        with pytest.raises(ValueError, match="enlargement"):
            build(MultiScalePixelRNN, CodeSpec(tuple(GridSpec(*grid) for grid in grids)), 1, 4, 6)


def test_classes_change_the_likelihood():
    network = build(DiagonalBiLSTM, CodeSpec.single(3, 3, 1, 2), 1, 4, 6, num_classes=2)
    codes = random_codes(network.spec)
    one, other = (network.log_prob(codes, Context(label=torch.full((2,), label))) for label in (0, 1))
    assert (one != other).all()
    with pytest.raises(ValueError, match="conditioned on a class"):
        network.log_prob(codes)


@pytest.mark.parametrize("name", ["row_lstm", "diagonal_bilstm", "multiscale_pixelrnn"])
def test_presets_exist(name):
    found = entry("priors", name)
    for preset in found.presets.values():
        if preset.config.width <= 128:
            found.model(preset.spec, preset.config)
