"""Sources, transforms, the cache, and the errors a user meets."""

import io
import os
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from chainrule.data import Batch, DataConfig, augment, binarize, load, load_images, load_mask
from chainrule.data.cache import cached_arrays, create_array, kept_arrays, write_array


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHAINRULE_DATA", raising=False)


def picture(value: int, size: tuple[int, int] = (8, 8), colour: bool = True) -> Image.Image:
    """A plain picture of (height, width)."""
    return Image.fromarray(np.full((*size, 3) if colour else size, value, np.uint8))


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def write_table(folder: Path, values=(10, 20, 30), split: str = "train", **columns) -> None:
    """A parquet file of plain grey images (a negative value: of junk), and other columns."""
    import datasets

    features = {"image": datasets.Image()}
    for name, column in columns.items():
        kind = "string" if isinstance(column[0], str) else "int64"
        features[name] = datasets.ClassLabel(names=["a", "b"]) if name == "label" else datasets.Value(kind)
    images = []
    for value in values:
        buffer = io.BytesIO()
        picture(max(value, 0), colour=False).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue() if value >= 0 else b"junk", "path": None})
    table = datasets.Dataset.from_dict({"image": images, **columns}, features=datasets.Features(features))
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


# ------------------------------------------------------------------------------------------ sources


def test_parquet(tmp_path):
    folder = tmp_path / "table"
    write_table(folder, label=[0, 1, 0], text=["x", "y", "z"])
    write_table(folder, (5,), "test", label=[1], text=["t"])
    before = sorted(tmp_path.joinpath("table").rglob("*"))
    dataset = load(DataConfig(str(folder)))
    assert dataset.images.shape == (3, 1, 8, 8) and dataset.images.dtype == torch.uint8
    assert dataset.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert dataset.labels.tolist() == [0, 1, 0] and dataset.labels.dtype == torch.int64
    assert dataset.texts == ["x", "y", "z"] and dataset.class_names == ("a", "b") and dataset.num_classes == 2
    assert dataset.name == "table" and len(dataset) == 3 and dataset.skipped == []
    batch = dataset.batch(torch.tensor([2, 0]))
    assert batch.images[:, 0, 0, 0].tolist() == [30, 10]
    assert batch.labels.tolist() == [0, 0] and batch.texts == ["z", "x"]
    assert load(DataConfig(str(folder), split="test")).texts == ["t"]
    assert sorted(tmp_path.joinpath("table").rglob("*")) == before  # nothing is written beside the user's files
    assert not list((tmp_path / "cache").rglob("tmp-*"))


def test_saved_to_disk(tmp_path):
    import datasets

    images = [picture(value) for value in (1, 2)]
    table = datasets.Dataset.from_dict({"img": images, "kind": ["b", "a"]})
    table = table.cast_column("img", datasets.Image())
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"validation": table}).save_to_disk(str(tmp_path / "dict"))
    before = sorted((tmp_path / "one").rglob("*"))
    dataset = load(DataConfig(str(tmp_path / "one"), label_column="kind"))
    assert dataset.class_names == ("a", "b") and dataset.labels.tolist() == [1, 0]
    assert sorted((tmp_path / "one").rglob("*")) == before
    assert load(DataConfig(str(tmp_path / "dict"), split="validation")).images[:, 0, 0, 0].tolist() == [1, 2]


def test_flat_folder_is_split_by_name(tmp_path):
    for index in range(40):
        save(picture(index), tmp_path / "flat [x]" / f"test_{index:02}.png")
    train, test = (load(DataConfig(str(tmp_path / "flat [x]"), split=split)) for split in ("train", "test"))
    assert len(train) == 38 and len(test) == 2 and train.labels is None and train.texts is None
    values = train.images[:, 0, 0, 0].tolist()
    assert values == sorted(values)
    assert sorted(values + test.images[:, 0, 0, 0].tolist()) == list(range(40))
    with pytest.raises(ValueError, match="has no split 'validation'; it has train, test"):
        load(DataConfig(str(tmp_path / "flat [x]"), split="validation"))


