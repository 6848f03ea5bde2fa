"""Discriminators: sizes, ranges, and that they learn."""

import pytest
import torch

from chainrule.training.tasks.discriminators import (
    AdversarialConfig,
    PatchDiscriminator,
    StyleDiscriminator,
    build_discriminator,
)


@pytest.mark.parametrize(("num_layers", "parameters"), [(3, 2_765_633), (2, 663_361)])
def test_patch_discriminator_has_the_size_of_the_published_one(num_layers, parameters):
    with torch.device("meta"):
        discriminator = PatchDiscriminator(3, 64, num_layers)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == parameters
    assert sum("BatchNorm" in type(module).__name__ for module in discriminator.modules()) == num_layers


def test_scores_are_of_patches_or_of_images():
    images = torch.rand(2, 3, 64, 48)
    assert PatchDiscriminator(3, 4, 3).score(images).shape == (2, 1, 6, 4)
    style = StyleDiscriminator((3, 64, 48), 4)
    assert style.score(images).shape == (2, 1, 1, 1) and len(style.blocks) == 4  # down to 4x3
    assert StyleDiscriminator((1, 20, 12), 4).score(images[:, :1, :20, :12]).shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    "config", [AdversarialConfig(width=8, num_layers=2), AdversarialConfig(discriminator="style", width=8)]
)
def test_a_discriminator_learns_to_tell_noise_from_flat_images(config):
    discriminator = build_discriminator(config, (3, 16, 16))
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3, (0.5, 0.9))
    losses = []
    for _ in range(30):
        loss = discriminator(torch.rand(8, 3, 16, 16), torch.rand(8, 3, 1, 1).expand(-1, -1, 16, 16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 < losses[0]


def test_smoothing_keeps_the_mean_of_flat_images():
    block = StyleDiscriminator((1, 8, 8), 4).blocks[0]
    flat = torch.full((1, 4, 8, 8), 3.0)
    torch.testing.assert_close(block.smooth(flat, 0), torch.full((1, 4, 5, 5), 3.0))


def test_images_too_small_are_refused():
    with pytest.raises(ValueError, match="too small for a patch discriminator of 3 halvings, which needs 24"):
        build_discriminator(AdversarialConfig(), (3, 16, 16))
