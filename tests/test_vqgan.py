"""VQGAN and its Gumbel variant: published sizes, other image sizes, training, the fast setting."""

import pytest
import torch
from torch import nn

from chainrule.core import entry
from chainrule.tokenizers.vqgan import VQGAN, VQGANConfig, VQGANGumbel, VQGANGumbelConfig
from sizes import tiny


def build(name: str, preset: str, device: str = "cpu"):
    found = entry("tokenizers", name)
    with torch.device(device):
        return found.model(tiny("tokenizers", name, preset).config)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_parameter_counts():
    small = build("vqgan", "f16-1024", "meta")
    assert count(small) == 72_141_699
    assert count(small.encoder) == 29_298_176 and count(small.decoder) == 42_449_795
    assert count(small.to_codebook) + count(small.from_codebook) == 131_584
    assert count(build("vqgan", "f16-16384", "meta")) == 76_073_859
    assert small.spec.to_dict() == [[16, 16, 1, 1024]]
    assert build("vqgan_gumbel", "f8-8192", "meta").spec.to_dict() == [[32, 32, 1, 8192]]


@pytest.mark.parametrize("name", ["vqgan", "vqgan_gumbel"])
def test_other_sizes(name):
    model = build(name, "tiny").eval()
    images = torch.randint(0, 256, (2, 3, 12, 20), dtype=torch.uint8)
    codes = model.encode(images)
    assert codes[0].shape == (2, 3, 5, 1) and model.decode(codes).shape == images.shape
    with pytest.raises(ValueError, match=r"multiples of 4, got 13x20; nearest: 12x20 and 16x20"):
        model.encode(images.new_zeros(1, 3, 13, 20))
    with pytest.raises(ValueError, match="uint8"):
        model.encode(images.float())
    with pytest.raises(ValueError, match=r"0\.\.11"):
        model.decode((codes[0] + 12,))
    with pytest.raises(ValueError, match="grids"):
        model.decode(codes + codes)


def test_configs_out_of_range():
    for options, words in (
        ({"image_height": 20}, "multiples of 16, got 20 and 64; the next that are: 32 and 64"),
        ({"norm_groups": 48}, "norm_groups"),
        ({"attention_levels": (5,)}, r"0\.\.4"),
        ({"image_channels": 2}, "grey"),
        ({"dropout": 1.0}, "dropout"),
        ({"learning": "ema", "legacy_beta": True}, "would be ignored"),
    ):
        with pytest.raises(ValueError, match=words):
            VQGAN(VQGANConfig(**{"image_height": 64, "image_width": 64, **options}))
    with pytest.raises(ValueError, match="temperatures"):
        VQGANGumbelConfig(image_height=64, image_width=64, temperatures=(1.0, 0.0))


def test_known_codes_need_all_pixels_of_their_cell():
    model = build("vqgan", "tiny")
    mask = torch.zeros(16, 8, dtype=torch.bool)
    mask[:8] = True
    mask[0, 0] = False
    assert model.known_codes(mask).tolist() == [False, True, True, True, False, False, False, False]


@pytest.mark.parametrize("name", ["vqgan", "vqgan_gumbel"])
def test_training_lowers_the_loss(name):
    model = build(name, "tiny").train()
    images = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    images = images.repeat_interleave(8, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(60):
        result = model.reconstruction(images, step / 60)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.metrics["l1"].item())
    assert losses[-1] < 0.7 * losses[0]
    assert result.images.shape == images.shape and result.images.requires_grad
    model.spec.check(result.codes)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_temperature_falls():
    size = {"image_height": 8, "image_width": 8, "width": 32, "multipliers": (1,), "attention_levels": ()}
    model = VQGANGumbel(VQGANGumbelConfig(**size, codebook_size=8))
    assert model.temperature(0.0) == 1.0 and model.temperature(1.0) == pytest.approx(0.0625)
    assert model.temperature(0.5) == pytest.approx(0.53125)


@torch.no_grad()
def test_the_fast_setting_keeps_nearly_all():
    """channels_last and bfloat16 under autocast: every convolution sees that format and type."""
    config = VQGANConfig(image_height=32, image_width=32, width=32, multipliers=(1, 2), num_blocks=1,
                         attention_levels=(1,), latent_channels=16, codebook_size=16, embedding_dim=8)  # fmt: skip
    model = VQGAN(config).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    codes = model.encode(images)
    decoded = model.decode(codes)
    model.to(memory_format=torch.channels_last)
    exact = model.encode(images)[0]
    assert (exact == codes[0]).float().mean() > 0.99

    def check(module, inputs, output):
        assert output.dtype == torch.bfloat16 and output.is_contiguous(memory_format=torch.channels_last)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(check)
    with torch.autocast("cpu", torch.bfloat16):
        fast, fast_decoded = model.encode(images)[0], model.decode(codes)
    assert (fast == codes[0]).float().mean() > 0.8
    assert (fast_decoded.float() - decoded.float()).abs().mean() < 2
