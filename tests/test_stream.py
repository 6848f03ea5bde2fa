"""Images that are read once: folders, tar files and tables, straight into codes."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import chainrule
import chainrule.data.sources.folder as sources
import chainrule.data.stream as streams
from chainrule.data import DataConfig
from chainrule.recipe import build_recipe
from chainrule.tokenizers.vqvae import VQVAE

CPU = torch.device("cpu")


def picture(number: int) -> bytes:
    """A PNG file of 8x8 pixels."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def tokenizer(tmp_path):
    options = {"image_height": 8, "image_width": 8, "image_channels": 3, "codebook_size": 32, "embedding_dim": 4}
    model = chainrule.create("vqvae", width=8, num_blocks=1, residual_width=4, **options)
    chainrule.save(model, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def folder(tmp_path):
    """Two classes, with captions, and a folder of held-out images."""
    for split, count in (("train", 12), ("test", 4)):
        for number in range(count):
            path = tmp_path / "pictures" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
            path.with_suffix(".txt").write_text(f"caption {number}")
    return tmp_path / "pictures"


def recipe(tokenizer: Path, folder: Path, **options):
    data = {"source": str(folder), "size": 8, "stream": True} | options
    gpt = {"name": "gpt", "width": 16, "num_layers": 1, "num_heads": 2}
    return {
        "data": data, "tokenizer": {"path": str(tokenizer)}, "prior": gpt,
        "training": {"steps": 2, "batch_size": 4, "compile": False}, "evaluation": {"every": 1, "batch_size": 3},
    }  # fmt: skip


def batches(mapping):
    task, full = build_recipe(mapping, "r").build(CPU, True)
    task.setup(CPU)
    found = [task.batch(torch.tensor([5, 0, 11]), slice(0, 3), torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    return task, full, found


@pytest.mark.parametrize("flip", [False, True])
def test_a_stream_gives_the_batches_of_a_folder(tokenizer, folder, monkeypatch, flip):
    monkeypatch.setattr(streams, "SHARD", 6)
    task, full, streamed = batches(recipe(tokenizer, folder, flip=flip))
    plain, _, whole = batches(recipe(tokenizer, folder, flip=flip, stream=False))
    for one, other in zip(streamed, whole, strict=True):
        assert torch.equal(one.codes[0], other.codes[0]) and torch.equal(one.labels, other.labels)
    assert task.training.class_names == plain.training.class_names == ("a", "b") and full.prior.options["num_classes"]
    assert list(task.training.texts) == plain.training.texts
    assert task.evaluate(task.model, True).keys() == plain.evaluate(plain.model, True).keys()


def test_only_what_changed_is_encoded_again(tokenizer, folder, monkeypatch):
    monkeypatch.setattr(streams, "SHARD", 4)
    seen, encode = [], VQVAE.encode
    monkeypatch.setattr(VQVAE, "encode", lambda self, images: seen.append(len(images)) or encode(self, images))
    first, _, _ = batches(recipe(tokenizer, folder))
    assert sum(seen) == 16
    (folder / "train" / "b" / "9.png").write_bytes(picture(99))
    second, _, _ = batches(recipe(tokenizer, folder))
    assert sum(seen) == 18 and first.training.fingerprint != second.training.fingerprint


def test_tar_files_as_webdataset_writes_them(tokenizer, tmp_path):
    source = tmp_path / "tars"
    source.mkdir()
    for name, numbers in (("train-0000", range(5)), ("train-0001", range(5, 12)), ("test-0000", range(12, 15))):
        with tarfile.open(source / f"{name}.tar", "w") as archive:
            for number in numbers:
                files = {"png": picture(number), "cls": str(number % 3).encode(), "txt": f"caption {number}".encode()}
                for suffix, content in files.items():
                    entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    task, _, found = batches(recipe(tokenizer, source))
    assert len(task.training) == 12 and len(task.evaluation) == 3 and task.training.num_classes == 3
    assert found[0].labels.tolist() == [2, 0, 2] and task.training.texts[7] == "caption 7"
    images = torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(picture(n))))) for n in (5, 0, 11)])
    assert torch.equal(task.tokenizer.encode(images.permute(0, 3, 1, 2))[0], found[0].codes[0])


