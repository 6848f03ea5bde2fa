"""The contract beyond pixels: two grids (VQ-VAE-2), residual codes (RQ), a joint text and image stream (DALL-E).

No such model exists in the package yet; toy ones stand for them, to show that codes, priors, the sampling loop and
pipelines do not assume one grid of pixels.
"""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from chainrule import Pipeline, load
from chainrule.core import (
    Codes,
    CodeSpec,
    Context,
    GridSpec,
    Position,
    Prior,
    Runner,
    Tokenizer,
    check_float32,
    entry,
    register,
)
from chainrule.decoding import Known, Rerun, complete, image_seeds, sample
from chainrule.images import extend

TWO_GRIDS = CodeSpec((GridSpec(1, 2, 1, 3), GridSpec(2, 2, 1, 2)))
RESIDUAL = CodeSpec.single(2, 1, 3, 3)
TEXT_AND_IMAGE = CodeSpec((GridSpec(1, 3, 1, 5), GridSpec(2, 2, 1, 2)))
SPECS = [TWO_GRIDS, RESIDUAL, TEXT_AND_IMAGE]


@dataclass(frozen=True)
class RunningSumConfig:
    features: int = 4


@dataclass
class RunningSumState:
    t: int
    total: torch.Tensor  # (B, F)


@register("priors", "toy_running_sum", RunningSumConfig)
class RunningSum(Prior):
    """The simplest prior over any codes: logits are a linear map of the sum of embeddings so far."""

    def __init__(self, spec: CodeSpec, config: RunningSumConfig) -> None:
        super().__init__(spec)
        self.config = config
        self.places = [grid for grid in spec.grids for _ in range(grid.num_positions)]
        self.embeddings = nn.ModuleList(nn.Embedding(g.codebook_size, config.features) for g in self.places)
        self.heads = nn.ModuleList(nn.Linear(config.features, g.codebook_size) for g in self.places)

    def forward(self, codes: Codes, context: Context) -> tuple[torch.Tensor, ...]:
        flat = self.spec.flatten(codes)
        total = torch.zeros(len(flat), self.config.features, dtype=self.heads[0].weight.dtype)
        logits = []
        for t, (embedding, head) in enumerate(zip(self.embeddings, self.heads, strict=True)):
            logits.append(head(total.tanh()))
            total = total + embedding(flat[:, t])
        grids, start = [], 0
        for grid in self.spec.grids:
            part = torch.stack(logits[start : start + grid.num_positions], 1)
            grids.append(part.reshape(len(flat), *grid.shape, grid.codebook_size))
            start += grid.num_positions
        return tuple(grids)

    def runner(self, precision: str = "float32") -> "RunningSumRunner":
        check_float32(self, precision)
        return RunningSumRunner(self)


class RunningSumRunner(Runner):
    def start(self, batch_size: int, context: Context) -> RunningSumState:
        return RunningSumState(0, self.prior.heads[0].weight.new_zeros(batch_size, self.prior.config.features))

    def advance(self, previous: torch.Tensor, state: RunningSumState) -> tuple[torch.Tensor, RunningSumState]:
        total = state.total if state.t == 0 else state.total + self.prior.embeddings[state.t - 1](previous)
        return self.prior.heads[state.t](total.tanh()), RunningSumState(state.t + 1, total)


@dataclass(frozen=True)
class PyramidConfig:
    scale: float = 1.0


