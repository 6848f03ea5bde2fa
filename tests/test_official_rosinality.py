"""The importer of rosinality's VQ-VAE-2."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chainrule.official import import_release, rosinality_vqvae2

FIXTURES = Path(os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[2] / "shared" / "fixtures"))
FOLDER = FIXTURES / "rosinality_vqvae2"


@pytest.fixture(scope="module")
def imported():
    if not FOLDER.is_dir():
        pytest.skip("no fixtures of foreign checkpoints; name their folder in CHAINRULE_FIXTURES")
    return rosinality_vqvae2.load(FOLDER / "vqvae_560.pt"), load_file(FOLDER / "io.safetensors")


def test_the_file_is_recognised_and_its_origin_named(imported):
    result, _ = imported
    assert rosinality_vqvae2.matches(FOLDER) and rosinality_vqvae2.matches(FOLDER / "vqvae_560.pt")
    assert not rosinality_vqvae2.matches(FOLDER / "pixelsnail_top_420.pt") and not rosinality_vqvae2.matches(
        FOLDER / "README.md"
    )
    assert "rosinality" in result.origin and "MIT" in result.licence and not result.non_commercial
    assert result.files == {"vqvae_560.pt": hashlib.sha256((FOLDER / "vqvae_560.pt").read_bytes()).hexdigest()}


@torch.no_grad()
def test_codes_and_images_are_those_of_the_original(imported):
    result, expected = imported
    model = result.tokenizer
    images = ((expected["in.image"] + 1) * 127.5).round().to(torch.uint8)
    top, bottom = model.encode(images)
    assert torch.equal(top[..., 0], expected["out.codes_top"])
    assert torch.equal(bottom[..., 0], expected["out.codes_bottom"])
    pixels = model.decode_features(model.embed((top, bottom)))
    torch.testing.assert_close(pixels, expected["out.reconstruction"], atol=1e-4, rtol=0)
    given = expected["in.top"].unsqueeze(-1), expected["in.bottom"].unsqueeze(-1)
    pixels = model.decode_features(model.embed(given))
    torch.testing.assert_close(pixels, expected["out.decoded"], atol=1e-4, rtol=0)
    levels = (pixels.clamp(-1, 1) + 1) * 127.5
    assert (model.decode(given) - levels).abs().max() <= 0.5 + 1e-3
    assert model.image_shape == (3, 256, 256)


def write(path: Path, channels: int, hidden: int, blocks: int, residual: int, dim: int, codes: int, prefix: str = ""):
    """A state dict of that code with other sizes; returns its tensors."""
    half, tensors = hidden // 2, {}

    def convolution(name, *shape, transposed=False):
        tensors[f"{name}.weight"] = torch.randn(shape)
        tensors[f"{name}.bias"] = torch.randn(shape[1] if transposed else shape[0])

    def residuals(name, first):
        for index in range(first, first + blocks):
            convolution(f"{name}.blocks.{index}.conv.1", residual, hidden, 3, 3)
            convolution(f"{name}.blocks.{index}.conv.3", hidden, residual, 1, 1)

    convolution("enc_b.blocks.0", half, channels, 4, 4)
    convolution("enc_b.blocks.2", hidden, half, 4, 4)
    convolution("enc_b.blocks.4", hidden, hidden, 3, 3)
    residuals("enc_b", 5)
    convolution("enc_t.blocks.0", half, hidden, 4, 4)
    convolution("enc_t.blocks.2", hidden, half, 3, 3)
    residuals("enc_t", 3)
    convolution("quantize_conv_t", dim, hidden, 1, 1)
    convolution("quantize_conv_b", dim, dim + hidden, 1, 1)
    for level in "tb":
        tensors[f"quantize_{level}.embed"] = torch.randn(dim, codes)
        tensors[f"quantize_{level}.cluster_size"] = torch.rand(codes)
        tensors[f"quantize_{level}.embed_avg"] = torch.randn(dim, codes)
    for name, inputs in (("dec_t", dim), ("dec", 2 * dim)):
        convolution(f"{name}.blocks.0", hidden, inputs, 3, 3)
        residuals(name, 1)
    convolution(f"dec_t.blocks.{blocks + 2}", hidden, dim, 4, 4, transposed=True)
    convolution("upsample_t", dim, dim, 4, 4, transposed=True)
    convolution(f"dec.blocks.{blocks + 2}", hidden, half, 4, 4, transposed=True)
    convolution(f"dec.blocks.{blocks + 4}", half, channels, 4, 4, transposed=True)
    torch.save({prefix + name: value for name, value in tensors.items()}, path)
    return tensors


@pytest.mark.parametrize(("blocks", "channels", "prefix"), [(1, 1, ""), (3, 3, "module."), (0, 3, "")])
def test_sizes_follow_from_the_tensors(tmp_path, blocks, channels, prefix):
    path = tmp_path / "some_name.pt"
    tensors = write(path, channels, 6, blocks, 5, 7, 9, prefix)
    result = import_release(tmp_path)
    model, config = result.tokenizer, result.tokenizer.config
    assert (config.image_channels, config.num_blocks, config.width) == (channels, blocks, 6)
    assert (config.embedding_dim, config.codebook_size) == (7, 9)
    ours = sum(value.numel() for value in model.parameters())
    assert ours == sum(
        value.numel() for name, value in tensors.items() if not name.startswith(("quantize_t", "quantize_b"))
    )
    codebook = model.quantizers[1].codebook
    torch.testing.assert_close(codebook.weight, tensors["quantize_b.embed"].T)
    torch.testing.assert_close(codebook.usage, tensors["quantize_b.cluster_size"])
    images = torch.randint(0, 256, (1, channels, 16, 24), dtype=torch.uint8)
    assert model.decode(model.encode(images)).shape == images.shape


def test_other_architectures_are_refused_in_one_sentence(tmp_path):
    tensors = write(tmp_path / "one.pt", 3, 6, 1, 5, 7, 9)
    del tensors["dec.blocks.0.weight"]
    torch.save(tensors, tmp_path / "one.pt")
    with pytest.raises(ValueError, match=r"one.pt does not hold a two-level VQ-VAE-2.*decoders.1.mix.weight") as error:
        rosinality_vqvae2.load(tmp_path / "one.pt")
    assert "\n" not in str(error.value)
    tensors["extra.weight"] = torch.zeros(1)
    write(tmp_path / "two.pt", 3, 6, 1, 5, 7, 9)
    with pytest.raises(ValueError, match=r"there are: one.pt, two.pt; name the file"):
        rosinality_vqvae2.load(tmp_path)
