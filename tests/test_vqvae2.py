"""VQ-VAE-2: its size, its hierarchy, its training."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from chainrule.core import entry
from chainrule.tokenizers.vqvae2 import VQVAE2, VQVAE2Config
from sizes import tiny

PRESETS = entry("tokenizers", "vqvae2").presets
TINY = [
    tiny("tokenizers", "vqvae2").config,
    replace(tiny("tokenizers", "vqvae2", "tiny-three").config, codebook_size=(16, 8, 4)),
]


def random_images(model, count=3, size=None):
    channels, *shape = model.image_shape
    return torch.randint(0, 256, (count, channels, *(size or shape)), dtype=torch.uint8)


def with_used_codebooks(config) -> VQVAE2:
    """A model whose codes are spread over its features."""
    model = VQVAE2(config).eval()
    for quantizer in model.quantizers:
        quantizer.codebook.weight.normal_(std=0.3)
    return model


def test_size_of_the_rosinality_preset():
    with torch.device("meta"):
        model = VQVAE2(PRESETS["rosinality"].config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_388_867
    assert sum(p.numel() for p in model.parameters()) == 1_388_867  # codebooks are buffers
    assert sum(q.codebook.weight.numel() for q in model.quantizers) == 65_536


@pytest.mark.parametrize("config", TINY)
def test_grids_run_from_coarse_to_fine(config):
    model = VQVAE2(config)
    shapes = [(config.image_height // f, config.image_width // f, 1) for f in config.factors]
    assert [grid.shape for grid in model.spec.grids] == shapes
    sizes = [quantizer.codebook.weight.shape[0] for quantizer in model.quantizers]
    assert [grid.codebook_size for grid in model.spec.grids] == sizes == list(config.codebook_sizes)
    assert all(2 * a[0] == b[0] and 2 * a[1] == b[1] for a, b in pairwise(shapes))


@torch.no_grad()
@pytest.mark.parametrize("config", TINY)
def test_each_level_knows_those_above_and_the_decoder_all(config):
    model = with_used_codebooks(config)
    features = model.features(torch.rand(2, *model.image_shape) * 2 - 1)
    codes = model.encode(random_images(model, 2))
    embedded = model.embed(codes)
    image = model.decode_features(embedded)
    for level in range(config.num_levels):
        changed = [q + 1 if index == level else q for index, q in enumerate(embedded)]
        assert (model.decode_features(changed) - image).abs().max() > 1e-6
        if level == 0:
            continue
        gathered = None
        for index, q in enumerate(embedded[:level]):
            gathered = model.gather(index, gathered, q)
        assert gathered.shape[1] == level * config.embedding_dim
        z = model.project_level(level, gathered, features[level])
        assert (model.project_level(level, gathered + 1, features[level]) - z).abs().max() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("config", TINY)
def test_other_sizes(config):
    model, factor = with_used_codebooks(config), config.factors[0]
    images = random_images(model, 2, (3 * factor, 5 * factor))
    codes = model.encode(images)
    assert tuple(codes[0].shape) == (2, 3, 5, 1) and codes[-1].shape[1] == 3 * factor // config.downsampling
    assert model.decode(codes).shape == images.shape
    with pytest.raises(ValueError, match="grid 1 of the codes must be int64"):
        model.decode((codes[0], codes[1][:, 1:], *codes[2:]))


def test_wrong_images_are_refused_with_the_nearest_sizes():
    model = VQVAE2(TINY[0])
    with pytest.raises(ValueError, match="multiples of 4, got 10x8; nearest: 8x8 and 12x8"):
        model.encode(random_images(model, 1, (10, 8)))
    with pytest.raises(ValueError, match="must be uint8"):
        model.encode(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("config", TINY)
def test_encode_equals_reconstruction_and_learns_nothing(config):
    model = with_used_codebooks(config)
    images = random_images(model)
    with torch.no_grad():
        result = model.reconstruction(images, 0.5)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    codes = model.encode(images)
    assert all(torch.equal(a, b) for a, b in zip(codes, result.codes, strict=True))
    difference = (model.decode(codes) / 255 - result.images.clamp(0, 1)).abs().max()
    assert difference < 0.51 / 255
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.reconstruction(images, 0.5)
    weights = "quantizers.0.codebook.weight", "quantizers.1.codebook.weight"
    assert all(not torch.equal(model.state_dict()[key], before[key]) for key in weights)


@pytest.mark.parametrize("config", TINY)
def test_training_lowers_the_loss(config):
    model = VQVAE2(config).train()
    images = random_images(model, 8)
    images[:] = images[:, :, :1, :1]  # one colour each
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(25):
        result = model.reconstruction(images, step / 25)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.loss.item())
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < 0.8 * losses[0]
    names = [f"perplexity_{level}" for level in range(config.num_levels)]
    assert {"mse", *names} <= set(result.metrics)
    assert 0 <= result.images.mean() <= 1


def test_a_code_is_known_where_its_cell_is():
    model = VQVAE2(TINY[0])  # 16x8, factors 4 and 2
    mask = torch.zeros(16, 8, dtype=torch.bool)
    mask[:6] = True
    known = model.known_codes(mask)
    assert known[:8].reshape(4, 2).all(1).tolist() == [True, False, False, False]
    assert known[8:].reshape(8, 4).all(1).tolist() == [True] * 3 + [False] * 5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_levels": 1}, "num_levels must be at least 2"),
        ({"codebook_size": (8, 4, 2)}, r"codebook_size must be one number or 2, got \[8, 4, 2\]"),
        ({"downsampling": 3}, "power of 2"),
        ({"image_height": 20}, "multiples of 8"),
        ({"num_blocks": -1}, "at least 0"),
    ],
)
def test_wrong_configs_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        VQVAE2(VQVAE2Config(**({"image_height": 16, "image_width": 16} | change)))