@register("tokenizers", "toy_pyramid", PyramidConfig)
class Pyramid(Tokenizer):
    """Two grids of a 2x2 grey image, with a learned parameter: is the left or right column lit; which pixels are."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        self.config, self.spec, self.image_shape = config, TWO_GRIDS, (1, 2, 2)
        self.gain = nn.Parameter(torch.tensor(config.scale))

    def encode(self, images: torch.Tensor) -> Codes:
        self.check_images(images)
        fine = (images[:, 0] > 127 * self.gain).long()
        return fine.sum(1)[:, None, :, None], fine[..., None]

    def decode(self, codes: Codes) -> torch.Tensor:
        self.spec.check(codes)
        return (codes[1][..., 0] * 255).to(torch.uint8)[:, None]

    def known_codes(self, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([mask.all(0), mask.flatten()])


def toy(spec: CodeSpec) -> Prior:
    model = RunningSum(spec, RunningSumConfig()).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("spec", SPECS)
def test_codes_are_flattened_coarse_to_fine_raster_depth_innermost(spec):
    codes = tuple(torch.randint(0, g.codebook_size, (2, *g.shape)) for g in spec.grids)
    flat = spec.flatten(codes)
    for t in range(spec.length):
        here = spec.position(t)
        assert torch.equal(flat[:, t], codes[here.grid][:, here.row, here.column, here.depth])
    assert all(torch.equal(a, b) for a, b in zip(spec.unflatten(flat), codes, strict=True))
    assert CodeSpec.from_dict(spec.to_dict()) == spec


def test_position():
    assert RESIDUAL.position(4) == Position(0, 1, 0, 1)
    assert TWO_GRIDS.position(3) == Position(1, 0, 1, 0)


@pytest.mark.parametrize("spec", SPECS)
def test_every_kind_of_codes_can_be_sampled_scored_and_completed(spec):
    model, seeds = toy(spec), image_seeds(0, 3)
    drawn = sample(model.runner(), Context(), seeds)
    spec.check(drawn)
    again = sample(Rerun(model), Context(), seeds)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    per_grid = model.log_prob_grids(drawn)
    total = sum(grid.flatten(1).sum(1) for grid in per_grid)
    torch.testing.assert_close(total, model.log_prob(drawn))
    mask = torch.arange(spec.length) % 2 == 1
    kept = spec.flatten(complete(model.runner(), Context(), seeds, Known(spec.flatten(drawn), mask), particles=4))
    assert torch.equal(kept[:, mask], spec.flatten(drawn)[:, mask])


def test_a_caption_is_a_known_first_grid():
    """DALL-E's prompt: the text's codes are given, the image's drawn; both have likelihoods."""
    model = toy(TEXT_AND_IMAGE)
    text = torch.tensor([[1, 4, 2], [3, 0, 0]])
    codes = torch.cat([text, torch.zeros(2, 4, dtype=torch.int64)], dim=1)
    mask = torch.tensor([True] * 3 + [False] * 4)
    drawn_text, drawn_image = sample(model.runner(), Context(), image_seeds(0, 2), known=Known(codes, mask))
    assert torch.equal(drawn_text[:, 0, :, 0], text)
    text_nats, image_nats = model.log_prob_grids((drawn_text, drawn_image))
    assert text_nats.shape == (2, 1, 3, 1) and image_nats.shape == (2, 2, 2, 1)


def test_many_particles_draw_from_the_distribution_given_all_known_codes():
    """Sequential Monte Carlo against the exact conditional, by enumeration; ancestral completion differs."""
    spec = CodeSpec.single(1, 4, 1, 2)
    model = toy(spec)
    everything = torch.cartesian_prod(*[torch.arange(2)] * 4)
    known, mask = torch.tensor([0, 1, 1, 1]), torch.tensor([False, True, False, True])
    agrees = (everything[:, mask] == known[mask]).all(1)
    exact = model.log_prob(spec.unflatten(everything[agrees])).softmax(0)
    count = 400
    codes = Known(known.expand(count, -1), mask)
    drawn = spec.flatten(complete(model.runner(), Context(), image_seeds(0, count), codes, particles=64))
    found = torch.stack([(drawn == row).all(1).double().mean() for row in everything[agrees]])
    ancestral = spec.flatten(complete(model.runner(), Context(), image_seeds(0, count), codes, particles=1))
    plain = torch.stack([(ancestral == row).all(1).double().mean() for row in everything[agrees]])
    assert (found - exact).abs().max() < 0.06
    assert (found - exact).abs().sum() < (plain - exact).abs().sum()


