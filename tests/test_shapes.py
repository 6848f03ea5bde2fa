"""The embedded data set: drawing, captions, and reading objects back from an image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from chainrule.data import DataConfig, load, shapes


def noisy(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=75, subsampling=0)
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)


def test_a_scene_is_a_pure_function_of_index_split_and_seed():
    assert shapes.scene(7) == shapes.scene(7, "train", 0)
    assert np.array_equal(shapes.render(shapes.scene(7), 32), shapes.render(shapes.scene(7), 32))
    assert len({shapes.scene(7), shapes.scene(8), shapes.scene(7, "test"), shapes.scene(7, seed=1)}) == 4


def test_scenes_cover_every_attribute_and_hold_out_combinations():
    seen = [item for index in range(1000) for item in shapes.scene(index).objects]
    assert {item.position for item in seen} == set(shapes.POSITIONS)
    assert {item.size for item in seen} == set(shapes.SIZES)
    combinations = {(item.colour, item.shape) for item in seen}
    assert len(combinations) == 40 - len(shapes.HELD_OUT) and not combinations & set(shapes.HELD_OUT)
    for index in range(100):
        scene = shapes.scene(index, "heldout")
        assert any((item.colour, item.shape) in shapes.HELD_OUT for item in scene.objects)
        assert 1 <= len(scene.objects) <= 3 and len({item.position for item in scene.objects}) == len(scene.objects)


def test_objects_do_not_overlap():
    for index in range(200):
        scene = shapes.scene(index)
        alone = [shapes.render(shapes.Scene((item,)), 48) != shapes.BACKGROUND[0] for item in scene.objects]
        assert sum(mask.any(0).astype(int) for mask in alone).max() == 1


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("change, least", [("none", 0.99), ("noise", 0.95), ("jpeg", 0.95)])
def test_objects_are_read_back(size, change, least):
    random = np.random.default_rng(0)
    change = {"none": lambda image: image, "noise": lambda image: noisy(image, random), "jpeg": jpeg}[change]
    scenes = [shapes.scene(index, ("train", "heldout")[index % 2]) for index in range(200)]
    right = [tuple(shapes.read(change(shapes.render(scene, size)))) == scene.objects for scene in scenes]
    assert np.mean(right) >= least


def test_reading_also_gives_the_jitter():
    item = shapes.Object("red", "circle", "large", "center", 0.02, -0.015)
    (seen,) = shapes.read(shapes.render(shapes.Scene((item,)), 64))
    assert (seen.dx, seen.dy) == pytest.approx((0.02, -0.015), abs=0.003)


def test_captions_round_trip():
    for index in range(300):
        scene = shapes.scene(index, "test")
        assert tuple(shapes.parse(shapes.caption(scene))) == scene.objects
    red, blue = (
        shapes.Object("red", "circle", "large", "top left"),
        shapes.Object("blue", "square", "small", "bottom right"),
    )
    words = "a large red circle at the top left and a small blue square at the bottom right"
    assert shapes.caption(shapes.Scene((red, blue))) == words


def test_matches_checks_every_stated_attribute_in_any_order():
    objects = (
        shapes.Object("red", "circle", "large", "top left"),
        shapes.Object("blue", "square", "small", "bottom right"),
    )
    image = shapes.render(shapes.Scene(objects), 32)
    right = [
        "a large red circle at the top left and a small blue square at the bottom right",
        "a small blue square at the bottom right, a large red circle at the top left",
        "A red circle and a square.",
    ]
    wrong = [
        "a small red circle at the top left and a small blue square at the bottom right",
        "a large green circle at the top left and a small blue square at the bottom right",
        "a large red star at the top left and a small blue square at the bottom right",
        "a large red circle at the top and a small blue square at the bottom right",
        "a blue circle and a red square",
        "a large red circle at the top left",
        "a red circle, a blue square and a red circle",
    ]
    assert all(shapes.matches(image, words) for words in right)
    assert not any(shapes.matches(image, words) for words in wrong)
    assert not shapes.matches(np.full((3, 32, 32), 240, np.uint8), right[0])


def test_what_is_no_shape_is_not_recognised():
    image = np.full((3, 48, 48), 240, np.uint8)
    image[:, 4:7, 2:46] = np.array(shapes.COLOURS["red"], np.uint8)[:, None, None]
    (seen,) = shapes.read(image)
    assert seen.colour == "red" and seen.shape is None
    assert shapes.read(np.full((3, 48, 48), 240, np.uint8)) == []


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: shapes.parse("a huge red circle"), "is not understood"),
        (lambda: shapes.scene(0, "valid"), "no split 'valid'"),
        (lambda: shapes.scene(-1), "at least 0"),
        (lambda: shapes.render(shapes.scene(0), 8), "smaller than 16"),
        (lambda: shapes.read(np.zeros((3, 4, 4))), "uint8"),
        (lambda: load(DataConfig("shapes")), "set size"),
        (lambda: load(DataConfig("shapes", size=32, flip=True)), "left and right"),
        (lambda: load(DataConfig("shapes", size=32, channels=1)), "in colour"),
        (lambda: load(DataConfig("shapes", size=32, label_column="x")), "no columns"),
        (lambda: load(DataConfig("shapes", size=32, split="valid")), "no split"),
    ],
)
def test_errors_are_sentences(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_shapes_loads_as_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    dataset = load(DataConfig("shapes", size=32, split="heldout[:100]"))
    assert dataset.images.shape == (100, 3, 32, 32) and dataset.num_classes == 40 and dataset.name == "shapes"
    batch = dataset.batch(torch.tensor([3, 99]))
    for image, label, text in zip(batch.images, batch.labels, batch.texts, strict=True):
        assert shapes.matches(image.numpy(), text)
        assert dataset.class_names[label] in text.split(" at ")[0]
    assert load(DataConfig("shapes", size=32, split="heldout[:100]")).fingerprint == dataset.fingerprint