def test_no_image_goes_from_training_to_test_when_a_folder_grows(tmp_path):
    before: set[int] = set()
    for index in range(60):
        save(picture(4 * index), tmp_path / "grows" / f"{index}.png")
        if index % 12 > 1:
            continue
        with warnings.catch_warnings(record=index == 0):
            train, test = (load(DataConfig(str(tmp_path / "grows"), split=split)) for split in ("train", "test"))
        seen, held = (set(part.images[:, 0, 0, 0].tolist()) for part in (train, test))
        assert seen and held and seen | held == set(range(0, 4 * index + 4, 4))
        assert index == 0 or not (seen & held or before & held)
        before = seen if index else set()


def test_one_image_is_of_both_splits_which_is_said(tmp_path):
    save(picture(5), tmp_path / "one" / "a.png")
    with pytest.warns(UserWarning, match=r"1 image in training and test \(there are too few to hold one out"):
        assert len(load(DataConfig(str(tmp_path / "one")))) == 1
    assert len(load(DataConfig(str(tmp_path / "one"), split="test"))) == 1


def test_class_folders(tmp_path):
    for number, split in enumerate(("train", "test")):
        for label, name in enumerate(("cat", "dog")):
            save(picture(100 * number + 10 * label), tmp_path / "pets" / split / name / "1.png")
    train, test = (load(DataConfig(str(tmp_path / "pets"), split=split)) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog") and test.labels.tolist() == [0, 1]
    assert test.images[:, 0, 0, 0].tolist() == [100, 110]
    unsplit = load(DataConfig(str(tmp_path / "pets" / "train"), split="test"))
    assert unsplit.class_names == ("cat", "dog") and len(unsplit) == 1


def test_split_folders_are_no_classes(tmp_path):
    for split in ("train", "val"):
        save(picture(1), tmp_path / "plain" / split / "1.png")
    dataset = load(DataConfig(str(tmp_path / "plain"), split="validation"))
    assert len(dataset) == 1 and dataset.labels is None


@pytest.mark.parametrize("kind", ["metadata.csv", "metadata.jsonl", "captions.txt", "sidecar"])
def test_captions(tmp_path, kind):
    folder = tmp_path / "captioned" / "train"
    for index in range(3):
        save(picture(index), folder / f"{index}.png")
        if kind == "sidecar":
            (folder / f"{index}.txt").write_text(f"picture {index}\n")
    if kind == "metadata.csv":
        (folder / kind).write_text("file_name,text\n" + "".join(f"{i}.png,picture {i}\n" for i in range(3)))
    elif kind == "metadata.jsonl":
        (folder / kind).write_text("".join(f'{{"file_name": "{i}.png", "text": "picture {i}"}}\n' for i in range(3)))
    elif kind == "captions.txt":
        (folder.parent / kind).write_text("".join(f"train/{i}.png\tpicture {i}\n" for i in range(3)))
    dataset = load(DataConfig(str(folder.parent)))
    assert dataset.texts == ["picture 0", "picture 1", "picture 2"] and dataset.labels is None


def test_caption_errors(tmp_path):
    for index in range(2):
        save(picture(index), tmp_path / "c" / f"{index}.png")
    (tmp_path / "c" / "captions.txt").write_text("0.png\tzero\n")
    with pytest.warns(UserWarning, match="1 image without a caption: 1.png"):
        splits = [load(DataConfig(str(tmp_path / "c"), split=split)) for split in ("train", "test")]
    assert sorted(splits[0].texts + splits[1].texts) == ["", "zero"]
    (tmp_path / "c" / "captions.txt").write_text("0.png zero\n")
    with pytest.raises(ValueError, match="line 1 of .*<TAB>"):
        load(DataConfig(str(tmp_path / "c")))


def test_chainrule_data_is_searched_first(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINRULE_DATA", str(tmp_path / "shelf"))
    write_table(tmp_path / "shelf" / "someone" / "things")
    dataset = load(DataConfig("someone/things"))
    assert dataset.name == "someone/things" and len(dataset) == 3


def test_hub(monkeypatch):
    import datasets

    table = datasets.Dataset.from_dict({"image": [picture(9)]}).cast_column("image", datasets.Image())
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name: asked.append(name) or datasets.DatasetDict({"train": table})
    )
    assert load(DataConfig("someone/things")).images[0, 0, 0, 0] == 9
    load(DataConfig("someone/things"))
    assert asked == ["someone/things"]

    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr("chainrule.data.sources.hub.hub_answers", lambda: True)
    with pytest.raises(ValueError, match="someone/else is no folder here .*could not be fetched from the hub"):
        load(DataConfig("someone/else"))


def test_slices(tmp_path):
    write_table(tmp_path / "t", range(10))

    def values(split):
        return load(DataConfig(str(tmp_path / "t"), split=split)).images[:, 0, 0, 0].tolist()

    assert values("train[:4]") == [0, 1, 2, 3] and values("train[-3:]") == [7, 8, 9]
    assert values("train[2:-5]") == [2, 3, 4] and values("train[80%:]") == [8, 9]
    assert values("train[:99]") == [*range(10)]
    with pytest.raises(ValueError, match="is empty: train has 10 images"):
        values("train[10:]")


# ------------------------------------------------------------------------------------------ images


def test_sizes(tmp_path):
    save(picture(1, (8, 8)), tmp_path / "s" / "a" / "1.png")
    save(picture(1, (12, 20)), tmp_path / "s" / "b" / "2.png")
    save(picture(1, (12, 20)), tmp_path / "s" / "b" / "3.png")
    source = str(tmp_path / "s" / "b")
    with pytest.raises(ValueError, match=r"1.png is 8x8 and .*.png is 12x20 \(height x width\); set size"):
        [load(DataConfig(str(tmp_path / "s"), split=split)) for split in ("train", "test")]
    assert load(DataConfig(source)).image_shape == (3, 12, 20)
    assert load(DataConfig(source, size=6)).image_shape == (3, 6, 6)
    assert load(DataConfig(source, size=[16, 4], channels=1)).image_shape == (1, 16, 4)


def test_resizing_is_of_the_shorter_side_with_a_centre_crop(tmp_path):
    array = np.zeros((10, 30), np.uint8)
    array[:, 10:20] = 255
    path = save(Image.fromarray(array), tmp_path / "wide.png")
    assert (load_images([path], size=10) == 255).all()
    assert (load_images([path], size=(10, 30))[0, 0].numpy() == array).all()


def test_modes(tmp_path):
    grey = save(picture(7, colour=False), tmp_path / "grey.png")
    colour = save(picture(7), tmp_path / "colour.png")
    clear = save(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), tmp_path / "clear.png")
    deep = save(Image.fromarray(np.full((8, 8), 65535, np.uint16)), tmp_path / "deep.png")
    one_bit = save(Image.new("1", (8, 8), 1), tmp_path / "bit.png")
    assert load_images([grey]).shape == (1, 1, 8, 8) and load_images([colour]).shape == (1, 3, 8, 8)
    assert load_images([grey, colour]).shape == (2, 1, 8, 8) and load_images([grey], channels=3).shape[1] == 3
    assert (load_images([clear]) == 255).all()  # what is transparent is white
    assert (load_images([deep]) == 255).all() and load_images([deep]).shape[1] == 1
    assert (load_images([one_bit]) == 255).all()


