"""Packed convolutions and tokenizers against the plain ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainrule.core import entry
from chainrule.evaluation import psnr
from chainrule.kernels import winograd
from chainrule.kernels.winograd import Convolution3x3, Map, normalization
from sizes import tiny

needs_native = pytest.mark.skipif(winograd.native_library() is None, reason="winograd.cpp is not for this machine")
SIZES = [(3, 20, 7, 9, False), (70, 3, 20, 34, False), (40, 70, 9, 5, True), (16, 128, 1, 1, False)]
LIMITS = {"float32": 2e-6, "bfloat16": 8e-3}


def by_definition(conv, x, act, residual, doubled):
    x = F.silu(x.double() * act[0][:, None, None] + act[1][:, None, None]).permute(0, 3, 1, 2)
    if doubled:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    y = F.conv2d(x, conv.weight.double(), conv.bias.double(), padding=1)
    return y.permute(0, 2, 3, 1) + residual


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("inputs", "outputs", "height", "width", "doubled"), SIZES)
@torch.no_grad()
def test_packed_convolution(native, precision, inputs, outputs, height, width, doubled):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(inputs, outputs, 3, padding=1), torch.randn(2, height, width, inputs)
    act = (torch.rand(2, inputs) + 0.5, torch.randn(2, inputs))
    factor = 2 if doubled else 1
    residual = torch.randn(2, height * factor, width * factor, outputs)
    packed = Convolution3x3(conv, precision, doubled, backend="native" if native else "plain")
    expected = by_definition(conv, x, act, residual, doubled)
    assert packed.native == native
    found = packed(x, act, residual)
    assert (found.values - expected).norm() < LIMITS[precision] * expected.norm()
    torch.testing.assert_close(found.sums, Map.of(found.values).sums, rtol=1e-4, atol=1e-3)
    alone = packed(x[1:].contiguous(), (act[0][1:], act[1][1:]), residual[1:].contiguous())
    assert not native or torch.equal(alone.values, found.values[1:])
    narrow = packed(x, act, residual, narrow=True)
    assert torch.equal(narrow.values, found.values.bfloat16()) and torch.equal(narrow.sums, found.sums)
    again = packed(narrow.values[..., :inputs].contiguous()) if outputs >= inputs and not doubled else None
    if again is not None:
        torch.testing.assert_close(again.values, packed(narrow.values[..., :inputs].float().contiguous()).values)
    plain = packed(x)
    expected = F.conv2d(
        F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0) if doubled else x.permute(0, 3, 1, 2),
        conv.weight, conv.bias, padding=1,
    ).permute(0, 2, 3, 1)  # fmt: skip
    assert (plain.values - expected).norm() < LIMITS[precision] * expected.norm()


@torch.no_grad()
def test_normalization_is_group_norm():
    torch.manual_seed(0)
    norm, x = nn.GroupNorm(3, 12), torch.randn(2, 5, 4, 12) + 3
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    scale, shift = normalization(Map.of(x), norm)
    expected = norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
@pytest.mark.parametrize(("name", "preset"), [("vqgan", "tiny"), ("vqgan_gumbel", "tiny"), ("rqvae", "tiny")])
@torch.no_grad()
def test_packed_tokenizers(native, name, preset, monkeypatch):
    monkeypatch.setenv("CHAINRULE_NATIVE", "require" if native else "off")
    torch.manual_seed(0)
    found = entry("tokenizers", name)
    model = found.model(tiny("tokenizers", name, preset).config).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    packed = model.packed("bfloat16")
    images = torch.randint(0, 256, (2, 3, 12, 20), dtype=torch.uint8)
    codes = model.encode(images)
    scaled = model.scale(images)
    features = model.features(scaled)
    assert (packed.features(scaled) - features).norm() < 0.03 * features.norm()
    assert packed.encode(images)[0].shape == codes[0].shape
    assert psnr(packed.decode(codes), model.decode(codes)).min() > 35
    with pytest.raises(ValueError, match="multiples of 4"):
        packed.encode(images[:, :, :11])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_precisions():
    model = entry("tokenizers", "vqgan")
    tokenizer = model.model(tiny("tokenizers", model.name).config)
    assert tokenizer.packed("float32") is tokenizer
    with pytest.raises(ValueError, match="float32, bfloat16, got 'int8'"):
        tokenizer.packed("int8")
    pixels = entry("tokenizers", "pixels")
    with pytest.raises(ValueError, match="in float32 only"):
        pixels.model(tiny("tokenizers", "pixels").config).packed("bfloat16")
