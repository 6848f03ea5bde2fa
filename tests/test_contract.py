"""What every registered model is held to; a new one is found here as soon as it is registered."""

import itertools
from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from chainrule.core import CodeSpec, Context, Grouped, Prior, map_state, select
from chainrule.decoding import Guided, GuidedContext, Known, Rerun, Sampling, complete, image_seeds, sample
from chainrule.tokenizers._grid import ImageConfig
from sizes import cases
from traced import TracedCodes

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
    """What the model is conditioned on, of a class, a text or a prefix that differs between images."""
    given = model.conditions

    def ids(length: int, size: int) -> torch.Tensor | None:
        return torch.arange(count * length).view(count, length) % size if length else None

    return Context(
        label=torch.arange(count) % given.num_labels if given.num_labels else None,
        text=ids(given.text_length, given.text_vocab_size),
        prefix=ids(given.prefix_length, given.prefix_codebook_size),
    )


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
    """The same by gradient, for every prior: which codes the logits of a code depend on."""
    model, spec = build(entry, preset), preset.spec
    trace = torch.zeros(1, spec.length, dtype=torch.float64, requires_grad=True)
    codes = random_codes(spec, 1)
    traced = tuple(TracedCodes.of(*pair) for pair in zip(codes, spec.unflatten(trace), strict=True))
    logits = [column for grid in flat_logits(model, traced, context(model, 1)) for column in grid[0]]
    plain = [column for grid in flat_logits(model, codes, context(model, 1)) for column in grid[0]]
    seen = torch.zeros(spec.length, spec.length, dtype=torch.bool)
    for t, (one, same) in enumerate(zip(logits, plain, strict=True)):
        torch.testing.assert_close(one, same, rtol=0, atol=0)
        if one.requires_grad:
            (gradient,) = torch.autograd.grad(one.square().sum(), trace, retain_graph=True)
            seen[t] = gradient[0] != 0
    future = seen.triu()
    assert not future.any(), f"logits of code {int(future.any(1).int().argmax())} see that code or later ones"
    assert seen.any(0).sum() >= (spec.length - 1) / 2, "most codes must be seen by later ones"
    neighbours = []
    for t in range(spec.length):
        here = spec.position(t)
        if here.column > 0:
            depth = spec.grids[here.grid].depth
            neighbours.append(bool(seen[t, t - here.depth - depth : t - here.depth].any()))
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


def leaves(state) -> list:
    """The tensors and counters of a state; tensors have the batch first."""
    if isinstance(state, Grouped):
        return [leaf if isinstance(leaf, int) else leaf.unflatten(0, (-1, state.rows)) for leaf in leaves(state.state)]
    if isinstance(state, (list, tuple)):
        return [leaf for part in state for leaf in leaves(part)]
    if is_dataclass(state):
        return leaves([getattr(state, field.name) for field in fields(state)])
    return [] if state is None else [state]


def joined(one, other):
    """The images of two states, which may be of different ages, in one."""
    parts = iter([torch.cat(pair) for pair in zip(leaves(one), leaves(other), strict=True)])
    return map_state(lambda _: next(parts), one)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("entry", "preset"), PRIORS)
@torch.no_grad()
def test_states_hold_the_batch_and_no_weights(entry, preset, guided):
    model, count = build(entry, preset), 3
    condition = context(model, count)
    runner = Guided(model).runner() if guided else model.runner()
    condition = GuidedContext(condition, condition, torch.ones(count)) if guided else condition
    state = runner.init_state(count, condition)
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    previous = torch.zeros(count, dtype=torch.int64)
    for _ in range(preset.spec.length):
        _, state = runner.step(previous, state)
        for leaf in leaves(state):
            assert isinstance(leaf, int) or (len(leaf) == count and leaf.untyped_storage().data_ptr() not in weights)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("entry", "preset"), PRIORS)
@torch.no_grad()
def test_images_of_different_ages_share_a_batch_where_positions_are_per_image(entry, preset, guided):
    model, spec = build(entry, preset), preset.spec
    runner = Guided(model).runner() if guided else model.runner()
    condition, flat = context(model, 3), spec.flatten(random_codes(spec, 3))
    if guided:
        condition = GuidedContext(condition, select(condition, torch.tensor([1, 2, 0])), torch.tensor([2.0, 0.5, 1.0]))

    def alone(index: int, steps: int):
        state, found = runner.init_state(1, select(condition, torch.tensor([index]))), []
        for t in range(steps):
            logits, state = runner.step(flat[index : index + 1, max(t - 1, 0)], state)
            found.append(logits[0])
        return state, found

    age = spec.length // 2
    if any(isinstance(leaf, int) for leaf in leaves(alone(0, 0)[0])):
        assert entry.name not in ("gpt", "parti", "dalle_bart")
        return
    state = joined(alone(0, age)[0], alone(1, 0)[0])
    old, new = alone(0, spec.length)[1], alone(1, spec.length)[1]
    for t in range(spec.length - age):
        previous = torch.stack([flat[0, age + t - 1], flat[1, max(t - 1, 0)]])
        logits, state = runner.step(previous, state)
        torch.testing.assert_close(logits, torch.stack([old[age + t], new[t]]))


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
def test_every_weight_has_a_gradient_but_where_the_model_says_so(entry, preset):
    """Several processes would wait for the gradient of a weight that the loss does not reach."""
    model = entry.model(preset.spec, preset.config).train()
    (-model.log_prob(random_codes(preset.spec, 3), context(model, 3)).mean()).backward()
    untrained = {id(parameter) for part in model.untrained for parameter in part.parameters()}
    assert all((p.grad is None) == (id(p) in untrained) for p in model.parameters() if p.requires_grad)


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
    scale = torch.tensor([2.5, 1.0, 0.5, 4.0])
    guided, condition = Guided(model), GuidedContext(positive, negative, scale)
    runner = guided.runner()
    together = sample(runner, condition, seeds)
    parts = model(together, positive), model(together, negative), guided(together, condition)
    for c, u, both in zip(*parts, strict=True):
        torch.testing.assert_close(both, u + scale.view(-1, 1, 1, 1, 1) * (c - u))
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
