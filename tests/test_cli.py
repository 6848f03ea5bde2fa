"""The command line: what it writes and prints, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import chainrule
from chainrule import Pipeline
from chainrule.cli import app
from chainrule.data import ImageDataset, binarize
from chainrule.evaluation import frechet_distance, measure, precision_recall
from chainrule.images import grid, to_pil
from chainrule.priors.pixelcnn import PixelCNN, PixelCNNConfig
from chainrule.recipe import recipe_names
from chainrule.tokenizers.pixels import Pixels, PixelsConfig
from chainrule.tokenizers.vqvae import VQVAE, VQVAEConfig
from chainrule.training import TrainResult
from test_reconstruction import Brightness

SIDE = 8
CARD = {
    "recipe": {"data": {"source": "digits", "binarize": "sample"}, "evaluation": {"split": "test"}},
    "figures": {"nats": {"value": 81.234, "standard_error": 0.25}},
}


def tiny(classes: int = 0, channels: int = 1, side: int = SIDE, null_label: bool = False) -> Pipeline:
    torch.manual_seed(1)
    tokenizer = Pixels(PixelsConfig(image_height=side, image_width=side, image_channels=channels, levels=2))
    names = ["cat", "dog", "red fish"][:classes] if classes else None
    config = PixelCNNConfig(num_layers=2, width=4, head_width=6, num_classes=classes, null_label=null_label)
    return Pipeline(tokenizer, PixelCNN(tokenizer.spec, config), names, CARD)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny().save(folder / "plain")
    tiny(3).save(folder / "classes")
    tiny(channels=3).save(folder / "colour")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models) -> Path:
    """An empty current folder with links to the models and an image of their size."""
    monkeypatch.chdir(tmp_path)
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    pixels = torch.randint(0, 256, (1, 1, SIDE, SIDE), dtype=torch.uint8)
    to_pil(pixels)[0].save("image.png")
    return tmp_path


def run(*words: str, code: int = 0) -> str:
    """Standard output of a command; of one that fails, its error."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stderr if code == 2 else result.stdout


def refused(*words: str) -> str:
    """The one sentence that a wrong command is answered with."""
    text = run(*words, code=2)
    assert text.startswith("Error: ") and text.count("\n") == 1, text
    return text.removeprefix("Error: ").strip()


def pixels_of(path: str) -> torch.Tensor:
    return torch.tensor(list(Image.open(path).convert("L").tobytes()))


# ---------------------------------------------------------------- help


def commands():
    return typer.main.get_command(app).commands


@pytest.mark.parametrize(
    "name",
    [
        "models", "info", "sample", "complete", "score", "reconstruct", "encode", "decode", "evaluate", "train",
        "recipes", "convert", "demo", "repeat", "serve", "push", "compress", "decompress",
    ],
)  # fmt: skip
def test_examples_of_the_help_are_understood(name):
    text = run(name, "--help")
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith(f"chainrule {name}")]
    assert examples and ("--json" in text) != (name in ("sample", "demo", "serve", "push"))
    for example in examples:
        words = shlex.split(example)[2:]
        commands()[name].make_context(name, words)
        for word in words:
            assert not word.startswith(("mnist", "shapes")) or word.endswith(".json") or word in recipe_names()


def test_every_option_is_explained():
    for command in commands().values():
        for parameter in command.params:
            assert parameter.help, (command.name, parameter.name)


def test_without_a_command_the_help_is_printed():
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2 and "Commands:" in result.stdout
    assert run("--version").strip() == chainrule.__version__


# ---------------------------------------------------------------- models, info, recipes


def test_models(here, models, monkeypatch):
    monkeypatch.setattr("chainrule.saving.hub.PRETRAINED", models)
    assert "81.23 ± 0.25" in run("models")
    rows = {row["name"]: row for row in json.loads(run("models", "--json"))}
    assert set(rows) == {"plain", "classes", "colour"}
    assert rows["plain"]["parameters"] == sum(value.numel() for value in tiny().prior.parameters())
    assert rows["plain"]["system"] == "pixelcnn" and rows["plain"]["data"] == "digits"
    assert "did you mean 'classes'" in refused("sample", "clases")


