"""The transformer over codes beyond the contract: sizes of the paper, prefixes, precisions."""

import pytest
import torch

import chainrule
from chainrule.core import CodeSpec, Context, entry, select
from chainrule.decoding import Rerun, image_seeds, sample
from chainrule.priors.gpt import GPT, GPTConfig, SlidingWindow
from sizes import tiny


def num_parameters(preset: str) -> int:
    gpt = entry("priors", "gpt")
    with torch.device("meta"):
        model = gpt.model(gpt.presets[preset].spec, gpt.presets[preset].config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("imagenet-big", 1_410_642_432),  # of the original code
        ("depth", 304_932_864),
        ("faces", 354_987_008),  # the paper says 355M
        ("faces-big", 801_300_000),  # the paper says 801M
    ],
)
def test_parameter_counts_of_the_paper(preset, count):
    assert num_parameters(preset) == pytest.approx(count, rel=0 if preset in ("imagenet-big", "depth") else 2e-3)


def prefix_model() -> GPT:
    model = (
        GPT(
            CodeSpec.single(2, 3, 1, 5),
            GPTConfig(num_layers=2, width=16, num_heads=2, prefix_length=4, prefix_codebook_size=7),
        )
        .double()
        .eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@torch.no_grad()
def test_codes_of_another_image_as_prefix():
    model, count = prefix_model(), 3
    context = Context(prefix=torch.randint(0, 7, (count, 4)))
    codes = torch.randint(0, 5, (count, 6))
    (expected,) = model(model.spec.unflatten(codes), context)
    runner = model.runner()
    state, previous = runner.init_state(count, context), codes[:, 0]
    order = torch.tensor([2, 0, 0])
    for t in range(6):
        logits, state = runner.step(previous, state)
        torch.testing.assert_close(logits, expected.flatten(1, 3)[:, t], rtol=1e-9, atol=1e-9)
        if t == 2:
            state, codes, expected = select(state, order), codes[order], expected[order]
        previous = codes[:, t]
    other = Context(prefix=(context.prefix + 1) % 7)
    assert not torch.equal(model.log_prob(model.spec.unflatten(codes), select(context, order)),
                           model.log_prob(model.spec.unflatten(codes), select(other, order)))  # fmt: skip
    seeds = image_seeds(3, count)
    assert torch.equal(sample(runner, context, seeds)[0], sample(Rerun(model), context, seeds)[0])


def test_a_context_that_does_not_fit_is_refused():
    model, codes = prefix_model(), (torch.zeros(2, 2, 3, 1, dtype=torch.int64),)
    for prefix, message in [
        (None, r"prefix must be the codes of another image, int64 \(2, 4\), got nothing"),
        (torch.zeros(2, 3, dtype=torch.int64), r"got int64 \(2, 3\)"),
        (torch.zeros(2, 4), r"got float32 \(2, 4\)"),
        (torch.full((2, 4), 7), r"prefix must lie in 0\.\.6, got 7\.\.7"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.log_prob(codes, Context(prefix=prefix))
        with pytest.raises(ValueError, match=message):
            model.runner().init_state(2, Context(prefix=prefix))
    plain = GPT(CodeSpec.single(2, 3, 1, 5), GPTConfig(num_layers=1, width=8, num_heads=2))
    with pytest.raises(ValueError, match="no prefix of codes"):
        plain.log_prob(codes, Context(prefix=torch.zeros(2, 4, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10, "num_heads": 4}, "multiple of num_heads"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"prefix_length": 4}, "go together"),
        ({"prefix_length": 4, "prefix_codebook_size": 4, "num_classes": 2}, "leave the others out"),
        ({"image_prefix": "grey", "num_classes": 2}, "leave the others out"),
        ({"image_prefix": "gray"}, "image_prefix must be one of none, grey, edges, low_resolution, got gray"),
        ({"attention_dropout": 1.0}, r"attention_dropout must lie in \[0, 1\)"),
    ],
)
def test_configs_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**options)


def test_grids_in_several_levels_are_refused():
    with pytest.raises(ValueError, match="exactly one grid"):
        GPT(CodeSpec(CodeSpec.single(1, 1, 1, 2).grids * 2), GPTConfig(num_layers=1, width=8, num_heads=2))


def test_dropout_acts_in_training_only():
    config = GPTConfig(num_layers=1, width=8, num_heads=2, dropout=0.5, embedding_dropout=0.5, attention_dropout=0.5)
    model, codes = GPT(CodeSpec.single(2, 3, 1, 5), config), (torch.zeros(1, 2, 3, 1, dtype=torch.int64),)
    assert not torch.equal(model(codes, Context())[0], model(codes, Context())[0])
    model.eval()
    assert torch.equal(model(codes, Context())[0], model(codes, Context())[0])


