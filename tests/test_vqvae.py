"""VQ-VAE: the paper's sizes, other image sizes, training with both ways of learning."""

import pytest
import torch

from chainrule.core import entry
from chainrule.tokenizers.vqvae import VQVAE, VQVAEConfig


@pytest.mark.parametrize(("preset", "side"), [("imagenet128", 32), ("dmlab84", 21), ("cifar10", 8), ("emoji64", 16)])
def test_the_papers_grids(preset, side):
    found = entry("tokenizers", "vqvae")
    with torch.device("meta"):
        model = found.model(found.presets[preset].config)
    assert model.spec.to_dict() == [[side, side, 1, 512]]


@pytest.mark.parametrize("downsampling", [2, 4, 8])
def test_downsampling(downsampling):
    model = VQVAE(
        VQVAEConfig(
            image_height=16, image_width=8, width=4, residual_width=4, downsampling=downsampling, codebook_size=8
        )
    )
    images = torch.randint(0, 256, (2, 3, 24, 16), dtype=torch.uint8)
    codes = model.encode(images)
    assert codes[0].shape == (2, 24 // downsampling, 16 // downsampling, 1)
    assert model.decode(codes).shape == images.shape
    with pytest.raises(ValueError, match="power of 2"):
        VQVAEConfig(image_height=16, image_width=16, downsampling=6)


@pytest.mark.parametrize("learning", ["ema", "loss"])
def test_training_lowers_the_loss_and_leaves_no_code_dead(learning):
    model = VQVAE(
        VQVAEConfig(
            image_height=8,
            image_width=8,
            width=16,
            residual_width=8,
            codebook_size=16,
            embedding_dim=4,
            learning=learning,
        )
    ).train()
    images = torch.randint(0, 256, (32, 3, 2, 2), dtype=torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(100):
        result = model.reconstruction(images, step / 100)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.metrics["mse"].item())
    assert losses[-1] < 0.6 * losses[0]
    assert model.eval().encode(images)[0].unique().numel() >= 14