def test_info(here):
    assert "num_classes: 3" in run("info", "classes")
    value = json.loads(run("info", "classes", "--json"))
    assert (
        value["codes"] == [{"height": 8, "width": 8, "depth": 1, "codebook_size": 2}] and value["codes_per_image"] == 64
    )
    assert value["class_names"] == ["cat", "dog", "red fish"] and len(value["weights_sha256"]) == 64


def test_recipes():
    assert [row["name"] for row in json.loads(run("recipes", "--json"))] == recipe_names()


# ---------------------------------------------------------------- sample


def test_sample_writes_a_grid(here):
    assert run("sample", "plain", "-n", "4", "--seed", "3", "--scale", "2").startswith("samples.png: 4 images")
    expected = grid(tiny().sample(4, seed=3), scale=2)
    assert Image.open("samples.png").tobytes() == expected.tobytes()
    run("sample", "plain", "-n", "1")  # a name that is free
    assert Path("samples-2.png").is_file() and not list(here.glob(".*.tmp"))


def test_sample_keeps_the_images_the_model_is_surest_of(here):
    run("sample", "classes", "-n", "3", "--label", "dog,cat", "--best-of", "4", "--scale", "1")
    model, labels = chainrule.load("classes"), torch.tensor([1, 0, 1])
    images = model.sample(3, labels, best_of=4, scorer=lambda images: model.classify(images)[torch.arange(3), labels])
    assert Image.open("samples.png").tobytes() == grid(images, scale=1).tobytes()
    assert "give --label" in refused("sample", "classes", "--best-of", "4")
    assert "leave one of them out" in refused("sample", "classes", "--label", "0", "--best-of", "4", "--watch", "a.gif")


def test_sample_with_guidance(here):
    model = tiny(2, null_label=True)
    model.save(here / "guided")
    run("sample", "guided", "-n", "2", "--label", "dog", "--guidance", "3", "--scale", "1")
    assert Image.open("samples.png").tobytes() == grid(model.sample(2, "dog", guidance=3), scale=1).tobytes()
    run("sample", "guided", "-n", "2", "--out", "any.png")  # of no class
    assert json.loads(run("info", "guided", "--json"))["num_classes"] == 2
    assert "trained with labels dropped" in refused("sample", "classes", "--label", "dog", "--guidance", "3")


def test_sample_separately(here):
    run("sample", "classes", "-n", "11", "--separate", "--out", "folder", "--label", "red fish,cat")
    assert sorted(path.name for path in Path("folder").iterdir()) == [f"{index:02d}.png" for index in range(11)]
    expected = tiny(3).sample(11, label=[2, 0] * 5 + [2])
    for index in (0, 1, 10):
        assert Image.open(f"folder/{index:02d}.png").tobytes() == to_pil(expected[index : index + 1])[0].tobytes()


def test_watch(here):
    run("sample", "plain", "-n", "2", "--watch", "film.gif", "--out", "end.png", "--scale", "1")
    film, frames = Image.open("film.gif"), []
    for index in range(film.n_frames):
        film.seek(index)
        frames.append(film.convert("RGB").tobytes())
    assert film.n_frames <= 150 and film.info["duration"] >= 2000
    assert frames[-1] == Image.open("end.png").tobytes() and len(set(frames)) == len(frames) > 30


def test_drawn_part_of_a_picture():
    from chainrule.core import CodeSpec, GridSpec
    from chainrule.pictures import drawn

    spec = CodeSpec((GridSpec(1, 1, 1, 2), GridSpec(2, 2, 3, 2)))
    counts = [drawn(spec, known, 4, 6).sum().item() for known in range(14)]
    assert counts == [0, 0, 0, 0, 6, 6, 6, 12, 12, 12, 18, 18, 18, 24]


def test_nothing_is_overwritten_unasked(here):
    Path("mine.png").write_text("mine")
    Path("mine.gif").write_text("mine")
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    assert "mine.png exists; add --force" in refused("sample", "plain", "--out", "mine.png")
    assert "mine.gif exists" in refused("sample", "plain", "--watch", "mine.gif")
    assert "full is not empty" in refused("sample", "plain", "--separate", "--out", "full")
    assert "mine.png exists" in refused("complete", "plain", "image.png", "--keep", "top", "--out", "mine.png")
    assert "mine.png exists" in refused("score", "plain", "image.png", "--map", "mine.png")
    assert "must be a .png file" in refused("sample", "plain", "--out", "mine.jpg")
    assert Path("mine.png").read_text() == Path("mine.gif").read_text() == "mine"
    run("sample", "plain", "-n", "1", "--out", "mine.png", "--force")
    assert Image.open("mine.png").format == "PNG"


