"""What is particular to the RQ-Transformer; the contract tests hold it to what all priors do."""

import re
from pathlib import Path

import pytest
import torch

from chainrule.core import CodeSpec, Context, entry
from chainrule.priors.rq_transformer import RQTransformer, RQTransformerConfig
from sizes import tiny

ENTRY = entry("priors", "rq_transformer")
COUNTS = {  # of the released models
    "ffhq": 355_393_536,
    "lsun-church": 370_087_936,
    "lsun-cat": 612_061_184,
    "lsun-bedroom": 612_061_184,
    "imagenet-480m": 480_921_088,
    "imagenet-821m": 820_899_328,
    "imagenet-1.4b": 1_387_529_728,
    "imagenet-3.8b": 3_822_488_064,
    "cc3m": 654_061_568,
}

SIZES = {  # width, layers, depth layers, heads, codebook size; classes, or tokens of a text and their number
    "ffhq": ([1024, 24, 4, 16, 2048], [0]),
    "lsun-church": ([1024, 24, 4, 16, 16384], [0]),
    "lsun-cat": ([1280, 26, 4, 20, 16384], [0]),
    "lsun-bedroom": ([1280, 26, 4, 20, 16384], [0]),
    "imagenet-480m": ([1536, 12, 4, 24, 16384], [1000]),
    "imagenet-821m": ([1536, 24, 4, 24, 16384], [1000]),
    "imagenet-1.4b": ([1536, 42, 6, 24, 16384], [1000]),
    "imagenet-3.8b": ([2560, 42, 6, 40, 16384], [1000]),
    "cc3m": ([1280, 26, 4, 20, 16384], [32, 16384]),
}


def build(size: str) -> RQTransformer:
    preset = tiny("priors", "rq_transformer", size)
    torch.manual_seed(0)
    return RQTransformer(preset.spec, preset.config).double().eval()


def codes_of(model: RQTransformer, count: int) -> tuple[torch.Tensor]:
    return (torch.randint(0, model.grid.codebook_size, (count, *model.grid.shape)),)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_the_paper(name):
    preset = ENTRY.presets[name]
    with torch.device("meta"):
        model = RQTransformer(preset.spec, preset.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]
    assert model.codebook.shape == (preset.spec.only.codebook_size, 256)


@pytest.mark.parametrize("name", COUNTS)
def test_presets_are_those_of_the_paper_and_of_the_page(name):
    preset = ENTRY.presets[name]
    config = preset.config
    condition = [config.text_length, config.text_vocab_size] if config.text_length else [config.num_classes]
    sizes = [config.width, config.num_layers, config.depth_layers, config.num_heads, preset.spec.only.codebook_size]
    assert (sizes, condition) == SIZES[name] and config.depth_heads == config.num_heads
    page = Path(__file__).resolve().parents[1] / "docs" / "systems" / "rq_transformer.md"
    (row,) = re.findall(rf"^\| `rq_transformer` \| `{re.escape(name)}` \|.*$", page.read_text(encoding="utf-8"), re.M)
    assert row.endswith(f"| 8×8×4 of {sizes[-1]:,} | {COUNTS[name]:,} |")  # noqa: RUF001


@torch.no_grad()
def test_the_codebook_is_taken_from_the_tokenizer_and_saved():
    model = build("tiny")
    weight = torch.randn(2, 3)
    model.set_codebook(weight)
    assert torch.equal(model.codebook, weight.double()) and torch.equal(model.state_dict()["codebook"], model.codebook)
    model.attach((weight.flip(0).expand(3, 2, 3),))
    assert torch.equal(model.codebook, weight.flip(0).double())
    model.attach(None)
    assert torch.equal(model.codebook, weight.flip(0).double())
    with pytest.raises(ValueError, match=r"must be \(3, 2, 3\), or \(2, 3\) for all depths, got \(3, 2\)"):
        model.set_codebook(weight.T)
    with pytest.raises(ValueError, match="set shared_codebook to false"):
        model.set_codebook(torch.randn(3, 2, 3))
    separate = build("tiny-class")
    weight = torch.randn(2, 2, 3).double()
    separate.attach((weight,))
    codes = codes_of(separate, 3)
    vectors = separate._vectors(codes[0])
    for depth in range(2):
        assert torch.equal(vectors[..., depth, :], weight[depth][codes[0][..., depth]])


