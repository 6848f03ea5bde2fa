"""Reading one split of images, labels and captions through `datasets`, which is imported only here and inside.

Rows are decoded by `images`, not by `datasets`, so that one damaged file among thousands can be skipped.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from . import cache, images

if TYPE_CHECKING:
    from .sources import DataConfig

IMAGE_COLUMNS = ("image", "img", "images", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "description")
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
CHUNK, TASK = 1024, 64
"""Rows read at once, and rows decoded by a thread at once."""


def build(config: DataConfig, split: str, local: Path | None, target: Path) -> dict[str, Any]:
    """Decodes one split into `target`, see `cache.cached`."""
    import datasets

    with cache.scratch() as scratch:
        tables, are_images = _tables(config, local, scratch)
        unsplit = are_images and not _split_folders(local)
        known = ["train", "test"] if unsplit else list(tables)
        if split not in known:
            raise ValueError(f"{config.source} has no split {split!r}; it has {', '.join(known)}")
        table = tables["train" if unsplit else split]
        image_column = _image_column(config, table)
        label_column = _column(config.label_column, "label_column", LABEL_COLUMNS, table)
        text_column = _column(config.text_column, "text_column", TEXT_COLUMNS, table)
        table = table.cast_column(image_column, datasets.Image(decode=False))
        labels, class_names, num_classes = _labels(tables, table, label_column, config)
        texts = None if text_column is None else [_text(value) for value in table[text_column]]
        names = [f"row {row}" for row in range(len(table))]
        rows = list(range(len(table)))
        if are_images:
            paths = [cell["path"] for cell in table[image_column]]
            names = [os.path.relpath(path, local.resolve()) for path in paths]
            rows.sort(key=names.__getitem__)
            texts = texts if texts is not None else _sidecar_captions(local, names)
            if unsplit:
                kept = _hash_split([names[row] for row in rows], split)
                rows = [rows[index] for index in kept]
        if not rows:
            raise ValueError(f"the split {split} of {config.source} has no images")
        cells = table.select_columns([image_column]).select(rows)
        kept, skipped = _decode_rows(config, cells, image_column, [names[row] for row in rows], target)
        rows = [rows[index] for index in kept]
        if labels is not None:
            np.save(target / "labels.npy", labels[rows])
        return {
            "count": len(rows),
            "texts": None if texts is None else [texts[row] for row in rows],
            "class_names": class_names,
            "num_classes": num_classes,
            "skipped": skipped,
        }


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of `datasets` inside."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _tables(config: DataConfig, local: Path | None, scratch: Path) -> tuple[dict[str, Any], bool]:
    """Split -> `datasets.Dataset`, and whether they are image files; nothing is written but below `scratch`."""
    import datasets

    if local is None:
        try:
            return datasets.load_dataset(config.source), False
        except Exception as error:
            raise ValueError(
                f"the data set {config.source} is no folder here or in CHAINRULE_DATA and could not be fetched "
                f"from the hub ({_reason(error)})"
            ) from error
    files = [name for name, _, _ in cache.listing(local)]
    saved = {"dataset_dict.json", "state.json"}.intersection(files)
    are_images = not saved and not any(name.endswith((".parquet", ".arrow")) for name in files)
    try:
        with quiet():
            if saved:
                tables = datasets.load_from_disk(str(local))
            elif are_images:
                tables = datasets.load_dataset("imagefolder", **_image_options(local, files), cache_dir=str(scratch))
            else:
                tables = datasets.load_dataset(str(local), cache_dir=str(scratch))
    except Exception as error:
        raise ValueError(f"the folder {local} cannot be read as a data set ({_reason(error)})") from error
    return (tables if isinstance(tables, dict) else {"train": tables}), are_images


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _split_folders(local: Path) -> dict[str, str]:
    """Split -> name of its subfolder."""
    children = sorted(child.name for child in local.iterdir() if child.is_dir())
    return {SPLIT_FOLDERS[name.lower()]: name for name in children if name.lower() in SPLIT_FOLDERS}


def _image_options(local: Path, files: list[str]) -> dict[str, Any]:
    """Options for "imagefolder": a glob for each split, and no classes named after splits."""
    paths = [Path(name) for name in files if Path(name).suffix.lower() in Image.registered_extensions()]
    if not paths:
        raise ValueError("it holds neither images nor parquet or arrow files")
    base, splits = glob.escape(str(local.resolve())), _split_folders(local)
    flat = any(len(path.parts) == (2 if path.parts[0] in splits.values() else 1) for path in paths)
    patterns = {split: f"{base}/{glob.escape(name)}/**" for split, name in splits.items()}
    return {"data_files": patterns or {"train": f"{base}/**"}, "drop_labels": True if flat else None}


def _hash_split(paths: list[str], split: str) -> list[int]:
    """Rows of "train" or "test": the twentieth of the names with the smallest hashes, one at least, is "test"."""
    order = sorted(range(len(paths)), key=lambda row: hashlib.sha256(paths[row].encode()).digest())
    held = set(order[: max(1, round(len(paths) / 20))])
    return [row for row in range(len(paths)) if (row in held) == (split == "test")]


def _decode_rows(
    config: DataConfig, table: Any, column: str, names: list[str], target: Path
) -> tuple[list[int], list[str]]:
    """Writes images.npy; returns the rows that could be read, and the names of those that could not."""
    from datasets.utils import tqdm

    array = first = None
    channels, kept, skipped = config.channels, [], []

    def attempt(cells: list[dict[str, Any]]) -> list[np.ndarray | Exception]:
        found = []
        for cell in cells:
            try:
                found.append(images.decode(cell["bytes"] or cell["path"], config.height_width, channels))
            except Exception as error:  # PIL raises nearly anything on a damaged file
                found.append(error)
        return found

    def decoded() -> Iterator[np.ndarray | Exception]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for chunk in table.iter(batch_size=CHUNK):
                cells = chunk[column]
                while cells and channels is None:  # until the first image, one by one: it decides the channels
                    yield attempt([cells.pop(0)])[0]
                tasks = [cells[start : start + TASK] for start in range(0, len(cells), TASK)]
                for found in pool.map(attempt, tasks):
                    yield from found

    rows = tqdm(decoded(), total=len(names), delay=5, mininterval=1, desc=f"decoding {config.source}", leave=False)
    for row, image in enumerate(rows):
        if isinstance(image, Exception):
            if config.strict:
                raise ValueError(
                    f"{names[row]} of {config.source} cannot be read as an image ({_reason(image)}); "
                    "repair or remove it, or set strict to false"
                ) from image
            skipped.append(names[row])
            continue
        if array is None:
            array = np.lib.format.open_memmap(target / "images.npy", "w+", np.uint8, (len(names), *image.shape))
            first, channels = image, len(image)
        images.check_equal(names[kept[0] if kept else row], first, names[row], image)
        array[len(kept)] = image
        kept.append(row)
    if array is None:
        raise ValueError(f"no image of {config.source} can be read; the first is {names[0]}")
    array.flush()
    return kept, skipped


def _column(name: str | None, option: str, guesses: tuple[str, ...], table: Any) -> str | None:
    """The column of a name, or the first of the guesses that is there."""
    if name is not None and name not in table.column_names:
        raise ValueError(f"{option} is {name!r}, but the columns are {', '.join(table.column_names)}")
    return name or next((guess for guess in guesses if guess in table.column_names), None)


def _image_column(config: DataConfig, table: Any) -> str:
    import datasets

    typed = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    found = _column(config.image_column, "image_column", (*typed, *IMAGE_COLUMNS), table)
    if found is None:
        raise ValueError(
            f"{config.source} has no column of images among {', '.join(table.column_names)}; set image_column"
        )
    return found


def _labels(
    tables: dict[str, Any], table: Any, column: str | None, config: DataConfig
) -> tuple[np.ndarray | None, list[str] | None, int | None]:
    """Labels int64 (N,), names and number of classes; numbers and names are those of all splits together."""
    if column is None:
        return None, None, None
    everywhere = [value for other in tables.values() if column in other.column_names for value in other.unique(column)]
    if all(isinstance(value, str) for value in everywhere):
        class_names = sorted(set(everywhere))
        index = {name: number for number, name in enumerate(class_names)}
        return np.array([index[value] for value in table[column]], np.int64), class_names, len(class_names)
    class_names = getattr(table.features[column], "names", None)
    if not all(isinstance(value, int) for value in everywhere):
        if config.label_column is None:  # a guess that was wrong
            return None, None, None
        raise ValueError(f"the column {column} of {config.source} must hold whole numbers or words; set label_column")
    labels = np.array(table[column], np.int64)
    if len(labels) and (labels == -1).all():  # how the hub marks a split without labels
        return None, None, None
    num_classes = len(class_names) if class_names else max(everywhere) + 1
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} of {config.source} has the label {labels[wrong[0]]}, outside 0..{num_classes - 1}; "
            "correct it, or set label_column to another column"
        )
    return labels, class_names, num_classes


def _text(value: Any) -> str:
    """A caption; the first where there are several, empty where there is none."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else "" if not value else str(value)


def _sidecar_captions(local: Path, names: list[str]) -> list[str] | None:
    """Captions from captions.txt files or from a.txt beside a.png; None where there is neither."""
    captions: dict[str, str] = {}
    for file in sorted(local.rglob("captions.txt")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            name, tab, caption = line.partition("\t")
            if tab:
                captions[os.path.relpath(file.parent / name, local)] = caption.strip()
            elif line.strip():
                raise ValueError(f'line {number} of {file} must be "file<TAB>caption", got {line!r}')
    if not captions:
        for name in names:
            sidecar = (local / name).with_suffix(".txt")
            if sidecar.is_file():
                captions[name] = sidecar.read_text(encoding="utf-8").strip()
    missing = [name for name in names if name not in captions]
    if captions and missing:
        raise ValueError(
            f"{len(missing)} images of {local} have no caption, the first is {missing[0]}; caption them or remove them"
        )
    return [captions[name] for name in names] if captions else None
