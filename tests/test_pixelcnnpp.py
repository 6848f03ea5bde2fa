"""PixelCNN++: its size, the mixture's likelihood, incremental evaluation beyond the tiny sizes."""

import pytest
import torch

from chainrule.core import CodeSpec, Context, entry
from chainrule.priors._logistic_mixture import LogisticMixture
from chainrule.priors.pixelcnnpp import PixelCNNPP, PixelCNNPPConfig


def test_the_default_size_is_that_of_the_original():
    model = entry("priors", "pixelcnnpp")
    preset = model.presets["cifar10"]
    with torch.device("meta"):
        prior = model.model(preset.spec, preset.config)
    assert sum(parameter.numel() for parameter in prior.parameters()) == 53_659_080


def reference(numbers, levels, num_mixtures, codebook_size):
    """p(r, g, b) of one pixel, written out from the paper's formulas."""
    means, scales, coefficients = numbers[num_mixtures:].view(3, 3, num_mixtures).unbind(1)
    values = levels * 2 / (codebook_size - 1) - 1
    r, g, _ = values
    a, b, c = coefficients.tanh()
    centres = torch.stack([means[0], means[1] + a * r, means[2] + b * r + c * g])
    total = torch.log_softmax(numbers[:num_mixtures], 0).exp()
    for level, value, centre, scale in zip(levels, values, centres, scales.clamp(min=-7).exp(), strict=True):
        upper = torch.sigmoid((value + 1 / (codebook_size - 1) - centre) / scale)
        lower = torch.sigmoid((value - 1 / (codebook_size - 1) - centre) / scale)
        upper = torch.ones_like(upper) if level == codebook_size - 1 else upper
        total = total * (upper - (torch.zeros_like(lower) if level == 0 else lower))
    return total.sum()


@pytest.mark.parametrize("codebook_size", [256, 5, 2])
def test_conditionals_multiply_to_the_joint_likelihood_and_each_sums_to_one(codebook_size):
    numbers = torch.randn(6, 30, dtype=torch.float64)
    mixture = LogisticMixture.of(numbers, 3, 3)
    codes = torch.randint(codebook_size, (6, 3))
    codes[0], codes[1] = 0, codebook_size - 1
    expected = torch.stack([reference(n, c, 3, codebook_size) for n, c in zip(numbers, codes, strict=True)])
    torch.testing.assert_close(mixture.joint(codes, 3, codebook_size).logsumexp(-1).exp(), expected)
    nats = 0
    for depth in range(3):
        logits = mixture.logits(codes, depth, codebook_size)
        torch.testing.assert_close(logits.exp().sum(-1), torch.ones(6, dtype=torch.float64))
        nats = nats + logits.gather(-1, codes[:, depth, None])[:, 0]
    torch.testing.assert_close(nats.exp(), expected)


def test_narrow_and_distant_logistics_keep_finite_masses_and_gradients():
    numbers = torch.zeros(1, 9)
    numbers[0, 3:6], numbers[0, 6:] = torch.tensor([-40.0, 0.0, 40.0]), torch.tensor([-9.0, -7.0, -30.0])
    numbers.requires_grad_()
    logits = LogisticMixture.of(numbers, 1, 3).logits(torch.zeros(1, 1, dtype=torch.int64), 0, 256)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(1))
    logits[0, 100].backward()
    assert numbers.grad.isfinite().all()


@pytest.mark.parametrize(("height", "width", "depth"), [(8, 8, 3), (5, 7, 3), (6, 9, 1)])
@torch.no_grad()
def test_steps_logits_and_log_prob_agree_at_any_size(height, width, depth):
    config = PixelCNNPPConfig(width=4, num_residual=2, num_mixtures=3, num_classes=2)
    prior = PixelCNNPP(CodeSpec.single(height, width, depth, 16), config).double().eval()
    for parameter in prior.parameters():
        parameter.normal_(std=0.3)
    codes = (torch.randint(16, (2, height, width, depth)),)
    context = Context(torch.tensor([1, 0]))
    (expected,) = prior(codes, context)
    nats = expected.gather(-1, codes[0].unsqueeze(-1))[..., 0]
    torch.testing.assert_close(prior.log_prob_grids(codes, context)[0], nats, rtol=1e-9, atol=1e-9)
    runner = prior.runner()
    state, previous = runner.init_state(2, context), torch.zeros(2, dtype=torch.int64)
    for t, code in enumerate(codes[0].flatten(1).unbind(1)):
        logits, state = runner.step(previous, state)
        torch.testing.assert_close(logits, expected.flatten(1, 3)[:, t], rtol=1e-9, atol=1e-9)
        previous = code


def test_every_earlier_pixel_is_seen_and_no_later_one():
    prior = (
        PixelCNNPP(CodeSpec.single(8, 8, 3, 16), PixelCNNPPConfig(width=8, num_residual=3, num_mixtures=2))
        .double()
        .eval()
    )
    codes = torch.randint(16, (1, 8, 8, 3))
    with torch.no_grad():
        reference = prior.numbers((codes,), Context())[0]
        seen = torch.zeros(8, 8, dtype=torch.bool)
        for row in range(8):
            for column in range(8):
                other = codes.clone()
                other[0, row, column] = 15 - other[0, row, column]
                changed = (prior.numbers((other,), Context())[0] != reference).any(-1).flatten()
                assert not changed[: row * 8 + column + 1].any()
                seen[row, column] = changed[5 * 8 + 5]
    assert seen.flatten()[: 5 * 8 + 5].all()


def test_other_depths_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="grey or colour pixels; this tokenizer gives 4 codes per position"):
        PixelCNNPP(CodeSpec.single(4, 4, 4, 16), PixelCNNPPConfig())