@torch.no_grad()
def test_precisions_of_decoding_and_what_they_cost():
    """Divergence from float32 in nats per code, on a model of random weights."""
    model = GPT(CodeSpec.single(4, 4, 1, 64), GPTConfig(num_layers=3, width=128, num_heads=4, num_classes=2)).eval()
    for parameter in model.blocks.parameters():
        parameter.mul_(4 if parameter.ndim == 2 else 1)
    model.head.linear.weight.mul_(8)
    context, codes = Context(label=torch.tensor([0, 1])), torch.randint(0, 64, (2, 16))
    reference = model(model.spec.unflatten(codes), context)[0].flatten(1, 3).double().log_softmax(-1)
    assert reference.exp().mul(reference).sum(-1).mean() > -3.7, "far from uniform"
    for precision, most in [("float32", 1e-6), ("bfloat16", 1e-3), ("int8", 1e-2)]:
        fast = model.runner(precision)
        state, previous, found = fast.init_state(2, context), codes[:, 0], []
        for t in range(16):
            logits, state = fast.step(previous, state)
            found.append(logits.double().log_softmax(-1))
            previous = codes[:, t]
        cost = (reference.exp() * (reference - torch.stack(found, 1))).sum(-1).mean()
        assert abs(cost) < most, f"{precision} costs {cost} nats per code"
        images = model.spec.unflatten(codes)
        assert torch.equal(fast.prior(images, context)[0], model(images, context)[0])


def seen_by_window(model, height, width, row, column) -> set[tuple[int, int]]:
    """Places of the codes before (row, column) in the window that the paper describes, counted out."""
    h, w = model.spec.only.height, model.spec.only.width
    top = next(top for top in range(height) if top == row - h // 2 or (row < h // 2 and top == 0) or top == height - h)
    left = next(a for a in range(width) if a == column - w // 2 or (column < w // 2 and a == 0) or a == width - w)
    window = {(r, c) for r in range(top, top + h) for c in range(left, left + w)}
    return {place for place in window if place < (row, column)}


@pytest.mark.parametrize(("height", "width", "depth"), [(5, 4, 1), (3, 7, 2), (4, 3, 1), (3, 3, 1)])
@torch.no_grad()
def test_larger_grids_by_a_sliding_window(height, width, depth):
    config = GPTConfig(num_layers=2, width=16, num_heads=2, num_classes=2)
    model = GPT(CodeSpec.single(3, 3, depth, 5), config).double().eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.5)
    large, count = SlidingWindow(model, height, width), 3
    context, codes = Context(label=torch.tensor([0, 1, 1])), torch.randint(0, 5, (count, height * width * depth))
    (expected,) = large(large.spec.unflatten(codes), context)
    places = [large.spec.position(t) for t in range(0, large.spec.length, depth)]
    seen = {(place.row, place.column): set() for place in places}
    for t, place in enumerate(places):  # what changes the logits of a code is what its window holds
        changed = codes.clone()
        changed[:, t * depth] = (changed[:, t * depth] + 1) % 5
        (logits,) = large(large.spec.unflatten(changed), context)
        differ = (logits != expected)[:, :, :, 0].flatten(3).any(3).any(0)
        for row, column in differ.nonzero().tolist():
            seen[row, column].add((place.row, place.column))
    assert all(found == seen_by_window(model, height, width, *place) for place, found in seen.items())
    runner = large.runner()
    state, previous, flat = runner.init_state(count, context), codes[:, 0], expected.flatten(1, 3)
    order = torch.tensor([2, 0, 0])
    for t in range(large.spec.length):
        logits, state = runner.step(previous, state)
        torch.testing.assert_close(logits, flat[:, t], rtol=1e-9, atol=1e-9)
        if t == large.spec.length // 2:
            state, codes, flat = select(state, order), codes[order], flat[order]
        previous = codes[:, t]
    assert large.runner("float32").prior.spec == large.spec
    if (height, width) == (3, 3):
        torch.testing.assert_close(model(large.spec.unflatten(codes), select(context, order))[0].flatten(1, 3), flat)


def test_grids_too_small_and_prefixes_that_would_slide_are_refused():
    with pytest.raises(ValueError, match="at least 2x3, as in training; got 2x2"):
        SlidingWindow(GPT(CodeSpec.single(2, 3, 1, 5), GPTConfig(num_layers=1, width=8, num_heads=2)), 2, 2)
    with pytest.raises(ValueError, match="no sliding window"):
        SlidingWindow(prefix_model(), 4, 4)


def test_a_pipeline_samples_and_completes_in_a_precision():
    pixels = entry("tokenizers", "pixels")
    tokenizer = pixels.model(pixels.config(image_height=4, image_width=4, levels=16))
    pipeline = chainrule.Pipeline(tokenizer, GPT(tokenizer.spec, GPTConfig(num_layers=1, width=128, num_heads=4)))
    images = pipeline.sample(2, precision="int8", seed=1)
    assert torch.equal(images, pipeline.sample(2, precision="int8", seed=1)) and images.shape == (2, 1, 4, 4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2] = True
    completed = pipeline.complete(images[0], mask, precision="bfloat16", particles=2)
    assert torch.equal(completed[0][:, mask], images[0][:, mask])
    with pytest.raises(ValueError, match="precision must be one of"):
        pipeline.sample(1, precision="int4")
    pixelcnn = entry("priors", "pixelcnn")
    other = chainrule.Pipeline(tokenizer, pixelcnn.model(tokenizer.spec, tiny("priors", "pixelcnn").config))
    with pytest.raises(ValueError, match="pixelcnn decodes in float32 only, not in int8"):
        other.sample(1, precision="int8")
