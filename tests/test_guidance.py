"""Guidance, rejection, and what a pipeline makes of them and of labels that say "no class"."""

from dataclasses import asdict, fields

import pytest
import torch

from chainrule import Pipeline, load
from chainrule.cli.options import SAMPLING
from chainrule.core import Context, select
from chainrule.decoding import Guided, GuidedContext, Sampling, image_seeds, keep_best, sample
from chainrule.priors.pixelcnn import PixelCNN, PixelCNNConfig
from chainrule.tokenizers.pixels import Pixels, PixelsConfig


def pipeline(null_label: bool = True, classes: int = 2) -> Pipeline:
    """Images of 3x4 black or white pixels, with weights large enough that classes matter."""
    torch.manual_seed(0)
    tokenizer = Pixels(PixelsConfig(image_height=3, image_width=4, image_channels=1, levels=2))
    prior = PixelCNN(
        tokenizer.spec, PixelCNNConfig(num_layers=2, width=4, head_width=6, num_classes=classes, null_label=null_label)
    )
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=0.5)
    return Pipeline(tokenizer, prior, ["cat", "dog"] if classes else None)


@torch.no_grad()
def test_step_of_a_reordered_state():
    prior = pipeline().prior.double()
    guided, labels = Guided(prior), torch.tensor([[0, 1, 0], [2, 2, 1]])
    context = GuidedContext(*(Context(label=label) for label in labels), torch.tensor([3.0, 0.5, 1.5]))
    codes = torch.randint(0, 2, (3, 12))
    runner = guided.runner()
    state, previous, index = runner.init_state(3, context), codes[:, 0], torch.tensor([2, 2, 1, 0])
    for t in range(12):
        logits, state = runner.step(previous, state)
        expected = guided(prior.spec.unflatten(codes), context)[0].flatten(1, 3)[:, t]
        torch.testing.assert_close(logits, expected)
        if t == 5:
            state, context, codes = select(state, index), select(context, index), codes[index]
        previous = codes[:, t]


def test_contexts_must_hold_the_same():
    with pytest.raises(ValueError, match="guidance needs a label in the positive and the negative context"):
        GuidedContext(Context(label=torch.tensor([0])), Context(), torch.ones(1)).joined()


def test_the_context_of_a_guided_prior_is_checked():
    prior = pipeline().prior
    one, three = Context(label=torch.tensor([0])), Context(label=torch.tensor([3]))
    codes = prior.spec.unflatten(torch.zeros(1, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"label must lie in 0\.\.2, got 0\.\.3"):
        Guided(prior).log_prob(codes, GuidedContext(one, three, torch.ones(1)))
    with pytest.raises(ValueError, match=r"scale must be float \(1,\), got \(2,\)"):
        Guided(prior).log_prob(codes, GuidedContext(one, one, torch.ones(2)))


# ---------------------------------------------------------------- pipeline


def test_guidance_makes_classes_plainer():
    model = pipeline()
    classes = torch.arange(200) % 2
    sure = [
        model.classify(model.sample(200, classes, guidance=scale, seed=3))[torch.arange(200), classes].mean().item()
        for scale in (0.0, 1.0, 4.0)
    ]
    assert sure[0] < sure[1] < sure[2]
    assert torch.equal(model.sample(8, "cat", guidance=0.0, seed=1), model.sample(8, seed=1))  # scale 0: no class
    assert torch.equal(model.sample(8, "dog", guidance=3, seed=1)[:5], model.sample(5, "dog", guidance=3, seed=1))


def test_guided_completion_keeps_what_is_known():
    model = pipeline()
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    image = torch.full((1, 3, 4), 200, dtype=torch.uint8)
    drawn = model.complete(image, mask, 5, "cat", guidance=3.0, particles=3)
    pasted = model.complete(image, mask, 5, "cat", guidance=3.0, particles=3, paste=True)
    assert (drawn[:, 0, mask] == 255).all() and (pasted[:, 0, mask] == 200).all()
    assert torch.equal(drawn[:, 0, ~mask], pasted[:, 0, ~mask])


def test_no_class_is_saved_and_is_no_class_of_the_user(tmp_path):
    model = pipeline()
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.prior.conditions.null_label and again.num_classes == 2 and again.class_names == ("cat", "dog")
    images = model.sample(4, guidance=2.0, label=[0, 1, 1, 0])
    assert torch.equal(images, again.sample(4, guidance=2.0, label=[0, 1, 1, 0]))
    assert torch.equal(again.log_prob(images), model.prior.log_prob(model.tokenizer.encode(images), null(4)))
    with pytest.raises(ValueError, match=r"label must lie in 0\.\.1, got 2"):
        again.sample(1, 2)
    pipeline(null_label=False).save(tmp_path / "plain")
    assert not load(tmp_path / "plain").prior.conditions.null_label


def null(count: int) -> Context:
    return Context(label=torch.full((count,), 2))


def test_guidance_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="trained with labels dropped"):
        pipeline(null_label=False).sample(1, "cat", guidance=2.0)
    with pytest.raises(ValueError, match="needs a label or a text to draw towards"):
        pipeline().sample(1, guidance=2.0)


