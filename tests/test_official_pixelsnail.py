"""The importer of rosinality's PixelSNAIL priors, beside the VQ-VAE-2 that they model."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import chainrule
from chainrule.core import Context
from chainrule.official import convert, import_release, rosinality_vqvae2
from chainrule.official.rosinality_pixelsnail import load_prior
from chainrule.priors._pixelsnail import PixelSNAILSizes
from chainrule.priors.hierarchical_pixelsnail import BottomSizes

FIXTURES = Path(os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[2] / "shared" / "fixtures"))
FOLDER = FIXTURES / "rosinality_vqvae2"
TOP, BOTTOM = "pixelsnail_top_420.pt", "pixelsnail_bottom_420.pt"


@pytest.fixture(scope="module")
def imported():
    if not FOLDER.is_dir():
        pytest.skip("no fixtures of foreign checkpoints; name their folder in CHAINRULE_FIXTURES")
    return rosinality_vqvae2.load(FOLDER), load_file(FOLDER / "io.safetensors")


@torch.no_grad()
def test_logits_are_those_of_the_original(imported):
    result, expected = imported
    codes = expected["in.top"].unsqueeze(-1), expected["in.bottom"].unsqueeze(-1)
    for logits, name in zip(result.prior(codes, Context()), ("out.logits_top", "out.logits_bottom"), strict=True):
        torch.testing.assert_close(logits[:, :, :, 0].permute(0, 3, 1, 2), expected[name], atol=1e-4, rtol=0)


def test_the_priors_say_the_size_of_the_images(imported):
    result, _ = imported
    assert result.tokenizer.image_shape == (3, 32, 32) and result.prior.spec == result.tokenizer.spec
    assert set(result.files) == {"vqvae_560.pt", TOP, BOTTOM}
    assert result.prior.config.top.num_heads == 8 and result.prior.config.bottom.num_heads == 0
    assert not result.prior.training


def test_converted_release_samples_and_scores(imported, tmp_path):
    convert(FOLDER, tmp_path / "model")
    pipeline = chainrule.load(tmp_path / "model")
    images = pipeline.sample(2, seed=3)
    assert images.shape == (2, 3, 32, 32)
    assert pipeline.log_prob(images).isfinite().all()


def test_the_tokenizer_alone_has_no_prior(imported, tmp_path):
    shutil.copy(FOLDER / "vqvae_560.pt", tmp_path)
    assert import_release(tmp_path).prior is None
    assert import_release(FOLDER / "vqvae_560.pt").prior is None


def test_one_level_without_the_other_is_refused(imported, tmp_path):
    for name in ("vqvae_560.pt", TOP):
        shutil.copy(FOLDER / name, tmp_path)
    with pytest.raises(
        ValueError, match=r"one PixelSNAIL prior per level.*top_420.pt; of the bottom level: none"
    ) as error:
        import_release(tmp_path)
    assert "\n" not in str(error.value)
    shutil.copy(FOLDER / BOTTOM, tmp_path)
    shutil.copy(FOLDER / BOTTOM, tmp_path / "pixelsnail_bottom_100.pt")
    with pytest.raises(ValueError, match=r"pixelsnail_bottom_100.pt, pixelsnail_bottom_420.pt"):
        import_release(tmp_path)


def write(path: Path, sizes: PixelSNAILSizes, codes: int, side: int, condition=(), prefix="", **more):
    """A state dict of that code with other sizes; returns its tensors."""
    tensors = {"background": torch.zeros(1, 2, side, side)}

    def convolution(name, *shape, bias=True):
        tensors[f"{name}.weight_v"] = torch.randn(shape)
        tensors[f"{name}.weight_g"] = torch.rand(shape[0], *[1] * (len(shape) - 1))
        if bias:
            tensors[f"{name}.bias"] = torch.randn(shape[0])

    def residual(name, channels, hidden, kernel, wrapped="conv"):
        convolution(f"{name}.conv1.{wrapped}", hidden, channels, kernel, kernel)
        convolution(f"{name}.conv2.{wrapped}", 2 * channels, hidden, kernel, kernel)

    c, k = sizes.width, sizes.kernel_size
    convolution("horizontal.conv.conv", c, codes, k // 2, k)
    convolution("vertical.conv.conv", c, codes, (k + 1) // 2, k // 2)
    for index in range(sizes.num_blocks):
        for number in range(sizes.num_residual):
            name = f"blocks.{index}.resblocks.{number}"
            residual(name, c, sizes.residual_width, k, "conv.conv")
            if condition:
                convolution(f"{name}.condition.conv", 2 * c, condition[0], 1, 1, bias=False)
        if not sizes.num_heads:
            convolution(f"blocks.{index}.out.conv", c, c + 2, 1, 1)
            continue
        residual(f"blocks.{index}.key_resblock", 2 * c + 2, c, 1)
        residual(f"blocks.{index}.query_resblock", c + 2, c, 1)
        residual(f"blocks.{index}.out_resblock", c, c, 1)
        convolution(f"blocks.{index}.out_resblock.aux_conv.conv", c, c // 2, 1, 1)
        convolution(f"blocks.{index}.causal_attention.query", c // 2, c + 2)
        for name in ("key", "value"):
            convolution(f"blocks.{index}.causal_attention.{name}", c // 2, 2 * c + 2)
    for number in range(sizes.num_output_residual):
        residual(f"out.{number}", c, sizes.residual_width, 1)
    convolution(f"out.{sizes.num_output_residual + 1}.conv", codes, c, 1, 1)
    if condition:
        convolution("cond_resnet.blocks.0.conv", condition[0], codes, 3, 3)
        for number in range(condition[1]):
            residual(f"cond_resnet.blocks.{number + 1}", condition[0], condition[0], 3)
    tensors |= more
    torch.save({"model": {prefix + name: value for name, value in tensors.items()}}, path)
    return tensors


SMALL = (
    PixelSNAILSizes(
        width=16, residual_width=6, num_blocks=2, num_residual=3, kernel_size=3, num_heads=8, num_output_residual=2
    ),
    BottomSizes(width=10, residual_width=4, num_blocks=3, num_residual=1, kernel_size=7),
)


@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_sizes_follow_from_the_tensors(tmp_path, prefix):
    top = write(tmp_path / "top.pt", SMALL[0], 9, 2, prefix=prefix)
    bottom = write(tmp_path / "bottom.pt", SMALL[1], 9, 4, (5, 3), prefix)
    prior = load_prior(tmp_path / "top.pt", tmp_path / "bottom.pt")
    config = prior.config
    assert (config.top, config.bottom) == SMALL
    assert (config.condition_width, config.num_condition_residual) == (5, 3)
    assert prior.spec.to_dict() == [[2, 2, 1, 9], [4, 4, 1, 9]]
    theirs = sum(value.numel() for name, value in (*top.items(), *bottom.items()) if name != "background")
    assert sum(parameter.numel() for parameter in prior.parameters()) == theirs
    attention = prior.levels[0].blocks[1].attention
    torch.testing.assert_close(attention.query.direction[:, :, 0, 0], top["blocks.1.causal_attention.query.weight_v"])
    last = prior.conditioners[0].residual[2].second
    torch.testing.assert_close(last.magnitude, bottom["cond_resnet.blocks.3.conv2.conv.weight_g"].flatten())


def test_other_architectures_are_refused_in_one_sentence(tmp_path):
    top, bottom = tmp_path / "top.pt", tmp_path / "bottom.pt"
    write(top, SMALL[0], 9, 2)
    write(bottom, SMALL[1], 9, 8, (5, 3))
    with pytest.raises(ValueError, match=r"bottom.pt should be twice that of top.pt.*8x8 and 2x2"):
        load_prior(top, bottom)
    write(bottom, SMALL[1], 9, 4, (5, 3), extra=torch.zeros(1))
    with pytest.raises(ValueError, match=r"bottom.pt does not fit.*extra"):
        load_prior(top, bottom)
    write(bottom, SMALL[1], 9, 4)
    with pytest.raises(ValueError, match=r"bottom.pt does not hold.*cond_resnet"):
        load_prior(top, bottom)
    torch.save({"model": {"horizontal.conv.conv.weight_v": torch.zeros(4, 9, 2, 5)}}, top)
    with pytest.raises(ValueError, match=r"top.pt does not hold a PixelSNAIL") as error:
        load_prior(top, bottom)
    assert "\n" not in str(error.value)