def test_ctrl_c_leaves_nothing(here, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "sample", stop)
    run("sample", "plain", "--out", "new.png", code=130)
    assert not Path("new.png").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("plain --label 1", "this model has no classes"),
        ("classes", "give a label in 0..2"),
        ("classes --label 3", "label must lie in 0..2, got 3"),
        ("classes --label bird", "no class 'bird'"),
        ("classes --label 0,1 -n 1", "2 labels are too many for 1 images"),
        ("plain --temperature -1", "temperature must be 0, for the most probable code, or a number from"),
        ("plain --top-p 2", "top_p must lie in (0, 1]"),
        ("plain -n 0", "'-n'"),
        ("plain --device abacus", "the device 'abacus' cannot be used"),
        ("plain --colour", "--colour"),
        ("image.png", "is no saved model"),
        ("nowhere/at/all", "no model is called"),
    ],
)
def test_mistakes_in_sampling(here, words, sentence):
    assert sentence in refused("sample", *words.split())
    assert not list(here.glob("samples*"))


# ---------------------------------------------------------------- complete


def test_complete(here):
    words = ["complete", "plain", "image.png", "-n", "3", "--seed", "2", "--particles", "2", "--scale", "1"]
    text = run(*words, "--keep", "top", "--json")
    image = pixels_of("image.png").view(1, SIDE, SIDE).to(torch.uint8)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[: SIDE // 2] = True
    pipeline = tiny()
    expected = pipeline.complete(image, mask, 3, particles=2, seed=2)
    value = json.loads(text)
    nats = [completion["log_prob"] for completion in value["completions"]]
    assert value["out"] == "completions.png" and nats == pytest.approx(pipeline.log_prob(expected).tolist())
    hidden = torch.where(mask, image, 128).to(torch.uint8)
    assert Image.open("completions.png").tobytes() == grid(torch.stack([image, hidden, *expected]), 5).tobytes()
    run(*words, "--keep", "top", "--paste", "--out", "pasted.png")
    pasted = pipeline.complete(image, mask, 3, particles=2, paste=True, seed=2)
    assert torch.equal(pasted[:, :, mask], image[:, mask].expand(3, -1, -1))
    assert Image.open("pasted.png").tobytes() == grid(torch.stack([image, hidden, *pasted]), 5).tobytes()
    Image.fromarray(mask.numpy()).convert("L").save("mask.png")
    run(*words, "--mask", "mask.png", "--out", "same.png")
    run(*words, "--keep", "0,0,8,4", "--out", "box.png")
    assert Path("same.png").read_bytes() == Path("box.png").read_bytes() == Path("completions.png").read_bytes()


def test_mistakes_in_completing(here):
    Image.new("L", (5, 6)).save("small.png")
    good = ["complete", "plain", "image.png"]
    assert "by --mask or by --keep" in refused(*good)
    assert "not by both" in refused(*good, "--keep", "top", "--mask", "small.png")
    assert "the mask small.png is 6x5 but the image is 8x8" in refused(*good, "--mask", "small.png")
    assert "--keep must be top, bottom" in refused(*good, "--keep", "middle")
    assert "must lie inside the image" in refused(*good, "--keep", "0,0,9,4")
    assert "add --resize" in refused("complete", "plain", "small.png", "--keep", "left")
    run("complete", "plain", "small.png", "--keep", "left", "--resize", "-n", "1")


# ---------------------------------------------------------------- score


def test_score(here):
    Image.open("image.png").convert("RGB").save("colours.png")
    images = pixels_of("image.png").view(1, 1, SIDE, SIDE).to(torch.uint8)
    nats = -tiny().log_prob(images).item()
    value = json.loads(run("score", "plain", "image.png", "colours.png", "--json", "--map", "maps"))
    assert [row["nats"] for row in value["images"]] == pytest.approx([nats, nats])
    assert value["images"][0]["bits_per_dim"] == pytest.approx(nats / 64 / 0.693147)
    assert value["greatest_surprise"] == pytest.approx(tiny().surprise(images).max().item())
    assert sorted(path.name for path in Path("maps").iterdir()) == ["colours.png", "image.png"]
    text = run("score", "plain", "image.png", "colours.png", "--map", "one.png")
    assert f"{nats:.2f}" in text and "mean" in text and Path("one.png").is_file()
    run("score", "colour", "image.png")
    run("score", "classes", "image.png", "colours.png", "--label", "dog,cat")


def test_binarised_score_depends_on_the_seed(here):
    figures = [
        json.loads(run("score", "plain", "image.png", "--binarize", "--seed", seed, "--json"))["images"][0]["nats"]
        for seed in "001"
    ]
    assert figures[0] == figures[1] != figures[2]
    assert "give both or neither" in refused("score", "plain", "image.png", "--seed", "1")


def test_bad_images(here):
    Path("cut.png").write_bytes(Path("image.png").read_bytes()[:60])
    Image.new("L", (28, 20)).save("large.png")
    assert "no image file at none.png" in refused("score", "plain", "none.png")
    assert "cut.png cannot be read as an image" in refused("score", "plain", "image.png", "cut.png")
    assert "large.png is 20x28 but this model needs 8x8" in refused("score", "plain", "large.png")
    assert "--scale would be ignored" in refused("score", "plain", "image.png", "--scale", "2")


def test_heat_runs_from_dark_to_light():
    from chainrule.pictures import heat

    colours = heat(torch.tensor([[[0.0, 1.0, 2.0]]]), 2.0).float().mean(1).flatten().tolist()
    assert colours == sorted(colours) and colours[0] < 5 and colours[2] > 200


# ---------------------------------------------------------------- evaluate


@pytest.fixture
def brightness(monkeypatch) -> None:
    """Features that need no file."""
    monkeypatch.setattr("chainrule.scorers.features.load_features", lambda name: Brightness(0))


@pytest.fixture
def digits(monkeypatch) -> list:
    """A data set in place of those on disk; what was asked for is in the list returned."""
    asked = []

    def load(config):
        asked.append(config)
        generator = torch.Generator().manual_seed(len(config.source))
        images = torch.randint(0, 256, (40, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return ImageDataset(images, torch.arange(40) % 3, None, ("cat", "dog", "red fish"), 3, config.source)

    monkeypatch.setattr("chainrule.evaluation.measure.load", load)
    return asked


def test_evaluate_and_repeat(here, digits):
    assert "40 images of digits test, mean over 5 draws" in run("evaluate", "plain")
    record = json.loads(Path("plain-test.json").read_text())
    assert digits[0].binarize == "sample" and digits[0].channels == 1
    assert record["seeds"] == [0, 1, 2, 3, 4] and record["likelihood"]["num_images"] == 40
    assert record["dtype"] == "float32"
    assert set(record["versions"]) == {"python", "torch", "numpy", "chainrule", "processor"}
    assert record["bits_per_dim"] == pytest.approx(record["likelihood"]["nats"] / 64 / 0.693147)

    run(*shlex.split(record["command"])[1:], "--record", "again.json")  # the command gives the record
    again = json.loads(Path("again.json").read_text())
    assert again["likelihood"] == record["likelihood"] and again["command"] == record["command"]

    assert "agrees with plain-test.json" in run("evaluate", "--from", "plain-test.json")
    assert "the weights are others" in run("evaluate", "classes", "--from", "plain-test.json", code=1)
    assert "the images are others" in run("evaluate", "--from", "plain-test.json", "--data", "letters", code=1)
    record["likelihood"]["nats"] *= 1.002
    Path("wrong.json").write_text(json.dumps(record))
    answer = json.loads(run("evaluate", "--from", "wrong.json", "--json", code=1))
    assert answer["agrees"] is False and "the figure differs by -" in answer["differences"][0]


def test_evaluate_a_prior_over_codes(here, digits):
    tokenizer = VQVAE(
        VQVAEConfig(
            image_height=SIDE,
            image_width=SIDE,
            image_channels=1,
            width=8,
            residual_width=4,
            codebook_size=12,
            embedding_dim=3,
        )
    )
    Pipeline(tokenizer, PixelCNN(tokenizer.spec, PixelCNNConfig(num_layers=2, width=4, head_width=6)), None, CARD).save(
        "codes"
    )
    text = run("evaluate", "codes", "--limit", "5", "--binarize", "none", "--record", "r.json")
    value = json.loads(Path("r.json").read_text())
    nats = value["likelihood"]["nats"]
    bits = nats / 0.693147
    assert value["nats_per_code"] == pytest.approx(nats / 4) and value["bits_per_image"] == pytest.approx(bits)
    assert f"{nats / 4:.4f} nats per code, {bits:.1f} bits per image" in text


def test_evaluate_options(here, digits):
    words = shlex.split("classes --data letters --split train --binarize threshold --limit 7 --batch-size 3")
    value = json.loads(run("evaluate", *words, "--record", "r.json", "--json"))
    nats = json.loads(run("evaluate", *words, "--record", "r.json", "--force", "--json"))["likelihood"]["nats"]
    assert nats == value["likelihood"]["nats"]
    assert value["likelihood"]["num_images"] == 7 and value["seeds"] == [] and value["limit"] == 7
    assert value["data"]["split"] == "train" and value["data"]["source"] == "letters"


def test_evaluate_draws_and_compares(here, digits, brightness, monkeypatch):
    words = shlex.split("classes --samples 9 --against train --temperature 0.5 --limit 7 --batch-size 4")
    text = run("evaluate", *words, "--record", "r.json")
    assert "Fréchet distance, brightness features" in text and "9 samples against 40 images of digits train" in text
    record = json.loads(Path("r.json").read_text())
    quality = record["samples"]["quality"]
    assert [config.split for config in digits] == ["test", "train"] and record["likelihood"]["num_images"] == 7
    assert quality["floor"] == pytest.approx(0, abs=1e-12)  # pixels are kept as they are
    assert record["samples"]["seconds_per_image"] > 0

    labels = torch.arange(9) * 40 // 9 % 3  # of images at equal distances
    images = chainrule.load("classes").sample(9, labels, temperature=0.5)
    real = binarize(measure.load(digits[1]).images, "sample", torch.Generator().manual_seed(0))
    features = [Brightness(0).pooled(each.float() / 255) for each in (real, images)]
    assert quality["frechet"] == pytest.approx(frechet_distance(*features))
    assert (quality["precision"], quality["recall"]) == pytest.approx(precision_recall(*features))

    looked_at = []
    with monkeypatch.context() as patch:
        pooled = Brightness.pooled
        patch.setattr(Brightness, "pooled", lambda self, images: looked_at.append(len(images)) or pooled(self, images))
        run(*shlex.split(record["command"])[1:], "--record", "again.json")  # the command gives the record
    assert looked_at == [9]  # the real images have been looked at before
    again = json.loads(Path("again.json").read_text())
    assert again["samples"]["quality"] == quality and again["command"] == record["command"]
    assert again["likelihood"] == record["likelihood"]
    run("evaluate", *words, "--batch-size", "9", "--record", "r.json", "--force")
    other = json.loads(Path("r.json").read_text())["samples"]["quality"]
    assert other["frechet"] == pytest.approx(quality["frechet"])  # images do not depend on their batch

    assert "agrees with again.json" in run("evaluate", "--from", "again.json")
    assert "the images compared with are others" in run(
        "evaluate", "--from", "again.json", "--data", "letters", code=1
    )  # fmt: skip
    record["samples"]["quality"]["frechet"] *= 1.01
    record["samples"]["seconds_per_image"] *= 2
    Path("wrong.json").write_text(json.dumps(record))
    answer = json.loads(run("evaluate", "--from", "wrong.json", "--json", code=1))
    assert len(answer["differences"]) == 1 and "the Fréchet distance differs by -" in answer["differences"][0]


def test_evaluate_draws_over_codes_and_without_labels(here, digits, brightness):
    tokenizer = VQVAE(
        VQVAEConfig(
            image_height=SIDE,
            image_width=SIDE,
            image_channels=1,
            width=8,
            residual_width=4,
            codebook_size=12,
            embedding_dim=3,
        )
    )
    Pipeline(tokenizer, PixelCNN(tokenizer.spec, PixelCNNConfig(num_layers=2, width=4, head_width=6)), None, CARD).save(
        "codes"
    )
    words = shlex.split("codes --samples 50 --seed 3 --binarize none --record r.json --json")
    value = json.loads(run("evaluate", *words))
    samples = value["samples"]
    assert samples["settings"]["seed"] == 3 and samples["settings"]["against"] is None
    assert samples["quality"]["floor"] > 0 and samples["quality"]["num_generated"] == 50
    assert samples["fingerprint"] == value["fingerprint"] and samples["quality"]["features"] == "brightness"
    assert json.loads(run("evaluate", "codes", "--record", "s.json", "--json"))["samples"] is None


def test_mistakes_in_drawing_to_evaluate(here, digits, brightness):
    new = ["--record", "new.json"]
    for option, value in (("--guidance", "2"), ("--against", "train"), ("--features", "inception")):
        assert f"{option[2:]} would be ignored" in refused("evaluate", "plain", option, value, *new)
    words = ["evaluate", "classes", "--samples", "9", *new]
    assert "nothing to compare samples by" in refused(*words, "--features", "none")
    assert "decodes in float32 only" in refused(*words, "--precision", "int8")
    assert "trained with labels dropped" in refused(*words, "--guidance", "2")
    assert "at least 4 samples and 4 images" in refused(*words, "--samples", "3")
    assert "seeds would be ignored" in refused(*words, "--binarize", "none", "--seeds", "2")
    assert "--top-k would be ignored" in refused("evaluate", "--from", "r.json", "--top-k", "3")
    assert not Path("new.json").exists()


def test_evaluate_on_drawn_shapes(here):
    tiny(channels=3, side=16).save("large")
    words = shlex.split("large --data shapes --split test[:9] --binarize none --record r.json")
    assert "9 images of shapes test[:9]" in run("evaluate", *words)


def test_mistakes_in_evaluating(here, digits):
    Path("plain-test.json").write_text("{}")
    Path("broken.json").write_text("{")
    assert "plain-test.json exists" in refused("evaluate", "plain")
    assert "a MODEL is missing" in refused("evaluate")
    assert "it has no likelihood" in refused("evaluate", "--from", "plain-test.json")
    assert "not valid JSON" in refused("evaluate", "--from", "broken.json")
    assert "none.json: No such file" in refused("evaluate", "--from", "none.json")
    assert "--limit would be ignored" in refused("evaluate", "--from", "broken.json", "--limit", "3")
    new = ["--record", "new.json"]
    assert "seeds would be ignored" in refused("evaluate", "plain", "--binarize", "none", "--seeds", "2", *new)
    assert "are 8x8 but this model needs 16x16" in refused("evaluate", large(here), *new)
    assert "--size must be" in refused("evaluate", "plain", "--size", "big", *new)
    assert "binarize must be one of" in refused("evaluate", "plain", "--binarize", "dither", *new)
    assert not Path("new.json").exists()


def large(folder: Path) -> str:
    tiny(side=16).save(folder / "large")
    return "large"


# ---------------------------------------------------------------- train


def test_train_passes_on_what_it_is_told(here, monkeypatch):
    calls = []

    def fit(recipe, out, overrides, **options):
        calls.append((recipe, out, overrides, options))
        return TrainResult(5, {"nats": 81.25}, out, 90.0, interrupted=recipe == "stopped")

    monkeypatch.setattr("chainrule.training.train", fit)
    assert "5 steps in 1.5 minutes, nats 81.25" in run("train", "some/mine.yaml", "training.steps=5", "--seed", "2")
    recipe, out, overrides, options = calls[0]
    assert (recipe, out) == ("some/mine.yaml", Path("runs/mine"))
    assert overrides == ["training.steps=5", "training.seed=2"] and options["resume"] is True
    assert json.loads(run("train", "x", "--json", "--out", "o", "--no-resume"))["model"] == "o/model"
    assert calls[1][3]["resume"] is False and calls[1][3]["quiet"] is True
    run("train", "stopped", code=130)


def test_mistakes_in_recipes(here):
    assert "did you mean 'mnist_pixelcnn'" in refused("train", "mnist_pixelcn")
    assert "did you mean 'steps'" in refused("train", "mnist_pixelcnn", "training.stepz=3")
    assert "section.key=value" in refused("train", "mnist_pixelcnn", "steps=3")
    assert "accelerator must be" in refused("train", "mnist_pixelcnn", "--accelerator", "abacus")
    assert not Path("runs").exists()


# ---------------------------------------------------------------- damaged models


def test_damaged_models(here):
    tiny().save("cut")
    weights = Path("cut/prior.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cut/prior.safetensors is missing or damaged" in refused("sample", "cut")
    tiny(3).save("other")
    weights.write_bytes(Path("other/prior.safetensors").read_bytes())
    assert "weights of another architecture" in refused("sample", "cut")
    weights.unlink()
    assert "is missing or damaged" in refused("info", "cut")
    config = Path("other/config.yaml")
    text = config.read_text()
    for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        config.write_text(text[: int(share * len(text))])
        assert refused("sample", "other", "--label", "cat").startswith("other")


# ---------------------------------------------------------------- errors of the machine


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "there is not enough memory; work on fewer images at once, or on smaller ones"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "there is not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (RuntimeError("Storage size calculation overflowed with sizes=[9]"), "there is not enough memory"),
        (
            RuntimeError("the CUDA driver is too old\nframe #0"),
            "cannot do this on the device: the CUDA driver is too old;",
        ),
        (RuntimeError("sizes 3 and 4 differ"), "this is a fault in chainrule: RuntimeError in "),
        (TypeError("'int' object is not callable"), "this is a fault in chainrule: TypeError in "),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "a text is not in UTF-8"),
        (OSError(28, "No space left on device", "out.png"), "out.png: No space left on device"),
        (OSError("the connection was reset"), "the connection was reset"),
        (ValueError(f"got {'9' * 5000}"), f"got {'9' * 150}…{'9' * 50}"),
    ],
)
def test_errors_of_the_machine_are_one_sentence(here, monkeypatch, error, sentence):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Pipeline, "sample", fail)
    assert sentence in refused("sample", "plain")
    for words in (["--debug", "sample", "plain"], ["sample", "plain", "--debug"]):
        assert CliRunner().invoke(app, words).exception is error


