"""RQ-VAE: published sizes, partial decoding, soft codes, training."""

import pytest
import torch

from chainrule.core import entry
from sizes import tiny


def build(preset: str, device: str = "cpu"):
    found = entry("tokenizers", "rqvae")
    with torch.device(device):
        return found.model(tiny("tokenizers", "rqvae", preset).config)


@pytest.mark.parametrize(("preset", "size"), [("imagenet256", 104_401_795), ("ffhq256", 100_731_779)])
def test_published_parameter_counts(preset, size):
    model = build(preset, "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    assert model.spec.to_dict() == [[8, 8, 4, model.config.codebook_size]]


def test_partial_decoding():
    model = build("tiny").eval()
    images = torch.randint(0, 256, (2, 3, 8, 16), dtype=torch.uint8)
    codes = model.encode(images)
    assert torch.equal(model.decode_partial(codes, 3), model.decode(codes))
    other = (codes[0].clone(),)
    other[0][..., 2] = 0
    assert torch.equal(model.decode_partial(other, 2), model.decode_partial(codes, 2))
    for depth in (0, 4):
        with pytest.raises(ValueError, match=r"1\.\.3"):
            model.decode_partial(codes, depth)


def test_soft_codes():
    model = build("tiny").eval()
    images = torch.randint(0, 256, (2, 3, 12, 8), dtype=torch.uint8)
    codes, targets = model.encode_soft(images, 0.5, torch.Generator().manual_seed(0))
    assert codes[0].shape == (2, 3, 2, 3) and targets.shape == (2, 3, 2, 3, 12)
    torch.testing.assert_close(targets.sum(-1), torch.ones(2, 3, 2, 3))


def test_known_codes_of_all_depths():
    model = build("tiny")
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[:4, 4:8] = True
    assert model.known_codes(mask).reshape(2, 4, 3).any(-1).tolist() == [[False, True, False, False], [False] * 4]
    assert model.known_codes(mask).sum() == 3


@pytest.mark.parametrize("preset", ["tiny", "tiny-separate"])
def test_training_lowers_the_loss(preset):
    model = build(preset).train()
    images = torch.randint(0, 256, (4, 3, 2, 4), dtype=torch.uint8)
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(60):
        result = model.reconstruction(images, step / 60)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.metrics["mse"].item())
    assert losses[-1] < 0.5 * losses[0]
    model.spec.check(result.codes)
