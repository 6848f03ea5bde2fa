"""The commands for tokenizers: reconstruct, encode, decode, convert, evaluate, info."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import chainrule
from chainrule.core import entry
from chainrule.data import ImageDataset
from chainrule.evaluation import psnr, ssim
from chainrule.images import to_pil
from chainrule.official import Imported, importers
from chainrule.pictures import _different
from chainrule.saving.code_file import _pack, _unpack
from chainrule.tokenizers.pixels import PixelsConfig
from chainrule.zoo import load_tokenizer, save
from sizes import tiny
from test_cli import refused, run
from test_reconstruction import Brightness, noise

SIDE = 16
CARD = {"recipe": {"data": {"source": "pictures", "binarize": "none"}, "evaluation": {"split": "test"}}}


VQVAE2 = {
    "image_height": 16, "image_width": 16, "downsampling": 2, "width": 8, "residual_width": 4, "num_blocks": 1,
    "codebook_size": 9, "embedding_dim": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, seed in (("levels", 1), ("other", 2)):
        torch.manual_seed(seed)
        model = entry("tokenizers", "vqvae2")
        save(model.model(model.config(**VQVAE2)), folder / name, CARD)
    pixels = entry("tokenizers", "pixels")
    save(
        pixels.model(pixels.config(image_height=16, image_width=16, levels=5, image_channels=3)),
        folder / "pixels",
        CARD,
    )
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models) -> Path:
    """An empty current folder with links to the tokenizers and images of three sizes; features that need no file."""
    monkeypatch.chdir(tmp_path)
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    for name, height, width in (("a", 16, 16), ("b", 16, 16), ("wide", 16, 24), ("odd", 17, 16)):
        to_pil(noise(1, 3, height, width, seed=ord(name[0])))[0].save(f"{name}.png")
    monkeypatch.setattr("chainrule.scorers.features.load_features", lambda name: Brightness(0))
    monkeypatch.setattr("chainrule.scorers.features.load_features", lambda name: Brightness(0))
    return tmp_path


# ---------------------------------------------------------------- reconstruct


def test_reconstruct(here):
    value = json.loads(run("reconstruct", "levels", "a.png", "wide.png", "--json", "--scale", "1"))
    tokenizer, original = load_tokenizer("levels"), noise(1, 3, 16, 16, seed=ord("a"))
    decoded = tokenizer.decode(tokenizer.encode(original))
    assert value["images"][0]["psnr"] == pytest.approx(psnr(original, decoded).item())
    assert value["images"][0]["ssim"] == pytest.approx(ssim(original, decoded).item())
    assert value["images"][0]["perceptual"] > 0 and value["features"] == "brightness" and value["greatest_error"] > 0
    picture = Image.open("reconstructions.png")
    assert picture.size == (3 * 25 + 1, 2 * 17 + 1)  # each framed to the largest, 24 x 16
    assert picture.crop((1, 1, 17, 17)).tobytes() == to_pil(original)[0].tobytes()
    assert picture.crop((26, 1, 42, 17)).tobytes() == to_pil(decoded)[0].tobytes()
    text = run("reconstruct", "levels", "a.png", "b.png", "--features", "none", "--out", "two.png")
    assert "mean" in text and "perceptual" not in text and "two.png: image, reconstruction, difference" in text


def test_without_weights_the_perceptual_distance_is_left_out(here, monkeypatch):
    def missing(name):
        raise ValueError("the package is not installed")

    monkeypatch.setattr("chainrule.scorers.features.load_features", missing)
    value = json.loads(run("reconstruct", "levels", "a.png", "--json"))
    assert value["features"] is None and set(value["images"][0]) == {"image", "psnr", "ssim"}
    words = ["reconstruct", "levels", "a.png", "--out", "b2.png", "--features", "vgg16_lpips"]
    assert "the package is not installed" in refused(*words)


def test_mistakes_in_reconstructing(here):
    sentence = refused("reconstruct", "levels", "odd.png")
    assert "odd.png" in sentence and "add --resize to resize and crop it to 16x16" in sentence
    run("reconstruct", "levels", "odd.png", "--resize")
    assert "a.png exists" in refused("reconstruct", "levels", "b.png", "--out", "a.png")
    assert "no image file at none.png" in refused("reconstruct", "levels", "none.png")


# ---------------------------------------------------------------- encode, decode


def test_encode_and_decode(here):
    images = torch.cat([noise(1, 3, 16, 16, seed=ord(name)) for name in "aba"])
    value = json.loads(run("encode", "levels", "a.png", "b.png", "a.png", "--out", "codes.safetensors", "--json"))
    # 9 values need 4 bits: 2x2 and 4x4 or as the levels are, in three images
    tensors = load_file("codes.safetensors")
    codes = load_tokenizer("levels").encode(images)
    assert value["images"] == 3 and value["grids"] == [list(grid.shape[1:]) for grid in codes]
    for index, grid in enumerate(codes):
        assert tensors[f"grid_{index}"].dtype == torch.uint8
        assert tensors[f"grid_{index}"].numel() == -(-grid.numel() * 4 // 8)
        assert torch.equal(_unpack(tensors[f"grid_{index}"], tuple(grid.shape), 9), grid)
    expected = load_tokenizer("levels").decode(codes)
    run("decode", "levels", "codes.safetensors", "--out", "decoded")
    assert sorted(path.name for path in Path("decoded").iterdir()) == ["a-2.png", "a.png", "b.png"]
    for name, image in zip(("a", "b", "a-2"), to_pil(expected), strict=True):
        assert Image.open(f"decoded/{name}.png").tobytes() == image.tobytes()
    run("decode", "levels", "codes.safetensors", "--out", "all.png")
    run("encode", "levels", "wide.png", "--out", "wide.safetensors")
    run("decode", "levels", "wide.safetensors", "--out", "decoded.png")
    assert Image.open("decoded.png").size == (24, 16)


def test_no_picture_replaces_another(here):
    """Files of one name from several folders, also where a disk takes capital and small letters for the same."""
    names = ["x/a.png", "y/a.png", "a-2.png", "z/A.jpg", "a.jpg", "b.png", "x/é.png", "y/e\u0301.png"]
    assert _different([Path(name).stem for name in names]) == [
        "a", "a-2", "a-2-2", "A-3", "a-4", "b", "é", "e\u0301-2",
    ]  # fmt: skip
    for folder in ("x", "y"):
        Path(folder).mkdir()
        shutil.copy("a.png", f"{folder}/a.png")
    shutil.copy("b.png", "a-2.png")
    run("encode", "levels", "x/a.png", "y/a.png", "a-2.png", "--out", "c.safetensors")
    run("decode", "levels", "c.safetensors", "--out", "decoded")
    assert sorted(path.name for path in Path("decoded").iterdir()) == ["a-2-2.png", "a-2.png", "a.png"]
    first, second, third = (Path(f"decoded/{name}.png").read_bytes() for name in ("a", "a-2", "a-2-2"))
    assert first == second != third


def test_encode_and_decode_in_bfloat16(here):
    vqgan = entry("tokenizers", "vqgan")
    config = replace(tiny("tokenizers", "vqgan").config, image_height=16, image_width=16, image_channels=3)
    torch.manual_seed(0)
    save(vqgan.model(config), here / "vqgan")
    for precision in ("float32", "bfloat16"):
        run("encode", "vqgan", "a.png", "--out", f"{precision}.safetensors", "--precision", precision)
    run("decode", "vqgan", "float32.safetensors", "--out", "a2.png", "--precision", "bfloat16")
    run("reconstruct", "vqgan", "a.png", "--precision", "bfloat16")
    pixels = {"image_height": 16, "image_width": 16, "image_channels": 3, "levels": 4}
    save(entry("tokenizers", "pixels").model(PixelsConfig(**pixels)), here / "pixels")
    assert "encodes and decodes in float32 only" in refused(
        "encode", "pixels", "a.png", "--out", "c.safetensors", "--precision", "bfloat16"
    )
    run("encode", "levels", "a.png", "--out", "c.safetensors", "--precision", "bfloat16")


@pytest.mark.parametrize("size", [2, 3, 256, 257, 16384])
def test_codes_are_packed_in_as_few_bits_as_they_need(size):
    codes = torch.randint(0, size, (3, 2, 5, 2))
    codes[0, 0, 0, 0] = size - 1
    packed = _pack(codes, size)
    assert packed.numel() == -(-codes.numel() * (size - 1).bit_length() // 8)
    assert torch.equal(_unpack(packed, tuple(codes.shape), size), codes)


def test_mistakes_in_coding(here):
    run("encode", "levels", "a.png", "--out", "a.safetensors")
    assert "holds codes of another tokenizer" in refused("decode", "other", "a.safetensors", "--out", "x.png")
    data = Path("a.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(data[:-3])
    assert "cut.safetensors is damaged" in refused("decode", "levels", "cut.safetensors", "--out", "x.png")
    Path("wrong.safetensors").write_bytes(data.replace(b"[[1, ", b"[[7, "))
    assert "do not fit its metadata" in refused("decode", "levels", "wrong.safetensors", "--out", "x.png")
    assert "no file of codes at none" in refused("decode", "levels", "none", "--out", "x.png")
    weights = "levels/tokenizer.safetensors"
    assert "chainrule encode writes one" in refused("decode", "levels", weights, "--out", "x.png")
    assert "must be a .safetensors file" in refused("encode", "levels", "a.png", "--out", "a.bin")
    assert "a.safetensors exists" in refused("encode", "levels", "a.png", "--out", "a.safetensors")
    assert "the images differ in size" in refused("encode", "levels", "a.png", "wide.png", "--out", "c.safetensors")
    assert "--scale would be ignored" in refused("decode", "levels", "a.safetensors", "--out", "f", "--scale", "2")
    assert not Path("x.png").exists() and not Path("c.safetensors").exists()


# ---------------------------------------------------------------- convert


def test_convert_says_origin_and_licence_aloud(here, monkeypatch):
    def convert(source, dest):
        assert (source, dest) == (Path("release"), Path("model"))
        return Imported(load_tokenizer("levels"), "someone's VQ-VAE-2", "CC BY-NC 4.0", True, {"vqvae.pt": "ab" * 32})

    monkeypatch.setattr("chainrule.official.convert", convert)
    text = run("convert", "release", "model")
    assert "someone's VQ-VAE-2" in text and "CC BY-NC 4.0" in text and "NON-COMMERCIAL" in text and "ab" * 32 in text
    value = json.loads(run("convert", "release", "model", "--json"))
    assert value["non_commercial"] is True and value["sha256"] == {"vqvae.pt": "ab" * 32}
    assert value["tokenizer"] == "vqvae2" and "prior" not in value


def test_the_help_of_convert_lists_every_release():
    text = run("convert", "--help")
    for importer in importers().values():
        for repository in re.findall(r"github.com/([\w-]+/[\w-]+)", inspect.getsource(importer)):
            assert repository in text


def test_mistakes_in_converting(here):
    assert "nothing does not exist" in refused("convert", "nothing", "model")
    assert "is none of the releases" in refused("convert", "levels", "model")
    assert "levels exists; add --force" in refused("convert", "nothing", "levels")
    for dest in ("levels", "levels/inside", "levels/.."):  # a release is not replaced, whatever is forced
        words = refused("convert", "levels", dest, "--force")
        assert words.endswith(f"{dest} would be written where the release levels is; choose a folder outside of it")
    Path("checkpoint.pt").write_bytes(b"")
    assert "would be written where" in refused("convert", "checkpoint.pt", ".", "--force")
    Path("project").mkdir()
    Path("project/config.yaml").write_text("model: {base_learning_rate: 1}")
    for force in ([], ["--force"]):
        words = refused("convert", "checkpoint.pt", "project", *force)
        assert words.endswith("project exists and is no saved model; choose another folder")


# ---------------------------------------------------------------- evaluate, info, models


@pytest.fixture
def pictures(monkeypatch) -> list:
    asked = []

    def load(config):
        asked.append(config)
        images = noise(9, 3, *(config.height_width or (16, 16)), seed=len(config.source))
        return ImageDataset(images, name=config.source)

    monkeypatch.setattr("chainrule.evaluation.measure.load", load)
    return asked


def test_evaluate_a_tokenizer_and_repeat(here, pictures):
    text = run("evaluate", "levels")
    assert "dB PSNR" in text and "Fréchet distance, brightness features" in text and "% used" in text
    record = json.loads(Path("levels-test.json").read_text())
    figures = record["tokenizer"]
    assert figures["num_images"] == 9 and [use["grid"] for use in figures["codebooks"]] == [0, 1]
    assert record["features"] == "efficientnet_lite0" and record["data"]["binarize"] == "none"
    run(*shlex.split(record["command"])[1:], "--record", "again.json")
    again = json.loads(Path("again.json").read_text())
    for key in ("psnr", "ssim", "perceptual", "frechet", "codebooks", "bits_per_image"):
        assert again["tokenizer"][key] == figures[key], key
    assert again["command"] == record["command"]
    assert "agrees with levels-test.json" in run("evaluate", "--from", "levels-test.json")
    differs = run("evaluate", "other", "--from", "levels-test.json", code=1)
    assert "the weights are others" in differs
    figures["psnr"]["value"] *= 1.01
    Path("wrong.json").write_text(json.dumps(record))
    answer = json.loads(run("evaluate", "--from", "wrong.json", "--json", code=1))
    assert answer["agrees"] is False and "the PSNR differs by -" in answer["differences"][0]


def test_evaluate_other_sizes_and_without_features(here, pictures):
    words = ["evaluate", "levels", "--features", "none", "--limit", "4", "--json"]
    value = json.loads(run(*words, "--size", "16x32", "--record", "r.json"))
    small = json.loads(run(*words, "--record", "s.json"))
    assert value["tokenizer"]["bits_per_image"] == 2 * small["tokenizer"]["bits_per_image"]
    assert value["tokenizer"]["frechet"] is None and value["tokenizer"]["num_images"] == 4
    assert "agrees" in run("evaluate", "--from", "r.json")
    pixels = json.loads(run("evaluate", "pixels", "--json"))
    assert pixels["dtype"] == "none" and [use["depth"] for use in pixels["tokenizer"]["codebooks"]] == [None, 0, 1, 2]


def test_mistakes_in_evaluating_a_tokenizer(here, pictures):
    assert "binarize would be ignored" in refused("evaluate", "levels", "--binarize", "sample")
    assert "seeds would be ignored" in refused("evaluate", "levels", "--seeds", "2")
    assert "samples would be ignored" in refused("evaluate", "levels", "--samples", "9")
    assert "add --size 16x16" in refused("evaluate", "levels", "--size", "17")
    assert not list(here.glob("*.json"))


def test_info_and_models_of_a_tokenizer_alone(here, models, monkeypatch):
    value = json.loads(run("info", "levels", "--json"))
    assert value["tokenizer"]["name"] == "vqvae2" and "prior" not in value and "num_classes" not in value
    assert len(value["codes"]) == 2 and value["card"] == CARD and len(value["tokenizer_hash"]) == 64
    assert "vqvae2" in run("info", "levels")
    monkeypatch.setattr("chainrule.saving.hub.PRETRAINED", models)
    rows = {row["name"]: row for row in json.loads(run("models", "--json"))}
    assert rows["levels"]["system"] == "vqvae2" and rows["pixels"]["parameters"] == 0
    assert "tokenizer without a prior" in refused("sample", "levels")
    assert chainrule.models() == ["levels", "other", "pixels"]
