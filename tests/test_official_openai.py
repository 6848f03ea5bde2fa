"""The importer of OpenAI's discrete VAE."""

import hashlib
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from chainrule.layers.logit_laplace import logit_laplace_image, map_pixels
from chainrule.official import import_release, openai_dvae

FIXTURES = Path(os.environ.get("CHAINRULE_FIXTURES", Path(__file__).resolve().parents[2] / "shared" / "fixtures"))
FOLDER = FIXTURES / "openai_dvae"


@pytest.fixture(scope="module")
def imported():
    if not FOLDER.is_dir():
        pytest.skip("no fixtures of foreign checkpoints; name their folder in CHAINRULE_FIXTURES")
    return openai_dvae.load(FOLDER), load_file(FOLDER / "io.safetensors")


def test_the_files_are_recognised_and_their_origin_named(imported):
    result, _ = imported
    assert openai_dvae.matches(FOLDER) and openai_dvae.matches(FOLDER / "decoder.pkl")
    assert not openai_dvae.matches(FOLDER / "README.md") and not openai_dvae.matches(FOLDER.parent)
    assert "OpenAI" in result.origin and "MIT" in result.licence and not result.non_commercial
    names = ("encoder.pkl", "decoder.pkl")
    assert result.files == {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in names}


@torch.no_grad()
def test_codes_and_images_are_those_of_the_original(imported):
    result, expected = imported
    model, pixels = result.tokenizer, expected["in.image"]

    def close(actual, name):
        torch.testing.assert_close(actual, expected[name], atol=1e-4, rtol=0)

    close(map_pixels(pixels), "out.mapped")
    logits = model.features(pixels * 2 - 1)
    close(logits, "out.logits")
    assert torch.equal(logits.argmax(1), expected["out.codes"])
    for codes, stats, image in (
        (logits.argmax(1), "out.decoded_stats", "out.reconstruction"),
        (expected["in.codes"], "out.codes_stats", "out.codes_image"),
    ):
        location, log_scale = model.distribution(model.embed(codes.unsqueeze(-1)))
        close(torch.cat([location, log_scale], 1), stats)
        close(logit_laplace_image(location).clamp(0, 1), image)
        levels = expected[image] * 255
        assert (model.decode((codes.unsqueeze(-1),)) - levels).abs().max() <= 0.5 + 1e-2
    images = (pixels * 255).round().to(torch.uint8)
    torch.testing.assert_close(images / 255, pixels)
    assert torch.equal(model.encode(images)[0][..., 0], expected["out.codes"])


# ---------------------------------------------------------------- files of other sizes


def fake_package(monkeypatch) -> dict[str, type]:
    """Modules named as those of the package, with nothing in them but what a pickle keeps."""
    classes = {}
    for module, names in {
        "encoder": ["Encoder", "EncoderBlock"], "decoder": ["Decoder", "DecoderBlock"], "utils": ["Conv2d"],
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, f"dall_e.{module}", types.ModuleType(f"dall_e.{module}"))
        for name in names:
            classes[name] = type(name, (nn.Module,), {"__module__": f"dall_e.{module}"})
            setattr(sys.modules[f"dall_e.{module}"], name, classes[name])
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    return classes


