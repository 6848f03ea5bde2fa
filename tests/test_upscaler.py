"""Parti's refinement to twice the size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import chainrule
from chainrule.data import DataConfig, ImageDataset, load
from chainrule.evaluation import psnr
from chainrule.images import to_pil
from chainrule.recipe import build_recipe, read_recipe
from chainrule.saving.model import tokenizer_hash
from chainrule.strict import parse_yaml
from chainrule.tokenizers.vqvae import VQVAE, VQVAEConfig
from chainrule.training import Hardware, train, train_task
from chainrule.upscaling.upscaler import PRESETS, Upscaler, UpscalerConfig
from chainrule.zoo import load_kind, load_scorer, load_tokenizer, read_card, save
from test_cli import refused, run, tiny

TINY = UpscalerConfig(image_channels=3, num_blocks=2, width=8, expansion=2)


def test_parameters_of_the_paper():
    with torch.device("meta"):
        model = Upscaler(PRESETS["parti"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 14_180_876


def test_it_begins_as_interpolation_and_learns_the_rest():
    torch.manual_seed(0)
    model = Upscaler(TINY)
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
    model = Upscaler(TINY)
    for images in (torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"uint8 \(B, 3, H, W\)"):
            model.upscale(images)
    with pytest.raises(ValueError, match="width must be at least 1"):
        UpscalerConfig(width=0)


# ---------------------------------------------------------------- training


RECIPE = """
data: {source: shapes, size: 32, channels: 3, split: "test[:64]"}
tokenizer: {path: PATH}
upscaler: {num_blocks: 1, width: 8, expansion: 1}
losses: {adversarial: {width: 4, num_layers: 2, start: 0.5}}
training: {steps: 12, batch_size: 8, learning_rate: 2e-3, precision: float32, ema_decay: 0.9, log_every: 4,
           save_every: 5, sample_every: 12, schedule: constant, warmup_steps: 0}
evaluation: {split: "test[:12]", every: 6, batch_size: 5}
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A current folder with a tokenizer of 16x16 and a recipe."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(
        VQVAE(
            VQVAEConfig(
                image_height=16,
                image_width=16,
                image_channels=3,
                width=8,
                residual_width=8,
                num_blocks=1,
                codebook_size=12,
                embedding_dim=4,
            )
        ),
        "tokenizer",
    )
    Path("recipe.yaml").write_text(RECIPE.replace("PATH", "tokenizer"), encoding="utf-8")
    return tmp_path


def test_a_recipe_trains_it_behind_a_tokenizer_and_goes_on_bit_for_bit(here):
    result = train("recipe.yaml", "run", quiet=True)
    model, tokenizer = chainrule.load("run"), chainrule.load("tokenizer")
    images = load(DataConfig("shapes", "test[:12]", size=32)).images
    halved = images.view(12, 3, 16, 2, 16, 2).float().mean((3, 5)).round().to(torch.uint8)
    reduced = tokenizer.decode(tokenizer.encode(halved))
    plain = Upscaler(model.config)  # which begins as bicubic interpolation
    for name, upscale in (("psnr", model.upscale), ("psnr_bicubic", plain.upscale)):
        assert result.metrics[name] == pytest.approx(psnr(images, upscale(reduced)).mean().item())
    assert result.metrics["psnr"] != result.metrics["psnr_bicubic"]
    assert Path("run/evaluation.csv").read_text().startswith("step,psnr,psnr_bicubic\n")
    assert Image.open("run/samples/step-00000012.png").size == (6 * 33 + 1, 6 * 33 + 1)
    card = read_card("run")
    assert card["steps"] == 12 and card["recipe"]["upscaler"]["width"] == 8
    assert card["recipe"]["tokenizer"] == {"path": "tokenizer", "hash": tokenizer_hash(tokenizer)}

    for steps, start in ((7, 6 / 7), (12, 0.5)):  # the adversary begins after the same step
        recipe = read_recipe("recipe.yaml", [f"training.steps={steps}", f"losses.adversarial.start={start}"])
        Path("again").mkdir(exist_ok=True)
        fabric = Hardware("cpu").fabric()
        fabric.launch()
        train_task(recipe.build()[0], recipe.training, Path("again"), 6, fabric, quiet=True)
    one, two = (torch.load(f"{run}/checkpoints/step-00000012.pt", weights_only=True) for run in ("run", "again"))
    for first, second in (
        (one["learner"]["module"], two["learner"]["module"]), (one["average"]["module"], two["average"]["module"]),
        (one["adversary"]["module"], two["adversary"]["module"]),
    ):  # fmt: skip
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_a_tokenizer_the_halved_image_is_doubled():
    recipe = parse_yaml(RECIPE, "r") | {"losses": {}}
    del recipe["tokenizer"]
    task, full = build_recipe(recipe, "r").build()
    plain = full.plain()
    assert "tokenizer" not in plain and build_recipe(plain, "r").build()[1].plain() == plain
    images = torch.tensor([10, 20, 30, 41, 255, 255, 0, 0], dtype=torch.uint8).view(1, 1, 4, 2)
    assert task.reduce(images).flatten().tolist() == [25, 128]
    task.evaluation.images[:] = 77  # what interpolation leaves as it is
    with torch.no_grad():
        assert task.evaluate(task.model.eval(), True) == {"psnr": 100.0, "psnr_bicubic": 100.0}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("tokenizer={name: vqvae}", "must be trained before"),
        ("data.size=25", "25x25 cannot be halved"),
        ("data.size=36", "the tokenizer is given the data at half its size: .*multiples of 4"),
        ("upscaler.image_channels=1", "'upscaler.image_channels' must be 3, as shapes has it"),
        ("upscaler.widht=1", "unknown key 'widht' in 'upscaler'; did you mean 'width'"),
        ("data.binarize=threshold", "trained on images as they are"),
        ("training.label_dropout=0.1", "'training.label_dropout' belongs to a recipe with 'prior'"),
        ("prior.name=gpt", "leave out 'upscaler' or 'prior'"),
        ("tokenizer.decoder={}", "unknown key 'decoder' in 'tokenizer'"),
    ],
)
def test_mistakes_in_recipes(here, monkeypatch, override, sentence):
    def grey(config, *_):
        return ImageDataset(torch.full((4, 3, config.size, config.size), 128, dtype=torch.uint8), name="shapes")

    monkeypatch.setattr("chainrule.training.tasks.examples.load", grey)
    mapping = parse_yaml(RECIPE.replace("PATH", "tokenizer"), "r")
    section, _, value = override.partition("=")
    outer, _, inner = section.partition(".")
    mapping[outer] = mapping.get(outer, {}) | {inner: parse_yaml(value, "r")} if inner else parse_yaml(value, "r")
    with pytest.raises(ValueError, match=sentence):
        build_recipe(mapping, "r").build()


