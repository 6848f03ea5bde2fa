"""What a folder of images may hold: nothing is left out or misread without being said."""

import io
import json
import logging
import os
import struct
import sys
import tarfile
import types
import unicodedata
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from chainrule.core import class_number
from chainrule.data import DataConfig, ImageDataset, images, load, load_images, load_mask
from chainrule.recipe import build_recipe
from chainrule.text.bpe import train_bpe
from chainrule.training.engine.config import EvaluationConfig
from chainrule.training.tasks.captions import Captions
from chainrule.training.tasks.examples import Examples, load_examples


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("CHAINRULE_DATA", raising=False)


def picture(value: int = 0, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (8, 8), value if mode == "L" else (value, 50, 100))


def fill(folder: Path, count: int = 4, ending: str = "png") -> Path:
    """A folder of different pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture(index).save(folder / f"{index}.{ending}")
    return folder


def read(folder: Path, **options) -> tuple[ImageDataset, str]:
    """All images of the train split, or of the split given, and what loading said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load(DataConfig(str(folder), **options))
    return dataset, " ".join(str(one.message) for one in caught if issubclass(one.category, UserWarning))


def fates(dataset: ImageDataset) -> dict[str, int]:
    return {finding.fate: finding.count for finding in dataset.account.findings}


# ------------------------------------------------------------------------------------------ folders


def test_a_folder_called_train_beside_other_classes_is_a_class(tmp_path):
    for name in ("bus", "car", "train"):
        fill(tmp_path / name)
    dataset, said = read(tmp_path)
    assert dataset.class_names == ("bus", "car", "train") and "1 folder read as a class, not as a split" in said
    assert len(dataset) + len(read(tmp_path, split="test")[0]) == 12


def test_images_beside_folders_of_splits_are_left_out(tmp_path):
    for name in ("train", "val", "more"):
        fill(tmp_path / name)
    fill(tmp_path)
    dataset, said = read(tmp_path, split="validation")
    assert len(dataset) == 4 and "8 images left out (it lies beside the folders of splits): 0.png" in said
    assert fates(dataset) == {"left out": 8} and dataset.account.used == 4
    assert dataset.account.sizes == ((8, 8, 4),)


def test_one_stray_image_does_not_cost_the_classes(tmp_path):
    for name in ("cat", "__background__"):
        fill(tmp_path / name, 10)
    fill(tmp_path, 1)
    dataset, said = read(tmp_path)
    assert dataset.class_names == ("__background__", "cat") and "1 image left out" in said and "0.png" in said
    fill(tmp_path, 9)
    dataset, said = read(tmp_path)
    assert dataset.labels is None and "2 folders ignored as classes (9 images lie beside them" in said
    assert len(dataset) + len(read(tmp_path, split="test")[0]) == 29


def test_classes_at_different_depths_are_the_outer_folders(tmp_path):
    fill(tmp_path / "cat" / "more")
    fill(tmp_path / "cat")
    fill(tmp_path / "dog")
    assert read(tmp_path)[0].class_names == ("cat", "dog")


