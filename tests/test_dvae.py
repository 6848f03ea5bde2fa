"""The discrete VAE of DALL-E and the logit-Laplace distribution."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from chainrule.core import entry
from chainrule.layers.logit_laplace import logit_laplace_image, logit_laplace_log_prob, map_pixels, unmap_pixels
from chainrule.tokenizers.dvae import DVAE, DVAEConfig
from sizes import tiny

PRESETS = entry("tokenizers", "dvae").presets
TINY = tiny("tokenizers", "dvae").config


def random_images(model, count=3, size=None):
    channels, *shape = model.image_shape
    return torch.randint(0, 256, (count, channels, *(size or shape)), dtype=torch.uint8)


def test_size_of_the_dalle_preset():
    with torch.device("meta"):
        model = DVAE(PRESETS["dalle"].config)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert (encoder, total - encoder, total) == (53_786_240, 43_829_766, 97_616_006)
    assert model.spec.only.shape == (32, 32, 1) and model.spec.only.codebook_size == 8192


@pytest.mark.parametrize(("location", "scale"), [(0.0, 0.5), (1.2, 0.2), (-0.7, 1.5)])
def test_logit_laplace_is_a_density_with_its_median_at_the_location(location, scale):
    x = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    shape = torch.zeros_like(x)
    density = logit_laplace_log_prob(x, shape + location, shape + math.log(scale)).exp() / len(x)
    assert abs(density.sum().item() - 1) < 1e-4
    median = torch.sigmoid(torch.tensor(location, dtype=torch.float64))
    assert abs(density[x < median].sum().item() - 0.5) < 1e-3


def test_pixels_are_mapped_away_from_the_ends_and_back():
    pixels = torch.linspace(0, 1, 11)
    mapped = map_pixels(pixels)
    torch.testing.assert_close(mapped[[0, -1]], torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(unmap_pixels(mapped), pixels)
    torch.testing.assert_close(logit_laplace_image(torch.logit(mapped)), pixels)


def test_schedules():
    config = DVAEConfig(image_height=256, image_width=256)
    assert config.temperature(0.0) == 1 and config.beta(0.0) == 0
    assert config.temperature(0.05) == config.temperature(1.0) == 1 / 16
    assert config.beta(5000 / 3e6) == config.beta(1.0) == 6.6
    middle = config.temperature(0.025)
    assert middle == pytest.approx((1 + 1 / 16) / 2)
    at_once = replace(config, temperature_share=0.0, kl_share=0.0)
    assert at_once.temperature(0.0) == 1 / 16 and at_once.beta(0.0) == 6.6


@torch.no_grad()
def test_a_one_hot_sample_decodes_as_its_code():
    model = DVAE(TINY)
    codes = torch.randint(0, TINY.codebook_size, (2, 4, 2))
    one_hot = F.one_hot(codes, TINY.codebook_size).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(model.embed(codes.unsqueeze(-1)), model.embedding(one_hot))


@torch.no_grad()
def test_blocks_are_weighed_by_the_square_of_their_number():
    config = replace(TINY, blocks_per_group=2)
    model = DVAE(config)
    assert {block.gain for group in model.encoder.groups for block in group} == {1 / 36}
    block, x = model.decoder.groups[0][1], torch.randn(1, 32, 4, 4)
    y = x
    for convolution in block.convolutions:
        y = F.conv2d(y.relu(), convolution.weight, convolution.bias, padding=convolution.weight.shape[-1] // 2)
    torch.testing.assert_close(block(x), x + y / 36)
    assert [c.kernel_size[0] for c in block.convolutions] == [1, 3, 3, 3]
    assert [c.kernel_size[0] for c in model.encoder.groups[0][0].convolutions] == [3, 3, 3, 1]


@torch.no_grad()
def test_codes_are_without_noise_and_the_loss_is_the_bound():
    model = DVAE(replace(TINY, min_log_scale=-50.0, kl_share=0.0)).eval()
    images = random_images(model)
    result = model.reconstruction(images, 1.0)
    pixels = images / 255
    logits = model.features(pixels * 2 - 1)
    assert torch.equal(model.encode(images)[0][..., 0], logits.argmax(1))
    assert torch.equal(result.codes[0], model.encode(images)[0])
    location, log_scale = model.distribution(model.embed(result.codes[0]))
    nats = -logit_laplace_log_prob(map_pixels(pixels), location, log_scale).flatten(1).sum(1)
    q = logits.softmax(1)
    divergence = (q * (q * TINY.codebook_size).log()).flatten(1).sum(1)
    expected = ((nats + TINY.kl_weight * divergence) / pixels[0].numel()).mean()
    torch.testing.assert_close(result.loss, expected)
    decoded = model.decode(result.codes)
    assert (decoded / 255 - result.images.clamp(0, 1)).abs().max() < 0.51 / 255


def test_training_draws_relaxed_samples_and_lowers_the_loss():
    model = DVAE(replace(TINY, kl_weight=0.1)).train()
    images = random_images(model, 8)
    images[:] = images[:, :, :1, :1]  # one colour each
    first, second = (model.reconstruction(images, 0.0).loss.item() for _ in range(2))
    assert first != second
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(25):
        result = model.reconstruction(images, step / 25)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.metrics["nats"].item())
    assert all(p.grad is not None for p in model.parameters())
    assert sum(losses[-5:]) / 5 < losses[0] - 0.2
    assert {"nats", "kl", "perplexity"} <= set(result.metrics)


def test_dead_codes_share_the_work_of_busy_ones():
    torch.manual_seed(0)
    model = DVAE(replace(TINY, restart_below=0.2)).train()
    with torch.no_grad():
        model.encoder.output.bias[0] = 100.0  # collapsed: one code wins everywhere
    images = random_images(model, 16)
    assert len(model.reconstruction(images, 0.0).codes[0].unique()) == 1
    for _ in range(40):
        model.reconstruction(images, 0.0).loss.backward()  # what restarts change is not what backward needs
    with torch.no_grad():
        assert len(model.reconstruction(images, 0.0).codes[0].unique()) >= 0.9 * TINY.codebook_size
        assert len(model.eval().encode(images)[0].unique()) >= 0.9 * TINY.codebook_size


def test_a_flat_image_gives_a_finite_loss_and_gradient():
    model = DVAE(TINY)
    with torch.no_grad():
        model.decoder.output.weight.zero_()
        model.decoder.output.bias[3:] = -80.0  # a scale of e^-80
    result = model.reconstruction(torch.full((1, *model.image_shape), 255, dtype=torch.uint8), 0.0)
    result.loss.backward()
    assert result.loss < 1e4 and all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_other_sizes():
    model = DVAE(TINY)
    images = random_images(model, 2, (12, 20))
    (codes,) = model.encode(images)
    assert tuple(codes.shape) == (2, 3, 5, 1)
    assert model.decode((codes,)).shape == images.shape
    with pytest.raises(ValueError, match="multiples of 4, got 3x9; nearest: 4x8 and 4x12"):
        model.encode(random_images(model, 1, (3, 9)))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.11"):
        model.decode((codes + 12,))


def test_the_image_of_a_distribution():
    model = DVAE(TINY)
    embedded = model.embed(torch.zeros(1, 4, 2, 1, dtype=torch.int64))
    location, _ = model.distribution(embedded)
    torch.testing.assert_close(model.decode_features(embedded), logit_laplace_image(location) * 2 - 1)


def test_a_code_is_known_where_its_cell_is():
    mask = torch.zeros(16, 8, dtype=torch.bool)
    mask[:8, :7] = True
    assert DVAE(TINY).known_codes(mask).reshape(4, 2).tolist() == [[True, False]] * 2 + [[False] * 2] * 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_channels": 2}, "image_channels must be 1"),
        ({"width": 2}, "width"),
        ({"final_temperature": 0.0}, "final_temperature"),
        ({"kl_share": 1.5}, "kl_share"),
        ({"num_groups": 0}, "num_groups"),
    ],
)
def test_wrong_configs_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        DVAEConfig(**({"image_height": 16, "image_width": 16} | change))
