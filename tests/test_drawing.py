"""PNG files say how they were drawn, and `repeat` draws them again from that."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from chainrule.drawing import Derived, Drawing, read_origin, repeat
from chainrule.images import to_pil
from chainrule.saving.weights import weights_sha256
from test_cli import SIDE, here, models, refused, run, tiny  # noqa: F401 (fixtures)


def test_every_image_of_a_folder_is_drawn_again_by_its_own_seed(here):  # noqa: F811
    words = ["--label", "dog,cat", "--temperature", "0.9", "--top-k", "1", "--separate", "--out", "each"]
    run("sample", "classes", "-n", "3", "--seed", "5", *words)
    origin = read_origin("each/1.png")
    assert isinstance(origin, Drawing) and len(origin.seeds) == 1 and origin.labels == (0,)
    assert (origin.sampling.temperature, origin.sampling.top_k) == (0.9, 1)
    assert origin.model.name == "classes" and origin.model.sha256 == weights_sha256(here / "classes")
    assert run("repeat", "each/1.png").startswith("each/1.png: drawn again, all pixels are equal (1 image by classes)")
    drawn = tiny(3).sample(1, "cat", seed=origin.seeds, **{"temperature": 0.9, "top_k": 1})
    assert Image.open("each/1.png").tobytes() == to_pil(drawn)[0].tobytes()


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "plain", "-n", "5", "--seed", "3", "--scale", "2"],
        ["sample", "classes", "-n", "4", "--label", "cat", "--best", "2"],
        ["sample", "classes", "-n", "2", "--label", "cat", "--best-of", "3"],
        ["complete", "plain", "image.png", "-n", "2", "--keep", "top", "--particles", "3", "--paste"],
    ],
)
def test_pictures_are_drawn_again(here, words):  # noqa: F811
    run(*words, "--out", "picture.png")
    value = json.loads(run("repeat", "picture.png", "--out", "again.png", "--json"))
    assert value["equal"] and value["origin"]["model"]["name"] == words[1]
    assert Image.open("again.png").text == Image.open("picture.png").text
    assert Image.open("again.png").tobytes() == Image.open("picture.png").tobytes()


def test_seeds_of_images_are_given_one_by_one(here):  # noqa: F811
    run("sample", "plain", "--seeds", "3,17,42", "--separate", "--out", "three")
    for index, seed in enumerate((3, 17, 42)):
        assert read_origin(f"three/{index}.png").seeds == (seed,)
        assert Image.open(f"three/{index}.png").tobytes() == to_pil(tiny().sample(1, seed=[seed]))[0].tobytes()
    run("complete", "plain", "image.png", "--keep", "top", "--seeds", "7,8", "--out", "two.png")
    assert read_origin("two.png").seeds == (7, 8)
    for words, sentence in [
        (["--seeds", "1,x"], "whole numbers with commas"),
        (["--seeds", "1,2", "-n", "3"], "-n asks for 3 images"),
        (["--seeds", "1,2", "--seed", "3"], "leave one of them out"),
        (["--seeds", "-1"], "must lie in 0.."),
    ]:
        assert sentence in refused("sample", "plain", *words)


def test_what_differs_is_said(here):  # noqa: F811
    run("sample", "plain", "-n", "1", "--separate", "--out", "one")
    picture = Image.open("one/0.png")
    picture.putpixel((2, 3), 255 - picture.getpixel((2, 3)))
    origin = json.loads(picture.text["chainrule"])
    origin["model"]["sha256"], origin["versions"]["torch"] = "0" * 64, "1.0"
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("chainrule", json.dumps(origin))
    picture.save("other.png", pnginfo=info)
    output = run("repeat", "other.png", code=1)
    assert "the weights of plain are others" in output and f"1 of {SIDE * SIDE} pixels" in output
    assert f"torch is {torch.__version__}, in the file 1.0" in output


def test_no_metadata(here):  # noqa: F811
    run("sample", "plain", "-n", "2", "--no-metadata", "--out", "bare.png")
    assert Image.open("bare.png").text == {}
    assert "bare.png does not say how it was drawn" in refused("repeat", "bare.png")


def test_pictures_that_are_computed_name_their_inputs(here):  # noqa: F811
    run("score", "plain", "image.png", "--map", "map.png")
    origin = read_origin("map.png")
    assert isinstance(origin, Derived) and list(origin.inputs) == ["image.png"]
    with pytest.raises(ValueError, match="map.png is a map of surprise by plain: only drawn pictures"):
        repeat("map.png")
