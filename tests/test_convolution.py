"""Packed convolutions and tokenizers against the plain ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.core import entry
from chainrule.evaluation import psnr
from chainrule.kernels.convolution import Convolution, Map, algorithms, normalization
from chainrule.upscaling.upscaler import Upscaler, UpscalerConfig
from sizes import tiny

ALGORITHMS = [
    pytest.param(name, marks=pytest.mark.skipif(name not in algorithms(), reason=f"this machine has no {name}"))
    for name in ("tiles", "winograd", "library")
]
CONVOLUTIONS = {
    "same": lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1),
    "doubled": lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1),
    "pointwise": lambda inputs, outputs: nn.Conv2d(inputs, outputs, 1),
    "halved": lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, stride=2),
}
SIZES = [(3, 20, 6, 10), (70, 3, 20, 34), (40, 70, 10, 6), (16, 128, 2, 2)]


def by_definition(conv, x, kind):
    x = x.double().permute(0, 3, 1, 2)
    if kind == "doubled":
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    if kind == "halved":
        x = F.pad(x, (0, 1, 0, 1))
    return conv.double()(x).permute(0, 2, 3, 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize(("inputs", "outputs", "height", "width"), SIZES)
@torch.no_grad()
def test_packed_convolution(algorithm, kind, inputs, outputs, height, width):
    torch.manual_seed(0)
    conv, x = CONVOLUTIONS[kind](inputs, outputs), torch.randn(2, height, width, inputs)
    packed = Convolution(conv, kind == "doubled", algorithm)
    assert packed.algorithm == (algorithm if kind in ("same", "doubled") or algorithm != "winograd" else "library")
    act = (torch.rand(2, inputs) + 0.5, torch.randn(2, inputs))
    expected = by_definition(conv, F.silu(x * act[0][:, None, None] + act[1][:, None, None]), kind)
    residual = torch.randn(expected.shape)
    found = packed(x, act, residual)
    assert found.values.shape == expected.shape
    assert (found.values - expected - residual).norm() < 8e-3 * (expected + residual).norm()
    torch.testing.assert_close(found.sums, Map.of(found.values).sums, rtol=1e-4, atol=1e-3)
    alone = packed(x[1:].contiguous(), (act[0][1:], act[1][1:]), residual[1:].contiguous())
    assert packed.algorithm == "library" or torch.equal(alone.values, found.values[1:])
    assert packed(x, act, residual, out=residual).values.equal(found.values) or packed.algorithm == "library"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@torch.no_grad()
def test_narrow_maps(algorithm):
    torch.manual_seed(0)
    conv, x = CONVOLUTIONS["same"](20, 30), torch.randn(2, 9, 21, 20)
    packed = Convolution(conv, algorithm=algorithm)
    found, narrow = packed(x), packed(x, narrow=True)
    assert torch.equal(narrow.values, found.values.bfloat16()) and torch.equal(narrow.sums, found.sums)
    torch.testing.assert_close(packed(x.bfloat16()).values, packed(x.bfloat16().float()).values)
    residual = torch.randn(2, 9, 21, 30).bfloat16()
    torch.testing.assert_close(
        packed(x, residual=residual, narrow=True).sums, packed(x, residual=residual.float()).sums
    )
    expected = by_definition(conv, x, "same")
    assert (found.values - expected).norm() < 8e-3 * expected.norm()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@torch.no_grad()
def test_swish_of_any_size(algorithm):
    """The activation alone, by a kernel that hands its input on."""
    conv = nn.Conv2d(1, 1, 3, padding=1)
    conv.weight.copy_(torch.eye(9)[4].view(1, 1, 3, 3)), conv.bias.zero_()
    x = torch.cat([torch.linspace(-20, 20, 500), torch.tensor([-1e30, -200.0, -100.0, -0.0, 0.0, 100.0, 200.0, 1e30])])
    packed = Convolution(conv, algorithm=algorithm)
    ones, zeros = torch.ones(len(x), 1), torch.zeros(len(x), 1)
    found = packed(x.view(-1, 1, 1, 1).expand(-1, 5, 5, 1).contiguous(), (ones, zeros))
    torch.testing.assert_close(found.values[:, 2, 2, 0], F.silu(x), rtol=1e-2, atol=1e-6)


@torch.no_grad()
def test_normalization_is_group_norm():
    torch.manual_seed(0)
    norm, x = nn.GroupNorm(3, 12), torch.randn(2, 5, 4, 12) + 3
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    scale, shift = normalization(Map.of(x), norm)
    expected = norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], expected, rtol=1e-5, atol=1e-5)


def test_algorithms():
    conv = CONVOLUTIONS["same"](3, 4)
    assert Convolution(conv).algorithm == algorithms()[0] and algorithms()[-1] == "library"
    with pytest.raises(ValueError, match="tiles, winograd, library, or None, got 'fft'"):
        Convolution(conv, algorithm="fft")


def test_without_compiled_code(monkeypatch):
    monkeypatch.setenv("CHAINRULE_NATIVE", "vectors")
    assert "tiles" not in algorithms()
    monkeypatch.setenv("CHAINRULE_NATIVE", "off")
    assert algorithms() == ["library"]
    with pytest.raises(ValueError, match="convolutions by tiles cannot be had here; there are: library"):
        Convolution(CONVOLUTIONS["same"](3, 4), algorithm="tiles")


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, None])
@pytest.mark.parametrize("name", ["dvae", "rqvae", "vit_vqgan", "vqgan", "vqgan_gumbel", "vqvae", "vqvae2"])
@torch.no_grad()
def test_packed_tokenizers(algorithm, name):
    if algorithm and name not in ("rqvae", "vqgan", "vqgan_gumbel"):
        pytest.skip("only VQGAN's networks choose an algorithm")
    torch.manual_seed(0)
    found = entry("tokenizers", name)
    model = found.model(tiny("tokenizers", name, "tiny").config).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    packed = model.packed("bfloat16", algorithm) if algorithm else model.packed("bfloat16")
    images = torch.randint(0, 256, (2, *model.image_shape), dtype=torch.uint8)
    codes, scaled = model.encode(images), model.scale(images)
    features, others = model.features(scaled), packed.features(scaled)
    if isinstance(features, Tensor):
        features, others = [features], [others]
    for one, other in zip(features, others, strict=True):
        assert other.dtype == torch.float32 and (other - one).norm() < 0.03 * one.norm()
    alone = [packed.encode(image[None]) for image in images]
    assert all(torch.equal(torch.cat(one), grid) for *one, grid in zip(*alone, packed.encode(images), strict=True))
    assert [grid.shape for grid in packed.encode(images)] == [grid.shape for grid in codes]
    assert psnr(packed.decode(codes), model.decode(codes)).min() > 35
    with pytest.raises(ValueError, match="multiples of|only size"):
        packed.encode(images[:, :, :-1])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def test_packed_upscaler():
    torch.manual_seed(0)
    model = Upscaler(UpscalerConfig(num_blocks=2, width=20, expansion=2)).eval()
    nn.init.normal_(model.conv_out.weight, std=0.02)
    images = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    assert model.packed("float32") is model
    assert psnr(model.packed("bfloat16").upscale(images), model.upscale(images)).min() > 45
    with pytest.raises(ValueError, match="float32, bfloat16, got 'int8'"):
        model.packed("int8")


def test_precisions():
    model = entry("tokenizers", "vqgan")
    tokenizer = model.model(tiny("tokenizers", model.name).config)
    assert tokenizer.packed("float32") is tokenizer
    with pytest.raises(ValueError, match="float32, bfloat16, got 'int8'"):
        tokenizer.packed("int8")
    with pytest.raises(ValueError, match="leave it out in float32"):
        tokenizer.packed("float32", "library")
    pixels = entry("tokenizers", "pixels")
    with pytest.raises(ValueError, match="in float32 only"):
        pixels.model(tiny("tokenizers", "pixels").config).packed("bfloat16")