def write(folder: Path, classes, *, channels=1, hidden=8, blocks=1, groups=4, initial=6, codes=10, gain=None, zip=True):
    """encoder.pkl and decoder.pkl of those sizes; returns both modules."""
    gain = (blocks * groups) ** -2 if gain is None else gain

    def convolution(n_in, n_out, size):
        module = classes["Conv2d"]()
        module.w = nn.Parameter(torch.randn(n_out, n_in, size, size))
        module.b = nn.Parameter(torch.randn(n_out))
        module.kw = size
        return module

    def block(kind, n_in, n_out, sizes):
        module = classes[kind]()
        module.post_gain = gain
        module.id_path = convolution(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        widths = [n_in, *[n_out // 4] * 3, n_out]
        module.res_path = nn.Sequential()
        for index, size in enumerate(sizes, 1):
            module.res_path.add_module(f"relu_{index}", nn.ReLU())
            module.res_path.add_module(f"conv_{index}", convolution(widths[index - 1], widths[index], size))
        return module

    modules = []
    for part, sizes in (("Encoder", (3, 3, 3, 1)), ("Decoder", (1, 3, 3, 3))):
        widths = [hidden * 2**group for group in range(groups)]
        first, last = (channels, codes) if part == "Encoder" else (codes, 2 * channels)
        widths = widths if part == "Encoder" else widths[::-1]
        start = hidden if part == "Encoder" else initial
        module = classes[part]()
        module.blocks = nn.Sequential()
        module.blocks.add_module("input", convolution(first, start, 7 if part == "Encoder" else 1))
        before = start
        for group, width in enumerate(widths, 1):
            inside = nn.Sequential()
            for index in range(1, blocks + 1):
                inside.add_module(f"block_{index}", block(f"{part}Block", before, width, sizes))
                before = width
            module.blocks.add_module(f"group_{group}", inside)
        output = nn.Sequential()
        output.add_module("relu", nn.ReLU())
        output.add_module("conv", convolution(before, last, 1))
        module.blocks.add_module("output", output)
        torch.save(module, folder / f"{part.lower()}.pkl", _use_new_zipfile_serialization=zip)
        modules.append(module)
    return modules


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize(
    "sizes",
    [{"blocks": 3, "channels": 1, "hidden": 10}, {"groups": 3, "channels": 3, "zip": False}],
    ids=["grey", "three groups, older container"],
)
def test_sizes_follow_from_the_tensors(tmp_path, monkeypatch, sizes):
    modules = write(tmp_path, fake_package(monkeypatch), **sizes)
    for name in ("dall_e", "dall_e.encoder", "dall_e.decoder", "dall_e.utils"):
        monkeypatch.delitem(sys.modules, name)
    model = import_release(tmp_path).tokenizer
    assert not any(name.startswith("dall_e") for name in sys.modules)
    config = model.config
    assert (config.num_groups, config.blocks_per_group) == (sizes.get("groups", 4), sizes.get("blocks", 1))
    assert (config.codebook_size, config.initial_width, config.image_channels) == (10, 6, sizes["channels"])
    counts = [sum(p.numel() for p in module.parameters()) for module in (*modules, model)]
    assert counts[0] + counts[1] == counts[2]
    torch.testing.assert_close(model.encoder.groups[1][0].skip.weight, modules[0].blocks.group_2.block_1.id_path.w)
    images = torch.randint(0, 256, (1, config.image_channels, 16, 24), dtype=torch.uint8)
    assert model.decode(model.encode(images)).shape == images.shape


def test_what_is_missing_or_different_is_said_in_one_sentence(tmp_path, monkeypatch):
    classes = fake_package(monkeypatch)
    write(tmp_path, classes, gain=0.5)
    with pytest.raises(ValueError, match=r"has a gain of 0\.5"):
        openai_dvae.load(tmp_path)
    modules = write(tmp_path, classes)
    del modules[0].blocks.group_3
    torch.save(modules[0], tmp_path / "encoder.pkl")
    with pytest.raises(ValueError, match=r"does not hold a discrete VAE of DALL-E.*encoder.groups.2") as error:
        openai_dvae.load(tmp_path)
    assert "\n" not in str(error.value)
    torch.save(modules[1], tmp_path / "encoder.pkl")
    with pytest.raises(ValueError, match=r"should hold the pickled encoder .* holds dall_e.decoder.Decoder"):
        openai_dvae.load(tmp_path)
    (tmp_path / "encoder.pkl").unlink()
    assert openai_dvae.matches(tmp_path)
    with pytest.raises(ValueError, match=r"encoder.pkl is missing"):
        openai_dvae.load(tmp_path / "decoder.pkl")
