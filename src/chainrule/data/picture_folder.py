"""A folder of image files, or archives of them: its splits, classes and captions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import cache
from .account import Finding
from .captions import IMAGE_COLUMNS, LABEL_COLUMNS, TEXT_COLUMNS, Beside, guess, read_beside
from .config import DataConfig
from .images import header_size, heic_is_readable, looks_like_image
from .rows import Rows, RowSource, add_labels, composed
from .tree import SPLIT_NAMES, File, Listing, files_of, image_suffixes, is_archive, without_common_folders

MULTIPLE = 8
"""Of this a chosen size is a multiple, so that tokenizers can halve it three times."""
LOOKED_AT = 1000
"""Files whose size in pixels is read."""
QUIET = (
    "", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".parquet", ".pdf", ".py", ".sh", ".tsv",
    ".txt", ".url", ".xml", ".yaml", ".yml",
)  # fmt: skip
"""Endings of files that nobody takes for images; the account counts them, a warning does not."""
FEW = 0.1
"""Images beside folders of classes are left out if they are at most this share; otherwise there are no classes."""
TEST_HASHES = (2**256 // 20).to_bytes(32, "big")
"""Images whose names have lower hashes are of the split test, where no folder says what is."""


class PictureFolder(RowSource):
    """Image files, in a folder per class or per split, with captions beside them."""

    def __init__(self, config: DataConfig, name: str, local: Path, listing: Listing) -> None:
        super().__init__(config, name)
        self.local, self.listing = local, listing

    @staticmethod
    def recognises(listing: Listing) -> bool:
        """Always: this format is the last that is tried."""
        return True

    def origin(self) -> list[Any]:
        return [str(self.local.resolve()), self.listing.files, heic_is_readable(), TEST_HASHES.hex()]

    def chosen_size(self, largest: int) -> int | None:
        """The largest multiple of 8 up to `largest` that the shorter sides of the first 1,000 pictures have.

        Pictures of one size whose shorter side is at most `largest` stay as they are.
        """
        found = set()
        with cache.scratch() as scratch:
            files, _ = files_of(self.listing, scratch)
            for file in [file for file in files if file.suffix in image_suffixes()][:LOOKED_AT]:
                try:
                    found.add(header_size(file.source()))
                except Exception:  # a damaged image, which reading names
                    continue
        side = min((min(size) for size in found), default=0)
        if not found or (len(found) == 1 and side <= largest):
            return None
        return min(largest, max(MULTIPLE, side // MULTIPLE * MULTIPLE))

    def rows(self, split: str, scratch: Path) -> Rows:
        config = self.config
        files, findings = files_of(self.listing, scratch)
        endings = image_suffixes()
        images = without_common_folders([file for file in files if file.suffix in endings])
        if not images:
            raise ValueError(
                f"{self.local} cannot be read as a data set: it holds neither images nor parquet or arrow files"
            )
        beside = read_beside(config, files, images)
        layout = read_layout(_without_shards(images, files), beside, config)
        _check_columns(config, beside, layout)
        if split not in layout.splits:
            raise ValueError(f"{config.source} has no split {split!r}; it has {', '.join(layout.splits)}")
        chosen = layout.splits[split]
        if layout.by_hash:
            chosen, said = _hash_split(chosen, split)
            findings += said
        names = [image.name for image in chosen]
        hidden = [name for name in self.listing.hidden_images if not name.split("/")[-1].startswith("._")]
        findings += Finding.of(hidden, "image", "left out", "hidden: its name or its folder begins with a dot")
        findings += [*layout.findings, *beside.findings, *_others(files, beside, endings)]
        rows = Rows(names=names, cells=chosen, findings=findings)
        if layout.labels:
            add_labels(config, rows, [layout.labels.get(name) for name in names], list(layout.labels.values()))
        if beside.texts:
            rows.texts = [beside.texts.get(name, []) for name in names]
        return rows


def folder_names(local: Path) -> set[str]:
    """Names of the folders that hold files, in a folder and in the archives in it, or in one archive."""
    if not local.exists():
        return set()
    with cache.scratch() as scratch:
        return {name for file in files_of(Listing(local), scratch)[0] for name in file.folders}


@dataclass(kw_only=True)
class Layout:
    """What folders mean.

    splits:   images of each split
    by_hash:  whether there are no folders of splits, so that every split is a part of the same images
    labels:   label of an image, by its name
    findings: images that are left out
    """

    splits: dict[str, list[File]]
    by_hash: bool = False
    labels: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_layout(images: Sequence[File], beside: Beside, config: DataConfig) -> Layout:
    """Splits and classes of images by their folders; labels in files come before those of folders."""
    layout = _splits(images)
    if beside.labels:
        layout.labels = _as_numbers(beside.labels)
    elif not beside.metadata or config.label_column == "label":
        _add_classes(layout)
    return layout


def _splits(images: Sequence[File]) -> Layout:
    """Splits, whose folder is then left out of the folders of their images.

    One folder with the name of a split, beside others that hold images just like it, is a class: bus, car, train.
    """
    tops = {image.folders[0] for image in images if image.folders}
    named = {top for top in tops if top.lower() in SPLIT_NAMES}
    flat = all(len(image.folders) == 1 for image in images if image.folders)
    if not named or (len({SPLIT_NAMES[top.lower()] for top in named}) == 1 and tops != named and flat):
        reason = "folders beside it hold images too; a folder of each split makes splits"
        findings = Finding.of(sorted(named), "folder", "read as a class, not as a split", reason)
        return Layout(splits={split: list(images) for split in ("train", "test")}, by_hash=True, findings=findings)
    found: dict[str, list[File]] = {}
    for image in images:
        if image.folders and image.folders[0] in named:
            inner = replace(image, folders=image.folders[1:])
            found.setdefault(SPLIT_NAMES[image.folders[0].lower()], []).append(inner)
    rest = [image.name for image in images if not (image.folders and image.folders[0] in named)]
    order = [split for split in ("train", "validation", "test") if split in found]
    findings = Finding.of(rest, "image", "left out", "it lies beside the folders of splits")
    return Layout(splits={split: found[split] for split in order}, findings=findings)


def _add_classes(layout: Layout) -> None:
    """Labels by folders, if at least two hold images, and almost all images lie in one.

    The innermost folder is the class where all images lie equally deep, otherwise the outermost.
    """
    images = list({image.name: image for split in layout.splits.values() for image in split}.values())
    loose = [image.name for image in images if not image.folders]
    inside = [image for image in images if image.folders]
    where = -1 if len({len(image.folders) for image in inside}) == 1 else 0
    labels = {image.name: image.folders[where] for image in inside}
    if len(set(labels.values())) < 2:
        return
    if len(loose) > FEW * len(images):
        classes = sorted(set(labels.values()))
        reason = f"{len(loose)} images lie beside them, such as {loose[0]}"
        layout.findings += Finding.of(classes, "folder", "ignored as classes", reason)
        return
    layout.labels = labels
    layout.findings += Finding.of(loose, "image", "left out", "it lies beside the folders of classes")
    for split, chosen in layout.splits.items():
        layout.splits[split] = [image for image in chosen if image.folders]


def _as_numbers(labels: dict[str, Any]) -> dict[str, Any]:
    """Labels of text files, as numbers if all of them are whole numbers."""
    if all(isinstance(label, int) or str(label).strip().isdecimal() for label in labels.values()):
        return {name: int(label) for name, label in labels.items()}
    return {name: label if isinstance(label, int | float) else str(label).strip() for name, label in labels.items()}


def _without_shards(images: Sequence[File], files: Sequence[File]) -> list[File]:
    """The images without the folders of img2dataset, 00000, 00001, …, which are no classes."""
    shards = {file.base.removesuffix("_stats.json") for file in files if file.base.endswith("_stats.json")}
    return [
        replace(image, folders=image.folders[1:]) if image.folders and image.folders[0] in shards else image
        for image in images
    ]


def _others(files: Sequence[File], beside: Beside, endings: set[str]) -> list[Finding]:
    """About files that are neither images nor captions."""
    rest = [file for file in files if file.suffix not in endings and file.name not in beside.used]
    loud = [file for file in rest if file.suffix not in QUIET or is_archive(file.name)]
    kinds = ", ".join(sorted({file.suffix for file in loud}))
    nameless = [file.name for file in rest if not file.suffix and looks_like_image(file.start())]
    known = {*nameless, *(file.name for file in loud)}
    quiet = [file.name for file in rest if file.name not in known]
    return [
        *Finding.of(nameless, "file", "ignored", "an image without an ending such as .jpg in its name"),
        *Finding.of([file.name for file in loud], "file", "ignored", f"a kind that is not read: {kinds}"),
        *Finding.of(quiet, "file", "ignored", "neither an image nor a caption of one", loud=False),
    ]


def _check_columns(config: DataConfig, beside: Beside, layout: Layout) -> None:
    """Raises ValueError where a column is asked for that is not there."""
    columns = ["image", *(["label"] if layout.labels else []), *(["text"] if beside.texts else []), *beside.columns]
    columns = list(dict.fromkeys(columns))
    guess(config.image_column, "image_column", IMAGE_COLUMNS, columns)
    guess(config.label_column, "label_column", LABEL_COLUMNS, columns)
    guess(config.text_column, "text_column", TEXT_COLUMNS, columns)


def name_hash(name: str) -> bytes:
    """By this a file is of the split "test", where it is below `TEST_HASHES`, or else of "train"."""
    return hashlib.sha256(composed(name).encode("utf-8", "surrogateescape")).digest()


def _hash_split(images: Sequence[File], split: str) -> tuple[list[File], list[Finding]]:
    """The images of "train" or of "test", and what must be said of them.

    An image is of "test" where the hash of its name lies in the lowest twentieth of all hashes, or is the lowest here.
    So no image goes from training to test when others are added.  Where nothing is left, training has all images.
    """
    hashes = [name_hash(image.name) for image in images]
    lowest = min(hashes, default=b"")
    held = [value < TEST_HASHES or value == lowest for value in hashes]
    if split == "test":
        return [image for image, test in zip(images, held, strict=True) if test], []
    if all(held):
        reason = "there are too few to hold one out; add images, or a folder test"
        return list(images), Finding.of([image.name for image in images], "image", "in training and test", reason)
    return [image for image, test in zip(images, held, strict=True) if not test], []
