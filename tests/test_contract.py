"""What every registered model is held to; a new one is found here as soon as it is registered."""

import itertools
from dataclasses import fields, replace

import pytest
import torch

from chainrule.core import CodeSpec, Context, Prior, select
from chainrule.decoding import Guided, GuidedContext, Known, Rerun, Sampling, complete, image_seeds, sample
from chainrule.priors._raster import RasterPrior
from chainrule.tokenizers._grid import ImageConfig
from sizes import cases

PRIORS, TOKENIZERS = cases("priors"), cases("tokenizers")


def build(entry, preset) -> Prior:
    """A float64 model with weights large enough that every path matters."""
    model = entry.model(preset.spec, preset.config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize(
    ("entry", "preset"), [case for case in TOKENIZERS if issubclass(case.values[0].config, ImageConfig)]
)
def test_sizes_of_tokenizers_have_ranges(entry, preset):
    """A size that no network can have is refused by the config, before anything is built."""
    config = preset.config
    sizes = [field.name for field in fields(config) if type(getattr(config, field.name)) is int]
    assert {"image_height", "image_width", "image_channels"} <= set(sizes)
    for name in sizes:
        for value in (-1, (1 << 20) + 1, 1 << 40):
            with pytest.raises(ValueError):
                replace(config, **{name: value})


def random_codes(spec: CodeSpec, count: int):
    return tuple(torch.randint(0, grid.codebook_size, (count, *grid.shape)) for grid in spec.grids)


def context(model: Prior, count: int) -> Context:
    """What the model is conditioned on, of a class or a text that differs between images."""
    given = model.conditions
    label = torch.arange(count) % given.num_labels if given.num_labels else None
    text = None
    if length := given.text_length:
        text = torch.arange(count * length).view(count, length) % given.text_vocab_size
    return Context(label=label, text=text)


def flat_logits(model: Prior, codes, condition):
    return [logits.flatten(1, 3) for logits in model(codes, condition)]


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
@torch.no_grad()
def test_logits_have_the_shape_of_the_codes(entry, preset):
    model = build(entry, preset)
    logits = model(random_codes(preset.spec, 2), context(model, 2))
    expected = [(2, *grid.shape, grid.codebook_size) for grid in preset.spec.grids]
    assert [tuple(tensor.shape) for tensor in logits] == expected


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
@torch.no_grad()
def test_a_code_changes_no_logits_before_its_successor(entry, preset):
    model, spec = build(entry, preset), preset.spec
    codes = spec.flatten(random_codes(spec, 1))
    reference = flat_logits(model, spec.unflatten(codes), context(model, 1))
    sizes = [grid.codebook_size for grid in spec.grids for _ in range(grid.num_positions)]
    changed = 0
    for t, size in enumerate(sizes):
        other = codes.clone()
        other[:, t] = (other[:, t] + 1) % size
        logits = flat_logits(model, spec.unflatten(other), context(model, 1))
        start = 0
        for before, after in zip(reference, logits, strict=True):
            end = start + before.shape[1]
            upto = min(max(t + 1 - start, 0), before.shape[1])
            assert torch.equal(before[:, :upto], after[:, :upto]), f"code {t} is seen too early"
            changed += not torch.equal(before[:, upto:], after[:, upto:])
            start = end
    assert changed > len(sizes) / 2, "most codes must matter to later ones"


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
def test_gradient_reaches_earlier_codes_only(entry, preset):
    """The same by gradient, for networks whose input is a map of levels."""
    model = build(entry, preset)
    rasters = [m for m in model.modules() if isinstance(m, RasterPrior)]
    for raster in rasters:
        grid, condition = raster.grid, context(raster, 1)
        if raster.conditions.spatial_channels:
            spatial = torch.randn(1, raster.conditions.spatial_channels, grid.height, grid.width).double()
            condition = Context(condition.label, spatial=spatial)
        inputs = raster.embed(random_codes(raster.spec, 1)).requires_grad_()
        logits = raster.logits(raster.features(inputs, condition)).unflatten(1, (grid.depth, grid.codebook_size))
        neighbours = []
        for t in range(grid.num_positions):
            here = raster.spec.position(t)
            out = logits[0, here.depth, :, here.row, here.column].square().sum()
            (gradient,) = torch.autograd.grad(out, inputs, retain_graph=True, allow_unused=True)
            values = gradient[0, : grid.depth * raster.code_channels].unflatten(0, (grid.depth, -1))
            seen = (values != 0).any(1).permute(1, 2, 0).flatten()
            assert not seen[t:].any(), f"logits of code {t} see code {t + int(seen[t:].int().argmax())}"
            if here.column > 0:
                neighbours.append(bool(seen[: t - here.depth][-grid.depth :].any()))
        assert sum(neighbours) >= len(neighbours) / 2, "the left neighbour must be seen (where no relu hides it)"


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
@torch.no_grad()
def test_step_equals_forward(entry, preset):
    model, spec, count = build(entry, preset), preset.spec, 3
    codes = random_codes(spec, count)
    flat, expected = spec.flatten(codes), flat_logits(model, codes, context(model, count))
    expected = [column for grid in expected for column in grid.unbind(1)]
    runner = model.runner()
    state = runner.init_state(count, context(model, count))
    previous = torch.zeros(count, dtype=torch.int64)
    for t in range(spec.length):
        logits, state = runner.step(previous, state)
        torch.testing.assert_close(logits, expected[t], rtol=1e-9, atol=1e-9)
        if t == spec.length // 2:  # a state can be reordered, as decoding with several candidates does
            index = torch.tensor([2, 0, 0])
            state, flat = select(state, index), flat[index]
            reordered = select(context(model, count), index)
            expected = flat_logits(model, spec.unflatten(flat), reordered)
            expected = [column for grid in expected for column in grid.unbind(1)]
        previous = flat[:, t]


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
@torch.no_grad()
def test_probabilities_of_all_codes_sum_to_one(entry, preset):
    model, spec = build(entry, preset), preset.spec
    sizes = [range(grid.codebook_size) for grid in spec.grids for _ in range(grid.num_positions)]
    everything = torch.tensor(list(itertools.product(*sizes)))
    condition = select(context(model, 1), torch.zeros(len(everything), dtype=torch.int64))
    log_prob = model.log_prob(spec.unflatten(everything), condition)
    assert log_prob.dtype == torch.float64
    assert abs(log_prob.exp().sum().item() - 1) < 1e-9


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
def test_training_lowers_the_loss(entry, preset):
    model = entry.model(preset.spec, preset.config)
    codes = random_codes(preset.spec, 8)
    codes = (*codes[:-1], torch.zeros_like(codes[-1]))
    if len(codes) > 1:
        codes = tuple(torch.zeros_like(grid) for grid in codes)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = -model.log_prob(codes, context(model, 8)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
def test_same_seed_same_image_cached_or_not_alone_or_in_a_batch(entry, preset):
    model, seeds = build(entry, preset), image_seeds(7, 4)
    condition, sampling = context(model, 4), Sampling(temperature=0.9, top_k=2)
    runner = model.runner()
    together = sample(runner, condition, seeds, sampling)
    again = sample(Rerun(model), condition, seeds, sampling)
    alone = sample(runner, select(condition, torch.tensor([2])), seeds[2:3], sampling)
    for one, two, three in zip(together, again, alone, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one[2:3], three)


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
@torch.no_grad()
def test_guidance_by_its_equation_and_in_any_batch(entry, preset):
    model, spec, seeds = build(entry, preset), preset.spec, image_seeds(7, 4)
    positive = context(model, 4)
    negative = select(positive, torch.tensor([1, 2, 3, 0]))
    guided, condition = Guided(model, 2.5), GuidedContext(positive, negative)
    runner = guided.runner()
    together = sample(runner, condition, seeds)
    parts = model(together, positive), model(together, negative), guided(together, condition)
    for c, u, both in zip(*parts, strict=True):
        torch.testing.assert_close(both, u + 2.5 * (c - u))
    again = sample(Rerun(guided), condition, seeds)
    mask = torch.arange(spec.length) % 2 == 0
    given = Known(spec.flatten(together), mask)
    completed = complete(runner, condition, seeds, given, particles=2)
    one = torch.tensor([2])
    alone_condition = select(condition, one)
    alone = sample(runner, alone_condition, seeds[2:3])
    completed_alone = complete(runner, alone_condition, seeds[2:3], Known(given.codes[2:3], mask), particles=2)
    for index in range(len(spec.grids)):
        assert torch.equal(together[index], again[index])
        assert torch.equal(together[index][2:3], alone[index])
        assert torch.equal(completed[index][2:3], completed_alone[index])


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(("entry", "preset"), PRIORS)
def test_completion_keeps_known_codes(entry, preset, particles):
    model, spec = build(entry, preset), preset.spec
    runner = model.runner()
    drawn = sample(runner, context(model, 2), image_seeds(1, 2))  # possible codes, also where some are certain
    codes = spec.flatten(drawn)
    mask = torch.arange(spec.length) % 2 == 0
    seeds = image_seeds(2, 2)
    completed = spec.flatten(complete(runner, context(model, 2), seeds, Known(codes, mask), particles))
    assert torch.equal(completed[:, mask], codes[:, mask])
    one = select(context(model, 2), torch.tensor([1]))
    alone = spec.flatten(complete(runner, one, seeds[1:], Known(codes[1:], mask), particles))
    assert torch.equal(alone, completed[1:])


@pytest.mark.parametrize(("entry", "preset"), TOKENIZERS)
def test_tokenizer_codes_fit_its_spec(entry, preset):
    tokenizer = entry.model(preset.config).eval()
    images = torch.randint(0, 256, (3, *tokenizer.image_shape), dtype=torch.uint8)
    codes = tokenizer.encode(images)
    tokenizer.spec.check(codes)
    decoded = tokenizer.decode(codes)
    assert decoded.dtype == torch.uint8 and decoded.shape == images.shape
    height, width = images.shape[2:]
    everything = tokenizer.known_codes(torch.ones(height, width, dtype=torch.bool))
    assert everything.shape == (tokenizer.spec.length,) and everything.all()
    assert not tokenizer.known_codes(torch.zeros(height, width, dtype=torch.bool)).any()