def test_options_of_sampling_exist_once():
    assert set(SAMPLING) == {field.name for field in fields(Sampling)}  # those of the command line
    model, seeds = pipeline(), image_seeds(1, 3)
    options = Sampling(temperature=0.5, top_k=2, guidance=3.0)
    context = GuidedContext(Context(label=torch.tensor([1, 1, 1])), null(3), torch.full((3,), 3.0))
    drawn = sample(options.runner(model.prior), context, seeds, options)
    assert torch.equal(model.tokenizer.decode(drawn), model.sample(3, "dog", seed=1, **asdict(options)))
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"guidance": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.sample(1, "dog", **wrong)
    with pytest.raises(TypeError, match="colour"):
        model.sample(1, "dog", colour="red")


def test_classes_are_told_apart_by_bayes_rule():
    model = pipeline()
    images = model.sample(6, [0, 1] * 3)
    each = torch.stack([model.log_prob(images, label) for label in ("cat", "dog")], 1)
    torch.testing.assert_close(model.classify(images).exp(), each.exp() / each.exp().sum(1, keepdim=True))
    with pytest.raises(ValueError, match="has no classes"):
        pipeline(null_label=False, classes=0).classify(images)


# ---------------------------------------------------------------- rejection


def test_the_best_candidate_of_each_image_is_kept():
    drawn = []

    def draw(seeds):
        drawn.append(seeds)
        return torch.tensor([seed % 97 for seed in seeds])

    seeds = image_seeds(5, 3)
    best = keep_best(draw, seeds, 4, lambda images: images.double())
    assert best.tolist() == torch.tensor([[seed % 97 for seed in each] for each in drawn]).amax(0).tolist()
    assert keep_best(draw, seeds[1:2], 4, lambda images: images.double()).tolist() == best[1:2].tolist()
    with pytest.raises(ValueError, match="must give 3 numbers"):
        keep_best(draw, seeds, 2, lambda images: images.double().mean(0, keepdim=True))


def test_rejection_by_a_scorer():
    model = pipeline()
    plain = model.sample(6, "dog", seed=2)

    def light(images):
        return images.double().mean((1, 2, 3))

    best = model.sample(6, "dog", seed=2, best_of=8, scorer=light)
    assert light(best).mean() > light(plain).mean()
    assert torch.equal(best[:2], model.sample(2, "dog", seed=2, best_of=8, scorer=light))
    with pytest.raises(ValueError, match="a scorer would be ignored"):
        model.sample(1, "dog", scorer=light)


def test_the_model_judges_its_own_candidates():
    model = pipeline()
    expected = model.sample(3, "dog", seed=2, best_of=4, scorer=lambda images: model.classify(images)[:, 1])
    assert torch.equal(model.sample(3, "dog", seed=2, best_of=4), expected)
    with pytest.raises(ValueError, match="nothing says which candidate is best"):
        model.sample(1, best_of=4)