def table(numbers: range, labels: list, kind: datasets.features.Value | datasets.ClassLabel) -> datasets.Dataset:
    """Rows of the pictures of these numbers."""
    features = {"picture": datasets.Image(), "label": kind, "caption": datasets.Value("string")}
    images = [{"bytes": picture(number), "path": None} for number in numbers]
    columns = {"picture": images, "label": labels, "caption": [f"caption {number}" for number in numbers]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture
def tables(tmp_path):
    """A folder of parquet files with names of classes."""
    for name, numbers in (("train-0", range(5)), ("train-1", range(5, 12)), ("test-0", range(12, 15))):
        found = table(numbers, [number % 3 for number in numbers], datasets.ClassLabel(names=["x", "y", "z"]))
        found.to_parquet(tmp_path / "tables" / f"{name}.parquet")
    return tmp_path / "tables"


@pytest.mark.parametrize("saved", [False, True])
def test_tables_are_read_row_by_row(tokenizer, tables, tmp_path, monkeypatch, saved):
    if saved:
        monkeypatch.setattr(sources, "SHARD", 5)
        found = datasets.load_dataset(str(tables), cache_dir=str(tmp_path / "loaded"))
        tables = tmp_path / "saved"
        found.save_to_disk(str(tables))
    seen, encode = [], VQVAE.encode
    monkeypatch.setattr(VQVAE, "encode", lambda self, images: seen.append(len(images)) or encode(self, images))
    task, _, streamed = batches(recipe(tokenizer, tables))
    assert seen == ([4, 4, 4, 3] if saved else [5, 7, 3])
    plain, _, whole = batches(recipe(tokenizer, tables, stream=False))
    for one, other in zip(streamed, whole, strict=True):
        assert torch.equal(one.codes[0], other.codes[0]) and torch.equal(one.labels, other.labels)
    assert task.training.class_names == plain.training.class_names == ("x", "y", "z")
    assert list(task.training.texts) == plain.training.texts


def test_only_the_file_of_a_table_that_changed_is_read_again(tokenizer, tables, monkeypatch):
    batches(recipe(tokenizer, tables))
    seen, encode = [], VQVAE.encode
    monkeypatch.setattr(VQVAE, "encode", lambda self, images: seen.append(len(images)) or encode(self, images))
    kind = datasets.ClassLabel(names=["x", "y", "z"])
    table(range(20, 29), [0] * 9, kind).to_parquet(tables / "train-1.parquet")
    task, _, _ = batches(recipe(tokenizer, tables))
    assert seen == [9] and len(task.training) == 14


def test_a_stream_of_the_hub(tokenizer, tables, monkeypatch):
    build = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: build(str(tables)))
    monkeypatch.setattr("chainrule.data.sources.hub.hub_answers", lambda: True)
    task, _, _ = batches(recipe(tokenizer, "someone/pictures"))
    assert len(task.training) == 12 and task.training.name == "someone/pictures" and task.training.path is None


def test_words_are_no_labels_of_a_stream(tokenizer, tmp_path):
    for split in ("train", "test"):
        rows = table(range(12), [*"abcabcabcabc"], datasets.Value("string"))
        rows.to_parquet(tmp_path / "words" / f"{split}.parquet")
    with pytest.warns(UserWarning, match="ignored"):
        task, _, _ = batches(recipe(tokenizer, tmp_path / "words"))
    assert task.training.labels is None and task.training.account.findings[0].fate == "ignored"
    with pytest.raises(ValueError, match="labels of a stream must be whole numbers"):
        batches(recipe(tokenizer, tmp_path / "words", label_column="label"))


def test_a_damaged_table_is_named(tokenizer, tables):
    (tables / "train-1.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(ValueError, match="tables cannot be read as a data set"):
        build_recipe(recipe(tokenizer, tables), "r").build(CPU, True)


def test_names_are_sorted_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "RUN", 3)
    names = [f"{number * 7 % 20:02d}.png" for number in range(20)]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert list(streams._sorted(streams._walk(bytes(tmp_path), b""), tmp_path)) == sorted(map(str.encode, names))


def test_a_prior_is_trained_on_a_stream(tokenizer, folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tokenizer, folder, strict=True)))
    result = chainrule.train(tmp_path / "recipe.yaml", tmp_path / "run", quiet=True)
    assert result.steps == 2 and result.metrics["nats"] > 0
    assert chainrule.load(tmp_path / "run").class_names == ("a", "b")


def test_options_that_a_stream_does_not_have(tokenizer, folder):
    for options, said in (
        ({"split": "train[:5]"}, "no slices"),
        ({"captions": "random"}, "reads each image once"),
        ({"source": str(tokenizer)}, "no pictures"),
        ({"source": "nowhere"}, "nowhere is no folder here"),
    ):
        with pytest.raises(ValueError, match=said):
            build_recipe(recipe(tokenizer, folder, **options), "r").build(CPU, True)
    mapping = {"data": {"source": str(folder), "stream": True}, "prior": {"name": "pixelcnn"}}
    with pytest.raises(ValueError, match="tar files or tables, or the hub, not shapes"):
        streams.open_stream(DataConfig("shapes", size=32), folder)
    with pytest.raises(ValueError, match="stream is for priors"):
        build_recipe(mapping, "r").build(CPU, True)
    assert DataConfig("x").stream is False


def test_damaged_tar_files_are_named(tokenizer, tmp_path):
    (tmp_path / "train-0.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match="train-0.tar is a damaged tar file"):
        build_recipe(recipe(tokenizer, tmp_path), "r").build(CPU, True)
