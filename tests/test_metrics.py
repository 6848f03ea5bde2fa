"""The likelihood of a data set: the mean, its error, and noise that does not depend on batches."""

from __future__ import annotations

import pytest
import torch

from chainrule.data import ImageDataset
from chainrule.evaluation import likelihood
from chainrule.evaluation.likelihood import CHUNK


def grey(count: int) -> ImageDataset:
    generator = torch.Generator().manual_seed(1)
    return ImageDataset(torch.randint(0, 256, (count, 1, 2, 3), dtype=torch.uint8, generator=generator))


def brightness(batch):
    return -batch.images.double().mean((1, 2, 3))


def test_mean_and_standard_error():
    images = torch.tensor([10, 20, 60], dtype=torch.uint8).view(3, 1, 1, 1)
    seen = []
    result = likelihood(brightness, ImageDataset(images), batch_size=2, on_batch=seen.append)
    assert result.nats == 30 and result.per_seed == (30,) and result.num_images == 3
    assert result.standard_error == pytest.approx((700 / 3) ** 0.5)  # deviations -20, -10, 30: variance 700
    assert result.seed_std is None and seen == [2, 3]


def test_one_image_has_no_standard_error():
    assert likelihood(brightness, grey(1)).standard_error is None


def test_noise_depends_on_seed_and_place_only():
    dataset = grey(CHUNK + 300)
    whole = likelihood(brightness, dataset, "sample", (3, 4), batch_size=500)
    other = likelihood(brightness, dataset, "sample", (3, 4), batch_size=7)
    assert whole.per_seed == pytest.approx(other.per_seed, rel=1e-12) and whole.per_seed[0] != whole.per_seed[1]
    assert likelihood(brightness, dataset, "sample", (4,)).per_seed == pytest.approx(whole.per_seed[1:], rel=1e-12)

    def seen_with(limit):
        seen = []

        def log_prob(batch):
            seen.append(batch.images)
            return brightness(batch)

        likelihood(log_prob, dataset.slice(0, limit), "sample", (3,))
        return torch.cat(seen)

    assert torch.equal(seen_with(CHUNK + 5)[:17], seen_with(17)) and set(seen_with(17).unique().tolist()) == {0, 255}


def test_seeds_are_averaged_before_the_standard_error():
    dataset = grey(200)
    one = likelihood(brightness, dataset, "sample", (0,))
    many = likelihood(brightness, dataset, "sample", range(20))
    assert many.standard_error < one.standard_error and many.seed_std > 0
    assert many.nats == pytest.approx(sum(many.per_seed) / 20)


def test_labels_reach_the_model():
    dataset = ImageDataset(grey(5).images, torch.arange(5), None, None, 5)
    assert likelihood(lambda batch: -batch.labels.double(), dataset, batch_size=2).nats == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": ()}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"seeds": (0, 1)}, "several seeds would give the same figure"),
        ({"binarization": "dither"}, "binarize must be one of"),
    ],
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        likelihood(brightness, grey(4), **arguments)