def test_hidden_images_are_counted_and_links_are_followed(tmp_path):
    fill(tmp_path / "pets" / "cat")
    fill(tmp_path / "pets" / ".hidden", 2)
    (tmp_path / "pets" / "cat" / "._0.png").write_bytes(b"a Mac's notes about 0.png")
    fill(tmp_path / "elsewhere")
    (tmp_path / "pets" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pets" / "dog" / "back").symlink_to(tmp_path / "pets")  # a ring
    dataset, said = read(tmp_path / "pets")
    assert "2 images left out (hidden" in said and ".hidden/0.png" in said and "._0" not in said
    assert dataset.class_names == ("cat", "dog")


def test_other_files_are_counted(tmp_path):
    fill(tmp_path)
    (tmp_path / "film.mov").write_bytes(b"film")
    (tmp_path / "notes.txt").write_text("bought in May")
    dataset, said = read(tmp_path)
    assert "1 file ignored (a kind that is not read: .mov): film.mov" in said and "notes" not in said
    assert [finding.examples for finding in dataset.account.findings] == [("film.mov",), ("notes.txt",)]
    assert dataset.texts is None
    picture().save(tmp_path / "portrait", "JPEG")
    assert "1 file ignored (an image without an ending such as .jpg in its name): portrait" in read(tmp_path)[1]


def test_what_was_said_of_one_split_is_not_repeated_of_another(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / split, 2)
    fill(tmp_path, 1)
    (tmp_path / "test" / "bad.png").write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_examples(DataConfig(str(tmp_path)), EvaluationConfig())
    said = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    assert len(said) == 2 and "lies beside" in said[0] and said[1].startswith("1 image of") and "bad.png" in said[1]


def test_a_folder_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    fill(tmp_path / "cat")
    whole = os.scandir

    def scandir(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="cat"):
        load(DataConfig(str(tmp_path)))


def test_names_in_no_encoding(tmp_path):
    for index in range(3):
        picture(index).save(os.fsencode(tmp_path) + b"/caf\xe9%d.png" % index, format="PNG")
    assert sum(len(read(tmp_path, split=split)[0]) for split in ("train", "test")) == 3


def test_missing_labels_and_captions_in_a_table(tmp_path):
    fill(tmp_path, 10)
    rows = [f'{index}.png,{"" if index == 3 else "ab"[index % 2]},"one, {index}"\n' for index in range(8)]
    (tmp_path / "metadata.csv").write_text("file_name,label,text\n" + "".join(rows) + "gone.png,a,gone\n")
    parts = [read(tmp_path, split=split) for split in ("train", "test")]
    (train, said), (test, _) = parts
    assert train.class_names == ("a", "b") and len(train) + len(test) == 7
    assert "1 row left out (there is no such image): line 10 of metadata.csv (gone.png)" in said
    assert sorted(train.texts + test.texts) == [f"one, {index}" for index in (0, 1, 2, 4, 5, 6, 7)]
    assert sum(fate.get("left out", 0) for fate in map(fates, (train, test))) >= 3


def test_a_table_of_datasets_with_missing_labels(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"image": [picture(index) for index in range(3)] + [None],
                                        "label": [0, None, 1, 0]})  # fmt: skip
    table.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "train-0.parquet"))
    fill(tmp_path, 2)
    dataset, said = read(tmp_path)
    assert dataset.labels.tolist() == [0, 1] and "row 1" in said
    assert "there is no image in the row" in said and "2 images left out (it lies beside tables)" in said


def test_few_or_odd_labels_are_ignored_and_said(tmp_path):
    fill(tmp_path / "train", 5)
    table = tmp_path / "train" / "metadata.jsonl"
    rows = [{"file_name": f"{index}.png", "label": 0.5} for index in range(5)]
    table.write_text("\n".join(map(json.dumps, rows)))
    dataset, said = read(tmp_path)
    assert dataset.labels is None and "5 labels ignored (not whole numbers, nor words; set label_column)" in said
    with pytest.raises(ValueError, match="must be whole numbers or words"):
        read(tmp_path, label_column="label")
    table.write_text('{"file_name": "0.png", "label": "cat"}')
    dataset, said = read(tmp_path)
    assert len(dataset) == 5 and "1 label ignored (only 1 of 5 images have one; set label_column): cat" in said
    assert len(read(tmp_path, label_column="label")[0]) == 1


def test_numbers_as_class_names(tmp_path):
    for name in ("1", "2", "10", unicodedata.normalize("NFD", "é")):
        fill(tmp_path / "a" / name)
    assert read(tmp_path / "a")[0].class_names == ("1", "10", "2", "é")
    for name in ("1", "2", "10"):
        fill(tmp_path / "b" / name)
    names = read(tmp_path / "b")[0].class_names
    assert names == ("1", "2", "10")
    assert [class_number(label, 3, names, "model") for label in ("1", 1, "10", 2)] == [0, 0, 2, 1]
    assert class_number(unicodedata.normalize("NFD", "é"), 2, ("a", "é"), "model") == 1
    for label in ("0", 3):
        with pytest.raises(ValueError, match="no class"):
            class_number(label, 3, names, "model")