def test_what_cannot_be_had_here_is_said_before_any_work(here):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name in (name for name, found in there.items() if not found):
        said = refused("train", "shapes_vqvae", "--accelerator", name)
        assert f"the accelerator {name} cannot be used" in said
        assert f"the device {name!r} cannot be used; there are: cpu" in refused("sample", "plain", "--device", name)
    assert "the device 'meta' cannot be used" in refused("sample", "plain", "--device", "meta")
    for option in ("-n", "--seed", "--scale"):
        assert f"Invalid value for '{option}'" in refused("sample", "plain", option, str(2**64))
    Path("file").write_text("")
    for out in ("file/x.png", "file/deep/x.png"):
        assert "Not a directory" in refused("sample", "plain", "--out", out)
    assert sorted(path.name for path in Path().iterdir() if path.name.startswith(".")) == []


# ---------------------------------------------------------------- a process of its own


def test_exit_code_and_imports_of_the_real_command(here):
    """Neither PyTorch before it is needed, nor its compiler for models that are read: it takes seconds to import."""
    code = (
        "import atexit, sys, chainrule.cli; assert 'torch' not in sys.modules\n"
        "for name in ('emoji_dalle', 'emoji_gpt', 'emoji_pixelsnail', 'shapes_reranker'): chainrule.load(name)\n"
        "atexit.register(lambda: print('torch._dynamo' in sys.modules)); chainrule.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "sample", "none"], capture_output=True, text=True, check=False, timeout=100,
        env=os.environ | {"PYTHONPATH": str(Path(chainrule.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "False\n" and "no model is called 'none'" in done.stderr, done.stderr


def test_pictures_too_large_are_refused_by_their_header(here):
    tiny().save("model")
    Image.new("L", (3000, 3000)).save("large.png")
    for command in (["encode", "model", "large.png", "--out", "x.safetensors"], ["reconstruct", "model", "large.png"]):
        assert "large.png has more than" in refused(*command)