def test_damaged_images_are_skipped_and_named(tmp_path):
    for index in range(1, 40):
        save(picture(index), tmp_path / "d" / "train" / f"{index:02}.png")
    (tmp_path / "d" / "train" / "00.png").write_bytes(b"not an image")
    good = (tmp_path / "d" / "train" / "20.png").read_bytes()
    (tmp_path / "d" / "train" / "20.png").write_bytes(good[: len(good) // 2])
    source = str(tmp_path / "d")
    with pytest.raises(ValueError, match="00.png of .* cannot be read as an image"):
        load(DataConfig(source, strict=True))
    for _ in range(2):  # read, then cached
        with pytest.warns(UserWarning, match="2 images of d cannot be read: .*00.png, .*20.png"):
            dataset = load(DataConfig(source))
        assert len(dataset) == 38 and [Path(name).name for name in dataset.skipped] == ["00.png", "20.png"]
        assert dataset.images[:, 0, 0, 0].tolist() == [index for index in range(1, 40) if index != 20]
    with pytest.raises(ValueError, match="2 images of d cannot be read"):
        load(DataConfig(source, strict=True))


def test_labels_stay_with_their_images_when_one_is_skipped(tmp_path):
    write_table(tmp_path / "t", (1, -1, 3), label=[0, 0, 1], text=["x", "y", "z"])
    with pytest.warns(UserWarning, match="row 1"):
        dataset = load(DataConfig(str(tmp_path / "t")))
    assert dataset.labels.tolist() == [0, 1] and dataset.texts == ["x", "z"]


def test_load_images_and_mask_errors(tmp_path):
    good = save(picture(1), tmp_path / "good.png")
    large = save(picture(1, (16, 16)), tmp_path / "large.png")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:40])
    for call, words in [
        (lambda: load_images([]), "no image files"),
        (lambda: load_images([tmp_path / "none.png"]), "no image file at .*none.png"),
        (lambda: load_images([good, tmp_path / "cut.png"]), "cut.png cannot be read"),
        (lambda: load_images([good, large]), "good.png is 8x8 and .*large.png is 16x16"),
        (lambda: load_mask(large, 8, 8), "is 16x16 but the image is 8x8"),
        (lambda: load_mask(tmp_path / "none.png", 8, 8), "no image file"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def test_mask(tmp_path):
    array = np.zeros((4, 6), np.uint8)
    array[:2] = 255
    mask = load_mask(save(Image.fromarray(array), tmp_path / "mask.png"), 4, 6)
    assert mask.dtype == torch.bool and mask.tolist() == (array > 0).tolist()


# ------------------------------------------------------------------------------------------ transforms


def test_binarize():
    images = torch.tensor([0, 1, 127, 128, 255], dtype=torch.uint8).expand(2000, 5)
    assert binarize(images, "none") is images
    assert binarize(images, "threshold")[0].tolist() == [0, 0, 0, 255, 255]
    sampled = binarize(images, "sample", torch.Generator().manual_seed(0))
    assert sampled.dtype == torch.uint8 and set(sampled.unique().tolist()) == {0, 255}
    means = sampled.float().mean(0) / 255
    assert means[0] == 0 and means[-1] == 1 and torch.allclose(means, images[0] / 255, atol=0.04)
    with pytest.raises(ValueError, match="needs a torch.Generator"):
        binarize(images, "sample")
    with pytest.raises(ValueError, match="must be one of none, threshold, sample"):
        binarize(images, "round")


def test_augment_draws_from_the_generator_only():
    images = torch.arange(256).repeat(8).reshape(64, 1, 2, 16).to(torch.uint8)
    config = DataConfig("x", binarize="sample", flip=True)

    def draw(seed):
        return augment(Batch(images, texts=["t"] * 64), config, torch.Generator().manual_seed(seed))

    first = draw(0)
    assert torch.equal(first.images, draw(0).images) and not torch.equal(first.images, draw(1).images)
    assert first.images.dtype == torch.uint8 and first.texts == ["t"] * 64
    flipped = augment(Batch(images), DataConfig("x", flip=True), torch.Generator().manual_seed(0)).images
    turned = (flipped == images.flip(-1)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ turned).all() and 16 < turned.sum() < 48
    assert torch.equal(augment(Batch(images), DataConfig("x"), torch.Generator()).images, images)


# ------------------------------------------------------------------------------------------ cache


def test_a_cached_folder_loads_without_datasets(tmp_path):
    write_table(tmp_path / "t", label=[0, 1, 1], text=["x", "y", "z"])
    dataset = load(DataConfig(str(tmp_path / "t")))
    code = (
        "import sys; from chainrule.data import DataConfig, load\n"
        f"data = load(DataConfig({str(tmp_path / 't')!r}))\n"
        "assert 'datasets' not in sys.modules\n"
        "print(data.fingerprint, data.labels.tolist(), data.texts, data.class_names)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split("\n")[0] == f"{dataset.fingerprint} [0, 1, 1] ['x', 'y', 'z'] ('a', 'b')"


def test_the_cache_follows_the_files_and_the_transform(tmp_path):
    folder = tmp_path / "f" / "train"
    path = save(picture(1), folder / "1.png")
    first = load(DataConfig(str(folder.parent)))
    assert load(DataConfig(str(folder.parent), size=4)).image_shape == (3, 4, 4)
    save(picture(2), path)
    os.utime(path, ns=(1, 1))
    second = load(DataConfig(str(folder.parent)))
    assert second.images[0, 0, 0, 0] == 2 and second.fingerprint != first.fingerprint
    save(picture(2), folder / "2.png")
    assert len(load(DataConfig(str(folder.parent)))) == 2


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[: len(content) // 2], None])
@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json", "fingerprint-0-3"])
def test_a_damaged_cache_is_built_again(tmp_path, name, damage):
    write_table(tmp_path / "t", label=[0, 1, 1])
    before = load(DataConfig(str(tmp_path / "t")))
    (path,) = (tmp_path / "cache" / "data").glob(f"*/{name}")
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    after = load(DataConfig(str(tmp_path / "t")))
    assert torch.equal(before.images, after.images) and torch.equal(before.labels, after.labels)
    assert before.fingerprint == after.fingerprint and path.read_bytes() == content
    written = path.stat().st_mtime_ns
    load(DataConfig(str(tmp_path / "t")))
    assert path.stat().st_mtime_ns == written  # what is not damaged is left alone


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_damaged_arrays_are_computed_again(tmp_path, damage):
    def build(folder):
        built.append(folder)
        write_array(folder / "0.npy", np.arange(3))
        write_array(folder / "1.npy", np.ones((2, 2), np.uint8))

    built = []
    assert kept_arrays("key") is None
    cached_arrays("key", build)
    (path,) = (tmp_path / "cache" / "data").glob("*/1.npy")
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    assert kept_arrays("key") is None
    first, second = cached_arrays("key", build)
    assert first.tolist() == [0, 1, 2] and second.tolist() == [[1, 1], [1, 1]] and len(built) == 2
    assert [one.tolist() for one in kept_arrays("key")] == [first.tolist(), second.tolist()]


def test_a_full_disk_is_an_error_that_names_the_cache(tmp_path, monkeypatch):
    write_table(tmp_path / "t")
    words = (
        f"the cache folder {tmp_path / 'cache' / 'data'}/.* cannot be written .No space left on device: "
        "0.. kB are needed and 0.0 kB are free.; set CHAINRULE_CACHE to another folder"
    )
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        with pytest.raises(ValueError, match=words):
            load(DataConfig(str(tmp_path / "t")))
    assert not list((tmp_path / "cache" / "data").iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ValueError, match=r"the cache folder .* cannot be written \(File too large\)"):
            cached_arrays("key", lambda folder: create_array(folder / "0.npy", (9999,), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "cache" / "data").iterdir())


def test_room_is_reserved_before_an_array_is_mapped(tmp_path, monkeypatch):
    assert create_array(tmp_path / "a.npy", (1 << 20,), np.uint8).sum() == 0
    monkeypatch.delattr(os, "posix_fallocate")
    assert create_array(tmp_path / "b.npy", (1 << 20,), np.uint8).sum() == 0
    assert [os.stat(tmp_path / name).st_blocks * 512 > 1 << 20 for name in ("a.npy", "b.npy")] == [True, True]


def test_what_a_killed_process_left_in_the_cache_is_removed(tmp_path):
    left = tmp_path / "cache" / "data" / ".something.tmp" / ("0" * 16)
    left.mkdir(parents=True)
    (left / "images.npy").write_bytes(bytes(1000))
    write_table(tmp_path / "t")
    load(DataConfig(str(tmp_path / "t")))
    assert not left.parent.exists()


def test_writing_to_a_data_set_leaves_the_cache_alone(tmp_path):
    write_table(tmp_path / "t")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(DataConfig(str(tmp_path / "t"))).images.zero_()
    assert load(DataConfig(str(tmp_path / "t"))).images[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_fingerprint_depends_on_pixels_labels_and_texts(tmp_path):
    write_table(tmp_path / "0", label=[0, 1, 0], text=["x", "y", "z"])
    write_table(tmp_path / "1", label=[0, 1, 0], text=["x", "y", "z"])
    write_table(tmp_path / "2", label=[0, 1, 1], text=["x", "y", "z"])
    write_table(tmp_path / "3", label=[0, 1, 0], text=["x", "y", "w"])
    write_table(tmp_path / "4", (10, 20, 31), label=[0, 1, 0], text=["x", "y", "z"])
    prints = [load(DataConfig(str(tmp_path / str(index)))).fingerprint for index in range(5)]
    assert prints[0] == prints[1] and len(set(prints)) == 4 and len(prints[0]) == 16


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "options, words",
    [
        ({"source": ""}, "source is empty"),
        ({"split": "train[5]"}, "split must look like"),
        ({"size": 0}, "size must be a positive"),
        ({"size": (1, 2, 3)}, "pair"),
        ({"channels": 4}, "channels must be 1"),
        ({"levels": 1}, "levels must lie in 2..256"),
        ({"binarize": "yes"}, "binarize must be one of"),
    ],
)
def test_config_errors(options, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(**{"source": "x", **options})


def test_source_errors(tmp_path):
    write_table(tmp_path / "t", label=[0, 1, 0], number=[0, 1, -3])
    (tmp_path / "empty").mkdir()
    source = str(tmp_path / "t")
    for config, words in [
        (DataConfig(source, split="test"), "has no split 'test'; it has train"),
        (DataConfig(source, text_column="words"), "text_column is 'words', but the columns are image, label, number"),
        (DataConfig(source, label_column="number"), "row 2 of .* has the label -3, outside 0..1"),
        (DataConfig(str(tmp_path / "absent")), "no folder .*absent"),
        (DataConfig("./absent"), "no folder ./absent"),
        (DataConfig(str(tmp_path / "empty")), "neither images nor parquet"),
        (DataConfig(str(next((tmp_path / "t").iterdir()))), "is a file"),
    ]:
        with pytest.raises(ValueError, match=words):
            load(config)
    write_table(tmp_path / "bad", (-1,))
    with pytest.raises(ValueError, match="no image of .* can be read"):
        load(DataConfig(str(tmp_path / "bad")))
    assert not list((tmp_path / "cache").rglob("tmp-*"))


def test_a_split_of_unlabelled_images_has_no_labels(tmp_path):
    write_table(tmp_path / "t", number=[0, 1, 4])
    write_table(tmp_path / "t", split="test", number=[-1, -1, -1])
    train, test = (load(DataConfig(str(tmp_path / "t"), split, label_column="number")) for split in ("train", "test"))
    assert train.num_classes == 5 and train.class_names is None and test.labels is None


# ------------------------------------------------------------------------------------------ real data

SHELF = os.environ.get("CHAINRULE_DATA", "")


MNIST_IS_HERE = bool(SHELF) and (Path(SHELF) / "ylecun/mnist").is_dir()


@pytest.mark.skipif(not MNIST_IS_HERE, reason="CHAINRULE_DATA has no ylecun/mnist")
def test_mnist(monkeypatch):
    monkeypatch.setenv("CHAINRULE_DATA", SHELF)
    dataset = load(DataConfig("ylecun/mnist", split="test"))
    assert dataset.images.shape == (10_000, 1, 28, 28) and dataset.num_classes == 10
    assert dataset.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert dataset.images.float().mean().item() == pytest.approx(33.79, abs=0.01)
