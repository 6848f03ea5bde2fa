"""PixelSNAIL: sizes, condition, incremental evaluation beyond the tiny sizes; priors over codes without an order."""

import pytest
import torch

from chainrule.core import CodeSpec, Context, GridSpec, entry
from chainrule.layers.weight_norm import WeightNormConv2d
from chainrule.priors._pixelsnail import PixelSNAIL, PixelSNAILConfig, PixelSNAILSizes
from chainrule.priors.gated_pixelcnn import GatedPixelCNN, GatedPixelCNNConfig
from chainrule.priors.hierarchical_pixelsnail import BottomSizes, HierarchicalPixelSNAIL, HierarchicalPixelSNAILConfig
from chainrule.priors.pixelrnn import PixelRNNConfig, RowLSTM
from chainrule.recipe import NewModel
from chainrule.strict import build_dataclass, to_plain


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_default_sizes_are_those_of_rosinality():
    snail = entry("priors", "hierarchical_pixelsnail")
    preset = snail.presets["rosinality"]
    with torch.device("meta"):
        model = snail.model(preset.spec, preset.config)
    top, bottom = model.levels
    assert count(top) == 84_873_280
    assert count(bottom) + count(model.conditioners[0]) == 89_762_816


def steps_and_forward(model, codes, context):
    runner = model.runner()
    state, previous, found = runner.init_state(len(codes[0]), context), codes[0][:, 0, 0, 0], []
    for code in model.spec.flatten(codes).unbind(1):
        logits, state = runner.step(previous, state)
        found.append(logits)
        previous = code
    return torch.stack(found, 1), model(codes, context)


@pytest.mark.parametrize("num_heads", [0, 2])
@pytest.mark.parametrize("kernel_size", [3, 5])
@torch.no_grad()
def test_steps_are_the_whole_with_classes_and_a_map(num_heads, kernel_size):
    config = PixelSNAILConfig(
        width=8,
        residual_width=6,
        num_blocks=2,
        num_residual=2,
        kernel_size=kernel_size,
        num_heads=num_heads,
        num_output_residual=1,
        num_classes=3,
        spatial_channels=4,
    )
    model = PixelSNAIL(CodeSpec.single(6, 7, 1, 5), config).double().eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.5)
    context = Context(torch.tensor([2, 0]), spatial=torch.randn(2, 4, 6, 7).double())
    codes = (torch.randint(5, (2, 6, 7, 1)),)
    found, (expected,) = steps_and_forward(model, codes, context)
    torch.testing.assert_close(found, expected.flatten(1, 3), rtol=1e-9, atol=1e-9)
    for other in (
        Context(torch.tensor([1, 1]), spatial=context.spatial),
        Context(context.label, spatial=-context.spatial),
    ):
        assert not torch.allclose(model(codes, other)[0], expected)


@torch.no_grad()
def test_the_coarser_grids_condition_the_finer():
    config = HierarchicalPixelSNAILConfig(
        top=PixelSNAILSizes(width=4, residual_width=4, num_blocks=1, num_residual=1, kernel_size=3, num_heads=1),
        bottom=BottomSizes(width=4, residual_width=4, num_blocks=1, num_residual=1, kernel_size=3),
        condition_width=4,
        num_condition_residual=1,
    )
    spec = CodeSpec((GridSpec(2, 3, 1, 4), GridSpec(4, 6, 1, 5)))
    model = HierarchicalPixelSNAIL(spec, config).double().eval()
    top, bottom = torch.randint(4, (1, 2, 3, 1)), torch.randint(5, (1, 4, 6, 1))
    other = top.clone()
    other[:, 1, 2] = (other[:, 1, 2] + 1) % 4
    one, two = model((top, bottom), Context())[1], model((other, bottom), Context())[1]
    assert (one != two).flatten(3).any(3).all(), "a 3x3 and a residual block see everything here"


def test_every_earlier_code_is_seen_and_the_first_position_attends_to_nothing():
    model = (
        PixelSNAIL(
            CodeSpec.single(5, 5, 1, 3),
            PixelSNAILConfig(width=8, residual_width=8, num_blocks=1, num_residual=1, kernel_size=3, num_heads=2),
        )
        .double()
        .eval()
    )
    inputs = model.embed((torch.randint(3, (1, 5, 5, 1)),)).requires_grad_()
    logits = model.logits(model.features(inputs, Context()))
    assert logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits[0, :, 4, 4].square().sum(), inputs)
    seen = (gradient[0, :3] != 0).any(0).flatten()
    assert seen[:-1].all() and not seen[-1]


def test_hidden_taps_are_no_part_of_the_norm():
    layer = WeightNormConv2d(2, 3, (3, 3), (1, 1, 2, 0), hidden=2)
    before = layer.kernel().detach()
    assert (before[:, :, -1, 1:] == 0).all() and (before[:, :, -1, 0] != 0).all()
    torch.testing.assert_close(before.flatten(1).norm(dim=1), layer.magnitude.detach())
    with torch.no_grad():
        layer.direction[:, :, -1, 1:] = 100
    torch.testing.assert_close(layer.kernel(), before)


def test_impossible_sizes_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        PixelSNAILConfig(kernel_size=4)
    with pytest.raises(ValueError, match="multiple of 2 \\* num_heads"):
        PixelSNAILConfig(width=12, num_heads=4)
    with pytest.raises(ValueError, match="one code per position; this tokenizer gives 3"):
        PixelSNAIL(CodeSpec.single(4, 4, 3, 8), PixelSNAILConfig())
    with pytest.raises(ValueError, match="two or more grids"):
        HierarchicalPixelSNAIL(CodeSpec.single(4, 4, 1, 8), HierarchicalPixelSNAILConfig())
    grids = CodeSpec((GridSpec(2, 2, 1, 4), GridSpec(3, 4, 1, 4)))
    with pytest.raises(ValueError, match="whole multiple"):
        HierarchicalPixelSNAIL(grids, HierarchicalPixelSNAILConfig())


def test_a_recipe_names_the_sizes_of_both_levels():
    given = {"top": {"width": 16, "num_heads": 2}, "bottom": {"width": 12}, "num_classes": "data"}
    options = NewModel(name="hierarchical_pixelsnail", options=given)
    config = options.config("priors", words={"num_classes": 3})
    assert (config.top.width, config.bottom.width, config.num_classes) == (16, 12, 3)
    assert config.top.num_heads == 2 and config.bottom.num_heads == 0
    assert build_dataclass(type(config), to_plain(config), "config.yaml") == config


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (
            GatedPixelCNN,
            GatedPixelCNNConfig(num_layers=2, width=4, kernel_size=3, head_width=8, num_classes=2, embedding_dim=5),
        ),
        (RowLSTM, PixelRNNConfig(num_layers=2, width=4, head_width=6, num_classes=2, embedding_dim=5)),
    ],
)
@torch.no_grad()
def test_codes_without_an_order_enter_as_learned_vectors(model, config):
    prior = model(CodeSpec.single(3, 4, 2, 6), config).double().eval()
    assert prior.embedding.weight.shape == (6, 5)
    codes = (torch.randint(6, (2, 3, 4, 2)),)
    assert prior.embed(codes).shape == (2, 2 * 5 + 3, 3, 4)
    found, (expected,) = steps_and_forward(prior, codes, Context(torch.tensor([0, 1])))
    torch.testing.assert_close(found, expected.flatten(1, 3), rtol=1e-9, atol=1e-9)