# ------------------------------------------------------------------------------------------ captions


def captions(folder: Path, **options) -> list[str]:
    return sorted(text for split in ("train", "test") for text in read(folder, split=split, **options)[0].texts)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("ending", [".txt", ".TXT", ".caption", ".png.txt"])
def test_encodings_beside_images(tmp_path, encoding, ending):
    fill(tmp_path)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for index in range(4):
        text = f"{mark}café {index}\r\nanother\r\n"
        (tmp_path / f"{index}{ending}").write_bytes(text.encode(encoding))
    assert captions(tmp_path) == [f"café {index}" for index in range(4)]


@pytest.mark.parametrize("encoding", ["cp1252", "gbk"])
def test_another_encoding_is_refused_with_its_line(tmp_path, encoding):
    fill(tmp_path)
    (tmp_path / "captions.txt").write_bytes("0.png\tone\n1.png\té、\n".encode(encoding, "ignore"))
    with pytest.raises(ValueError, match=r"captions.txt is no text in UTF-8 \(line 2 .*save it in UTF-8"):
        load(DataConfig(str(tmp_path)))


TABLES = {
    "captions.txt": 'a/{0}.png\tsay "{0}"\n',
    "captions.tsv": 'file_name\ttext\na/0.png\t"say ""0"""\na\\1.png\t"say ""1"""\n',
    "captions.csv": 'filename,caption\na/0.png,"say ""0"""\na\\1.png,"say ""1"""\n',
    "metadata.csv": 'file_name;text\na/0.png;"say ""0"""\na/1.png;"say ""1"""\n',
    "captions.jsonl": '{{"file_name": "a/{0}.png", "caption": "say \\"{0}\\""}}\n',
    "metadata.jsonl": '{{"file_name": "a\\\\{0}.png", "text": ["say \\"{0}\\"", "other"]}}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_captions(tmp_path, name):
    fill(tmp_path / "a", 2)
    fill(tmp_path / "b", 2)
    line = TABLES[name]
    text = line if line.startswith("file") else "".join(line.format(index) for index in range(2))
    (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert captions(tmp_path) == ["", "", 'say "0"', 'say "1"']


def test_captions_above_the_splits_with_several_for_an_image(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / split, 2)
    rows = "".join(f"{split}/{index}.png,{split} {index}\n" for split in ("train", "test") for index in range(2))
    (tmp_path / "captions.txt").write_text("image,caption\n" + rows + "test/0.png,again\n")  # as Flickr8k has it
    assert read(tmp_path)[0].texts == ["train 0", "train 1"]
    assert read(tmp_path, split="test", captions="random")[0].texts == ["test 0\nagain", "test 1"]


def test_letters_of_a_mac(tmp_path):
    picture().save(tmp_path / f"{unicodedata.normalize('NFD', 'é')}.png")
    picture(9).save(tmp_path / "日本 語.png")
    (tmp_path / "captions.txt").write_text("é.png\tone\n日本 語.png\ttwo\n", encoding="utf-8")
    assert captions(tmp_path) == ["one", "two"]


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("metadata.csv", "file_name,text\n0.png,one, two\n", "metadata.csv, line 2: 3 values for the 2 columns"),
        ("metadata.csv", "a,b,c\n0.png,one,two\n", "metadata.csv, line 1 must name the columns"),
        ("captions.csv", 'file_name,text\n0.png,"one\n', "captions.csv, line 2: .*between quotes"),
        ("captions.jsonl", '{"file_name": "0.png", "text": "one"}\n{\n', "captions.jsonl, line 2: not valid JSON"),
        ("captions.jsonl", "[1]\n", "captions.jsonl, line 1: must be an object"),
        ("captions.jsonl", '{"text": "one"}\n', "captions.jsonl, line 1: no column among text names the images"),
    ],
)
def test_mistakes_in_tables(tmp_path, name, text, words):
    fill(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        load(DataConfig(str(tmp_path)))


def test_files_that_hold_no_caption(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name)
        for index in range(4):
            (tmp_path / name / f"{index}.png.json").write_text('{"title": "IMG_0", "description": ""}')
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    dataset, said = read(tmp_path)
    assert dataset.texts is None and dataset.class_names == ("cat", "dog") and said == ""


def test_captions_without_images_and_empty_ones_are_counted(tmp_path):
    fill(tmp_path / "train", 3)
    (tmp_path / "train" / "0.txt").write_text("zero")
    (tmp_path / "train" / "1.txt").write_text(" \n")
    (tmp_path / "train" / "9.txt").write_text("nine")
    dataset, said = read(tmp_path)
    assert dataset.texts == ["zero", "", ""] and "2 images without a caption: train/1.png, train/2.png" in said
    assert "1 caption file ignored (there is no image of that name): train/9.txt" in said


def examples(tmp_path: Path, **options) -> Examples:
    """Four captioned images in each split, the first of them with three captions and the last without any."""
    for split in ("train", "test"):
        folder = fill(tmp_path / split)
        for index, text in enumerate(("a\nb\nc", "d", "e")):
            (folder / f"{index}.txt").write_text(text)
    data = DataConfig(str(tmp_path), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_examples(data, EvaluationConfig(limit=2))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_of_several_captions_is_drawn_at_each_visit(tmp_path, dropout):
    found = examples(tmp_path, captions="random")
    reader = train_bpe(found.training.texts, 300, 4)
    captions = Captions(reader, found, dropout)
    visits = captions.draw(torch.zeros(100, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert {text.strip() for text in reader.decode(visits)} == {"a", "b", "c"}
    indices, generators = torch.tensor([1, 2, 3]), [torch.Generator().manual_seed(0) for _ in range(2)]
    assert [text.strip() for text in reader.decode(captions.draw(indices, generators[0]))] == ["d", "e", ""]
    assert torch.equal(captions.training, reader.encode(["a", "d", "e", ""]))
    assert torch.equal(captions.evaluation, reader.encode(["a", "d", "e", ""]))


def test_images_without_captions_are_left_out_where_every_image_needs_one(tmp_path):
    found = examples(tmp_path)
    kept = found.captioned()
    assert found.training.texts == ["a", "d", "e", ""]
    assert (
        kept.training.texts
        == kept.evaluation.texts
        == [
            "a",
            "d",
            "e",
        ]
    )
    assert torch.equal(kept.training.images, found.training.images[:3])
    bare = replace(found, training=replace(found.training, texts=[""] * 4))
    with pytest.raises(ValueError, match="images with captions are needed, but .* has none"):
        bare.captioned()


def test_a_prior_and_a_tokenizer_train_where_captions_are_missing(tmp_path):
    examples(tmp_path / "data")
    data = {"source": str(tmp_path / "data"), "size": 8}
    training = {"steps": 1, "batch_size": 4, "compile": False, "precision": "float32", "sample_every": 0}
    for model in (
        {"tokenizer": {"name": "vqvae", "codebook_size": 8, "width": 8}},
        {"prior": {"name": "parti", "width": 8, "encoder_layers": 1, "decoder_layers": 1, "num_heads": 1}, "text": {}},
    ):
        with pytest.warns(UserWarning, match="1 image without a caption: train/3.png"):
            task, _ = build_recipe({"data": data, "training": training} | model, "recipe").build()
        batch = task.batch(torch.arange(4), slice(0, 4), torch.Generator().manual_seed(0))
        assert task.loss(task.model, batch, 0.0)[0].isfinite()


def test_a_limited_evaluation_takes_images_at_equal_distances(tmp_path):
    for name in ("a", "b"):
        fill(tmp_path / "test" / name, 4)
    dataset, _ = read(tmp_path, split="test")
    assert dataset.spread(4).tolist() == [0, 2, 4, 6] and dataset.spread(None).tolist() == [*range(8)]
    assert dataset.select(dataset.spread(4)).labels.tolist() == [0, 0, 1, 1]
    assert dataset.spread(9).tolist() == [*range(8)]


# ------------------------------------------------------------------------------------------ archives


def content(index: int) -> bytes:
    buffer = io.BytesIO()
    picture(index).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_a_zip_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for number, name in enumerate(("cat", "dog")):
            for index in range(3):
                archive.writestr(f"pets/{name}/{index}.png", content(number))
        archive.writestr("__MACOSX/pets/._0.png", b"")
    dataset, said = read(tmp_path / "pets.zip")
    assert dataset.class_names == ("cat", "dog") and said == "" and dataset.name == "pets.zip"
    assert dataset.images[:, 0, 0, 0].tolist() == dataset.labels.tolist()
    assert read(tmp_path)[0].fingerprint == dataset.fingerprint  # the folder that holds it


@pytest.mark.parametrize("ending, mode", [("tar", "w"), ("tar.gz", "w:gz")])
def test_webdataset(tmp_path, ending, mode):
    for split, start in (("train", 0), ("val", 4)):
        files = {}
        for index in range(start, start + 4):
            files[f"{index:04}.png"] = content(index)
            files[f"{index:04}.json"] = json.dumps({"caption": f"number {index}", "width": 8}).encode()
            files[f"{index:04}.cls"] = str(index % 2).encode()
        tar(tmp_path / f"{split}-0000.{ending}", files, mode)
    dataset, said = read(tmp_path)
    assert said == "" and dataset.texts == [f"number {index}" for index in range(4)]
    assert dataset.labels.tolist() == [0, 1, 0, 1] and dataset.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert len(read(tmp_path, split="validation")[0]) == 4
    (tmp_path / f"more.{ending}").write_bytes(b"not an archive")
    assert f"1 archive left out (damaged or of an unknown kind): more.{ending}" in read(tmp_path)[1]


@pytest.mark.parametrize("kind", ["files", "webdataset", "parquet"])
def test_img2dataset(tmp_path, kind):
    import datasets

    rows = {"key": [], "caption": [], "url": [], "status": []}
    for shard in ("00000", "00001"):
        files = {}
        for index in range(2):
            key, caption = f"{shard}{index:04}", f"in {shard}, {index}"
            files |= {f"{key}.jpg": content(index), f"{key}.txt": caption.encode(),
                      f"{key}.json": json.dumps({"caption": caption, "status": "success"}).encode()}  # fmt: skip
            for name, value in zip(rows, (key, caption, "http://x", "success"), strict=True):
                rows[name].append(value)
        if kind == "webdataset":
            tar(tmp_path / f"{shard}.tar", files)
        elif kind == "files":
            for name, data in files.items():
                (tmp_path / shard).mkdir(exist_ok=True)
                (tmp_path / shard / name).write_bytes(data)
        (tmp_path / f"{shard}_stats.json").write_text("{}")
        table = {name: values[-2:] for name, values in rows.items()}
        if kind == "parquet":
            table["jpg"] = [content(0), content(1)]
        datasets.Dataset.from_dict(table).to_parquet(str(tmp_path / f"{shard}.parquet"))
    found = [read(tmp_path)] if kind == "parquet" else [read(tmp_path, split=split) for split in ("train", "test")]
    assert sorted(text for one, _ in found for text in one.texts) == sorted(rows["caption"])
    assert all(one.labels is None and said == "" for one, said in found)


# ------------------------------------------------------------------------------------------ images


def saved(tmp_path: Path, image: Image.Image, name: str, **options) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.float32([[0, 0.5], [1, 1.02]]), [0, 128, 255, 255]),
        (np.float32([[-1, 0], [0.5, 1]]), [0, 128, 191, 255]),
        (np.float32([[0, 10], [100, 255]]), [0, 10, 100, 255]),
        (np.uint16([[0, 257], [32768, 65535]]), [0, 1, 127, 255]),
        (np.int32([[0, 1], [100, 255]]), [0, 1, 100, 255]),
        (np.int32([[0, 257], [25700, 65535]]), [0, 1, 100, 255]),
        (np.int32([[-32768, 0], [0, 32767]]), [0, 128, 128, 255]),
    ],
)
def test_deep_images_are_scaled_by_their_range(tmp_path, values, expected):
    path = saved(tmp_path, Image.fromarray(values), "deep.tif")
    assert load_images([path]).flatten().tolist() == pytest.approx(expected, abs=1)


def test_values_without_a_range_are_refused(tmp_path):
    for value, words in ((1e9, "values from 0 to 1e"), (np.nan, "values that are not finite")):
        path = saved(tmp_path, Image.fromarray(np.float32([[0, value]])), "wild.tif")
        with pytest.raises(ValueError, match=f"wild.tif cannot be read as an image: it holds {words}"):
            load_images([path])


def test_a_damaged_image_is_told_in_words_of_ours_alone(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # without handlers, Python prints what libraries log
    path = Path(saved(tmp_path, Image.new("I;16", (8, 8)), "scale.im"))
    path.write_bytes(path.read_bytes().replace(b"File size (no of images): 1", b"Scale (x,y): 1@2,3"))
    with pytest.raises(ValueError, match=r"scale.im cannot be read as an image: damaged$"):
        load_images([path])
    path = Path(saved(tmp_path, Image.new("RGB", (8, 8)), "samples.tif"))
    samples = struct.pack("<HHIH", 277, 3, 1, 3)
    assert samples in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(samples, struct.pack("<HHIH", 277, 3, 1, 2048)))
    with pytest.raises(ValueError, match="samples.tif cannot be read as an image: not an image"):
        load_images([path])
    assert capfd.readouterr().err == ""


def test_modes_and_alpha(tmp_path):
    red = Image.new("P", (8, 8), 1)
    red.putpalette([0, 0, 0, 200, 0, 0])
    assert load_images([saved(tmp_path, red, "palette.png")])[0, :, 0, 0].tolist() == [200, 0, 0]
    assert (load_images([saved(tmp_path, red, "clear.png", transparency=1)]) == 255).all()
    half = Image.new("LA", (8, 8), (0, 128))
    assert load_images([saved(tmp_path, half, "half.png")]).unique().tolist() == [127]
    printed = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert load_images([saved(tmp_path, printed, "cmyk.jpg", quality=100)])[0, :, 0, 0].tolist() == [0, 255, 255]


def test_a_colour_profile_of_a_printer_is_used(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ImageCms, "ImageCmsProfile", lambda file: asked.append(file.read()) or "printer")
    monkeypatch.setattr(ImageCms, "profileToProfile", lambda image, *_, **options: Image.new("RGB", image.size, "blue"))
    path = saved(tmp_path, Image.new("CMYK", (8, 8)), "cmyk.tif", icc_profile=b"profile")
    assert load_images([path])[0, :, 0, 0].tolist() == [0, 0, 255] and asked == [b"profile"]


@pytest.mark.parametrize("mode, name", [("CMYK", "a.tif"), ("RGB", "a.png")])
def test_a_damaged_profile_is_no_obstacle(tmp_path, mode, name):
    path = saved(
        tmp_path, Image.new(mode, (8, 8), (0,) * len(mode) if mode == "CMYK" else "white"), name, icc_profile=b"x"
    )
    assert (load_images([path]) == 255).all()


def test_colours_of_another_profile_become_srgb(tmp_path):
    """A profile whose red and blue are exchanged; one of sRGB changes nothing."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red = Image.new("RGB", (8, 8), "red")
    assert load_images([saved(tmp_path, red, "a.png", icc_profile=srgb)])[0, :, 0, 0].tolist() == [255, 0, 0]
    other = srgb.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    other = other.replace(b"s\0R\0G\0B", b"o\0t\0h\0r").replace(b"sRGB", b"othr")
    assert load_images([saved(tmp_path, red, "b.png", icc_profile=other)])[0, :, 0, 0].tolist() == [0, 0, 255]


def test_other_colour_spaces(tmp_path):
    lab = Image.new("LAB", (8, 8), (255, 128, 128))
    assert load_images([saved(tmp_path, lab, "lab.tif")], channels=3).min() > 250


def test_damaged_exif_data_are_no_obstacle(tmp_path):
    path = saved(tmp_path, picture(9), "a.jpg", exif=b"Exif\0\0II*\0" + bytes(3), quality=95)
    assert load_images([path])[0, 0, 0, 0] == pytest.approx(9, abs=3)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_orientation(tmp_path, ending):
    array = np.zeros((32, 64, 3), np.uint8)
    array[:, :32] = 255  # the left half, which is the top when the camera was turned
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    path = saved(tmp_path, Image.fromarray(array), f"turned.{ending}", exif=exif)
    found = load_images([path])
    assert images.decode(path, (16, 16), 3).height_width == (64, 32)
    assert found.shape == (1, 3, 64, 32) and found[0, 0, 4, 4] > 250 and found[0, 0, -4, 4] < 5
    small = load_images([path], size=(16, 8))
    assert small.shape == (1, 3, 16, 8) and small[0, 0, 1, 4] > 240 and small[0, 0, -2, 4] < 15


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation_is_used_and_said(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    picture(7).save(tmp_path / "b.png")
    parts = [read(tmp_path, split=split) for split in ("train", "test")]
    assert "1 image read in part (an animation; its first frame is used): a" in " ".join(said for _, said in parts)
    reds = sorted(value for one, _ in parts for value in one.images[:, 0, 4, 4].tolist())
    assert reds[0] == 7 and reds[1] > 250


def test_colour_that_becomes_grey_is_said(tmp_path):
    folder = fill(tmp_path / "train", 3)
    picture(0, "L").save(folder / "0.png")
    dataset, said = read(tmp_path)
    assert dataset.image_shape[0] == 1 and "2 images turned grey (the first image is grey" in said
    assert "grey" not in read(tmp_path, channels=1)[1]


def test_why_an_image_cannot_be_read(tmp_path, monkeypatch):
    folder = fill(tmp_path / "train", 8, "jpg")
    whole = (folder / "7.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(b"")
    (folder / "2.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    (folder / "3.jpg").write_bytes(b"<html>")
    (folder / "4.jpg").unlink()
    (folder / "4.jpg").symlink_to(folder / "gone.jpg")
    Image.new("1", (60, 60)).save(folder / "6.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    dataset, said = read(tmp_path)
    assert len(dataset) == 4 and len(dataset.skipped) == 5 and "5 images of" in said and "1: truncated; " in said
    reasons = {finding.reason: finding.examples for finding in dataset.account.findings}
    assert reasons["an empty file"] == ("train/1.jpg",) and reasons["truncated"] == ("train/2.jpg",)
    assert reasons["not an image, or of an unknown kind"] == ("train/3.jpg",)
    assert reasons["it cannot be opened, No such file or directory"] == ("train/4.jpg",)
    assert reasons["more than 2,000 pixels, the limit of Pillow; make it smaller"] == ("train/6.png",)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(80)


@pytest.fixture
def formats():
    """The formats that Pillow knows are afterwards those of before."""
    Image.init()
    tables = (Image.OPEN, Image.SAVE, Image.EXTENSION, Image.MIME)
    before, names = [dict(table) for table in tables], list(Image.ID)
    yield
    images.heic_is_readable.cache_clear()
    Image.ID[:] = names
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture
def heif(monkeypatch, formats):
    """Makes pillow-heif present, as a module that reads every HEIC file as a red picture, or absent."""

    def install(module: object) -> None:
        images.heic_is_readable.cache_clear()
        monkeypatch.setitem(sys.modules, "pillow_heif", module)

    return install


def test_heic(tmp_path, heif):
    folder = fill(tmp_path / "train", 2)
    for index in range(5):
        (folder / f"IMG_{index}.HEIC").write_bytes(HEIC)
    heif(None)
    dataset, said = read(tmp_path)
    assert len(dataset) == 2 and len(dataset.skipped) == 5
    assert "5 images of" in said and '(HEIC; pip install "chainrule[heic]" reads it); left out' in said

    def register() -> None:
        Image.register_open("HEIF", lambda file, name: Image.new("RGB", (8, 8), "red"), lambda start: b"heic" in start)

    heif(types.SimpleNamespace(register_heif_opener=register))
    dataset, said = read(tmp_path)  # although no file has changed
    assert len(dataset) == 7 and said == "" and dataset.images[-1, :, 0, 0].tolist() == [255, 0, 0]


def test_real_heic_files(tmp_path, formats):
    pytest.importorskip("pillow_heif").register_heif_opener()
    folder = fill(tmp_path / "train", 2)
    picture = Image.new("RGB", (24, 16), "red")
    picture.paste("blue", (0, 8, 24, 16))
    picture.save(folder / "phone.heic", format="HEIF", quality=95)
    (folder / "cut.heic").write_bytes((folder / "phone.heic").read_bytes()[:200])
    dataset, said = read(tmp_path, size=8)
    assert len(dataset) == 3 and "1 image of" in said and "cut.heic" in said
    top, bottom = dataset.images[-1, :, 0, 4].tolist(), dataset.images[-1, :, -1, 4].tolist()
    assert np.allclose(top, (255, 0, 0), atol=12) and np.allclose(bottom, (0, 0, 255), atol=12)


@pytest.mark.parametrize("resize, corner", [("crop", 0), ("pad", 255), ("stretch", 0)])
def test_resizing(tmp_path, resize, corner):
    array = np.zeros((16, 32, 3), np.uint8)
    array[:, 24:] = 200
    folder = tmp_path / "train"
    folder.mkdir()
    Image.fromarray(array).save(folder / "wide.png")
    dataset, _ = read(tmp_path, size=8, resize=resize)
    assert dataset.image_shape == (3, 8, 8) and dataset.images[0, 0, 0, 0] == corner
    assert (dataset.images[0, 0, 4, -1] > 150) == (resize != "crop")
    assert dataset.account.sizes == ((16, 32, 1),)


def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path, monkeypatch):
    y, x = np.mgrid[:512, :768]
    path = saved(tmp_path, Image.fromarray(np.stack([y // 2, x // 3, x * 0], -1).astype(np.uint8)), "large.jpg")
    asked = []
    whole = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: asked.append(self.size) or whole(self, *a, **k))
    small = load_images([path], size=32)
    assert asked == [(96, 64)]
    full = np.asarray(Image.open(path).crop((128, 0, 640, 512)).reduce(16))
    assert np.abs(small[0].permute(1, 2, 0).numpy().astype(int) - full).mean() < 2


# ------------------------------------------------------------------------------------------ masks


def halves(low: int, high: int, dtype: type = np.uint8) -> np.ndarray:
    array = np.full((4, 6), high, dtype)
    array[2:] = low
    return array


@pytest.mark.parametrize("name", ["black and white", "0 and 1", "16 bits", "classes", "colour", "alpha", "soft"])
def test_masks(tmp_path, name):
    if name == "classes":
        image = Image.fromarray(halves(0, 1)).convert("P")
        image.putpalette([0, 0, 0, 128, 0, 0])
    elif name == "alpha":
        image = Image.fromarray(np.dstack([halves(9, 9)] * 3 + [halves(0, 255)]))
    elif name == "soft":
        array = halves(3, 250)
        array[0, 0], array[3, 3] = 140, 100
        image = Image.fromarray(array)
    else:
        image = Image.fromarray({"0 and 1": halves(0, 1), "16 bits": halves(0, 1, np.uint16)}.get(name, halves(0, 255)))
        image = image.convert("RGB") if name == "colour" else image
    known = load_mask(saved(tmp_path, image, "mask.png"), 4, 6)
    assert known.dtype == torch.bool and known.tolist() == halves(0, 1).astype(bool).tolist()


@pytest.mark.parametrize("value, word", [(255, "everything"), (0, "nothing")])
def test_a_mask_of_one_value_is_refused(tmp_path, value, word):
    path = saved(tmp_path, Image.fromarray(np.full((4, 6), value, np.uint8)), "mask.png")
    with pytest.raises(ValueError, match=f"mask.png keeps {word}; it must be white"):
        load_mask(path, 4, 6)