@torch.no_grad()
def test_order_of_codes_whose_vectors_have_the_same_sum_does_not_matter_to_later_positions():
    """Positions are known by sums, the depths of one position by partial sums."""
    model = build("tiny")
    one = torch.tensor([0, 1, 1, 0, 0, 0]).view(1, 2, 1, 3)
    two = torch.tensor([1, 0, 1, 0, 0, 0]).view(1, 2, 1, 3)
    (first,), (second,) = model((one,), Context()), model((two,), Context())
    torch.testing.assert_close(first[:, 1], second[:, 1])
    assert not torch.allclose(first[:, 0, 0, 1], second[:, 0, 0, 1])
    torch.testing.assert_close(first[:, 0, 0, 0], second[:, 0, 0, 0])


@torch.no_grad()
def test_likelihood_of_texts():
    model = build("tiny-text")
    codes, text = codes_of(model, 4), torch.randint(0, 5, (4, 3))
    image, words = model.forward_with_text(codes, Context(text=text))
    assert torch.equal(image, model(codes, Context(text=text))[0])
    assert words.shape == (4, 2, 5)
    other = text.clone()
    other[:, 1] = (other[:, 1] + 1) % 5
    again = model.forward_with_text(codes_of(model, 4), Context(text=other))[1]
    assert torch.equal(again[:, 0], words[:, 0]) and not torch.allclose(again[:, 1], words[:, 1])


@pytest.mark.parametrize(
    ("name", "context", "words"),
    [
        ("tiny", Context(text=torch.zeros(1, 3, dtype=torch.int64)), "takes no text"),
        ("tiny-text", Context(), r"int64 \(1, 3\), got nothing"),
        ("tiny-text", Context(text=torch.zeros(1, 2, dtype=torch.int64)), r"got int64 \(1, 2\)"),
        ("tiny-text", Context(text=torch.full((1, 3), 5)), "in 0..4, got 5..5"),
        ("tiny-text", Context(label=torch.zeros(1, dtype=torch.int64)), "no classes"),
        ("tiny-class", Context(), "conditioned on a class"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(name, context, words):
    model = build(name)
    with pytest.raises(ValueError, match=words):
        model.log_prob(codes_of(model, 1), context)
    with pytest.raises(ValueError, match=words):
        model.runner().init_state(1, context)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"depth_layers": 0}, "depth_layers must be at least 1"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"num_classes": 2, "text_length": 3, "text_vocab_size": 5}, "exclude each other"),
        ({"text_length": 3}, "needs text_length of at least 2 and text_vocab_size"),
        ({"text_length": 1, "text_vocab_size": 5}, "needs text_length of at least 2"),
    ],
)
def test_configs_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RQTransformerConfig(**options)


def test_codes_of_several_grids_are_refused():
    two = CodeSpec((*CodeSpec.single(1, 1, 1, 2).grids, *CodeSpec.single(2, 2, 1, 2).grids))
    with pytest.raises(ValueError, match="exactly one grid"):
        RQTransformer(two, RQTransformerConfig())


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_narrow_weights_give_nearly_the_same_logits(precision):
    torch.manual_seed(0)
    config = RQTransformerConfig(
        width=64,
        num_layers=2,
        num_heads=2,
        depth_layers=2,
        depth_heads=4,
        embedding_dim=8,
        text_length=5,
        text_vocab_size=7,
    )
    model = RQTransformer(CodeSpec.single(2, 2, 3, 32), config).eval()
    codes, context = codes_of(model, 2), Context(text=torch.randint(0, 7, (2, 5)))
    expected = model(codes, context)[0].flatten(1, 3)
    packed = model.runner(precision)
    state, flat = packed.init_state(2, context), model.spec.flatten(codes)
    for t in range(model.spec.length):
        logits, state = packed.step(flat[:, t - 1], state)
        assert (logits - expected[:, t]).abs().max() < 0.05 * expected.std()
