"""Parti's refinement to twice the size."""

import pytest
import torch
import torch.nn.functional as F

from chainrule.tokenizers.super_resolution import PRESETS, SuperResolution, SuperResolutionConfig


def test_parameters_of_the_paper():
    with torch.device("meta"):
        model = SuperResolution(PRESETS["parti"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 14_180_876


def test_it_begins_as_interpolation_and_learns_the_rest():
    torch.manual_seed(0)
    model = SuperResolution(PRESETS["tiny"])
    large = torch.randint(0, 256, (4, 3, 10, 12), dtype=torch.uint8)
    small = large[..., ::2, ::2]
    x, target = small / 127.5 - 1, large / 127.5 - 1
    torch.testing.assert_close(model(x), F.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False))
    assert model.upscale(small).shape == large.shape and model.upscale(small).dtype == torch.uint8
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_what_does_not_fit_is_refused():
    model = SuperResolution(PRESETS["tiny"])
    for images in (torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"uint8 \(B, 3, H, W\)"):
            model.upscale(images)
    with pytest.raises(ValueError, match="features must be at least 1"):
        SuperResolutionConfig(features=0)