# ---------------------------------------------------------------- the saved model, and the command line


def untrained(channels: int = 3) -> Upscaler:
    torch.manual_seed(channels)
    model = Upscaler(UpscalerConfig(image_channels=channels, num_blocks=1, width=8, expansion=1))
    torch.nn.init.normal_(model.conv_out.weight, std=0.1)
    return model.eval()


def test_saved_and_loaded(tmp_path):
    model, images = untrained(), torch.randint(0, 256, (2, 3, 5, 6), dtype=torch.uint8)
    save(model, tmp_path / "double", {"note": "random"})
    assert {path.name for path in (tmp_path / "double").iterdir()} == {"config.yaml", "upscaler.safetensors"}
    assert torch.equal(chainrule.load(tmp_path / "double").upscale(images), model.upscale(images))
    assert read_card(tmp_path / "double") == {"note": "random"}
    for other in (load_tokenizer, load_scorer):
        with pytest.raises(
            ValueError, match=r"holds an upscaler, but a .* is needed; chainrule sample .* as --upscaler"
        ):
            other(tmp_path / "double")
    save(
        VQVAE(
            VQVAEConfig(
                image_height=16,
                image_width=16,
                image_channels=3,
                width=8,
                residual_width=8,
                num_blocks=1,
                codebook_size=12,
                embedding_dim=4,
            )
        ),
        tmp_path / "tokenizer",
    )
    with pytest.raises(ValueError, match="holds a tokenizer, but an upscaler is needed"):
        load_kind(tmp_path / "tokenizer", "upscaler")
    (tmp_path / "double" / "upscaler.safetensors").unlink()
    with pytest.raises(ValueError, match=r"upscaler.safetensors is missing or damaged"):
        chainrule.load(tmp_path / "double")


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline, model = tiny(channels=3), untrained()
    pipeline.save("colour")
    tiny().save("grey")
    save(model, "double")
    words = ["sample", "colour", "-n", "2", "--separate"]
    run(*words, "--upscaler", "double", "--out", "twice")
    run(*words, "--upscaler", "double", "--upscaler", "double", "--out", "four")
    images = model.upscale(pipeline.sample(2))
    for folder, expected in (("twice", images), ("four", model.upscale(images))):
        for index, picture in enumerate(to_pil(expected)):
            assert Image.open(f"{folder}/{index}.png").tobytes() == picture.tobytes()
    run("sample", "colour", "-n", "4", "--upscaler", "double", "--scale", "1", "--out", "grid.png", "--watch", "a.gif")
    assert Image.open("grid.png").size == (35, 35) and Image.open("a.gif").n_frames > 1
    to_pil(pipeline.sample(1))[0].save("image.png")
    words = ["complete", "colour", "image.png", "--keep", "top", "-n", "1", "--scale", "1"]
    run(*words, "--upscaler", "double", "--out", "completed.png")
    assert Image.open("completed.png").size == (3 * 17 + 1, 18)
    sentence = refused("sample", "grey", "--upscaler", "double")
    assert "takes images of 3 channels (1 grey, 3 colour), and these have 1" in sentence
    assert "holds a pipeline, but an upscaler is needed" in refused("sample", "grey", "--upscaler", "colour")
    assert "holds an upscaler" in refused("sample", "double")


def test_it_is_listed_and_described(tmp_path, monkeypatch):
    save(untrained(), tmp_path / "double", {"metrics": {"psnr": 30.0, "psnr_bicubic": 29.0}})
    monkeypatch.setattr("chainrule.saving.hub.PRETRAINED", tmp_path)
    (row,) = json.loads(run("models", "--json"))
    count = sum(parameter.numel() for parameter in untrained().parameters())
    assert row["system"] == "upscaler" and row["parameters"] == count
    assert "psnr 30, psnr_bicubic 29" in run("models")
    value = json.loads(run("info", "double", "--json"))
    assert value["kind"] == "upscaler" and value["width"] == 8 and value["parameters"] == count