def test_pipeline_of_two_grids_is_saved_and_loaded(tmp_path):
    pipeline = Pipeline(Pyramid(PyramidConfig()), RunningSum(TWO_GRIDS, RunningSumConfig()))
    pipeline.save(tmp_path / "toy")
    again = load(tmp_path / "toy")
    assert torch.equal(again.sample(3, seed=1), pipeline.sample(3, seed=1))
    images = torch.randint(0, 256, (3, 1, 2, 2), dtype=torch.uint8)
    assert torch.equal(again.log_prob(images), pipeline.log_prob(images))


def test_a_prior_is_stored_in_int8(tmp_path):
    pipeline = Pipeline(Pyramid(PyramidConfig()), RunningSum(TWO_GRIDS, RunningSumConfig()))
    pipeline.save(tmp_path / "toy", torch.int8)
    stored, again = load_file(tmp_path / "toy" / "prior.safetensors"), load(tmp_path / "toy").prior.state_dict()
    for name, value in pipeline.prior.state_dict().items():
        row_largest = value.abs().flatten(1).amax(1, keepdim=True) if value.ndim > 1 else torch.zeros(())
        assert ((again[name] - value).abs() <= row_largest / 127 / 2 * 1.001).all()
        assert stored[name].dtype == (torch.int8 if value.ndim > 1 else torch.float32)


def test_a_prior_refuses_another_tokenizer(tmp_path):
    prior = RunningSum(TWO_GRIDS, RunningSumConfig())
    Pipeline(Pyramid(PyramidConfig()), prior).save(tmp_path / "one")
    Pipeline(Pyramid(PyramidConfig(0.5)), prior).save(tmp_path / "two")
    (tmp_path / "two" / "tokenizer.safetensors").replace(tmp_path / "one" / "tokenizer.safetensors")
    with pytest.raises(ValueError, match="another tokenizer"):
        load(tmp_path / "one")


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="this prior models"):
        Pipeline(Pyramid(PyramidConfig()), toy(RESIDUAL))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ((torch.zeros(1, 2, 1, 3, dtype=torch.int64),) * 2, "expected 1 grids"),
        ((torch.zeros(1, 2, 1, 3),), "must be int64"),
        ((torch.full((1, 2, 1, 3), 3),), r"must lie in 0\.\.2"),
    ],
)
def test_wrong_codes_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        toy(RESIDUAL).log_prob(codes)


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'pixelcnn'"):
        entry("priors", "pixelcn")


def test_a_label_needs_classes():
    with pytest.raises(ValueError, match="no classes"):
        toy(RESIDUAL).log_prob(sample(toy(RESIDUAL).runner(), Context(), [0]), Context(label=torch.tensor([0])))


@pytest.mark.parametrize("name", ["emoji_vqvae", "emoji_rqvae"])
def test_completion_is_not_told_what_is_hidden(name):
    """Codes of the known half are taken of a picture without the hidden one, which their receptive fields would see."""
    tokenizer = load(name)
    torch.manual_seed(0)
    pipeline = Pipeline(tokenizer, RunningSum(tokenizer.spec, RunningSumConfig()))
    image = torch.randint(0, 256, tokenizer.image_shape, dtype=torch.uint8)
    other, mask = image.clone(), torch.zeros(64, 64, dtype=torch.bool)
    mask[:, :32] = True
    other[..., 32:] = 0
    assert torch.equal(pipeline.complete(image, mask, seed=1), pipeline.complete(other, mask, seed=1))


def test_known_pixels_are_extended():
    image = torch.tensor([[[10, 0, 0], [0, 0, 20]]], dtype=torch.uint8)
    mask = torch.tensor([[True, False, False], [False, False, True]])
    assert extend(image, mask).tolist() == [[[10, 15, 20], [10, 15, 20]]]
    assert torch.equal(extend(image, torch.zeros(2, 3, dtype=torch.bool)), image)
