"""Examples of a prior that are streamed: each image is read once, and only codes, labels and captions are kept."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import torch

from ...core import Tokenizer
from ...data import DataConfig, ImageDataset, binarize
from ...data.account import UNREADABLE, Account, Finding
from ...data.cache import scratch
from ...data.rows import decoded
from ...data.shards import Part, PartWriter, StoredCodes, cached_parts, in_one
from ...data.stream import Stream, open_stream
from ...progress import progress
from ...saving.model import tokenizer_hash
from ..engine.config import EvaluationConfig
from .codes import IMAGES_AT_ONCE, encode, narrowest, read_codes
from .examples import Examples


class Texts(Sequence[str]):
    """The captions of all parts, read from the disk one by one."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts, self.ends = parts, np.cumsum([part.count for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        number = int(np.searchsorted(self.ends, row, side="right"))
        if row < 0 or number == len(self.parts):
            raise IndexError(row)
        return self.parts[number].text(row - int(self.ends[number]) + self.parts[number].count)


def stream_examples(
    data: DataConfig, evaluation: EvaluationConfig, tokenizer: Tokenizer, device: torch.device, quiet: bool
) -> Examples:
    """The images of a recipe as codes; those that are not in the cache are encoded here.

    Args:
        data: with the size of the tokenizer's images.
        evaluation: says which are held out.
        tokenizer: whose codes are kept.
        device: where to encode.
        quiet: whether to show no bar.

    Raises:
        ValueError: images that cannot be had, or options that a stream does not have.
    """
    if data.binarize == "sample" or data.captions == "random":
        raise ValueError("a stream reads each image once: leave out captions: random and binarize: sample")
    held_out = replace(data, split=evaluation.split, flip=False)
    training, codes = _encoded(data, tokenizer, device, quiet)
    judged, judged_codes = _encoded(held_out, tokenizer, device, quiet)
    for dataset, known in ((training, ()), (judged, training.account.findings)):
        if said := dataset.account.sentences(dataset.name, dataset.skipped, known):
            warnings.warn(said, stacklevel=2)
    judged = judged.matched(training.class_names, training.num_classes or 0, f"the split {data.split}")
    return Examples(
        data=replace(data, source=training.path or data.source), training=training, evaluation=judged,
        limit=evaluation.limit, batch_size=evaluation.batch_size, codes=(codes, judged_codes[0]),
    )  # fmt: skip


def _encoded(
    data: DataConfig, tokenizer: Tokenizer, device: torch.device, quiet: bool
) -> tuple[ImageDataset, list[StoredCodes]]:
    """A split: a data set whose pixels are not kept, and the codes of its images and, with flips, of their mirror
    images."""
    key = ["stream", tokenizer_hash(tokenizer), data.height_width, data.resize, data.binarize, data.flip]
    with scratch() as folder, progress("Encoding images", None, "images", quiet) as done:
        stream = open_stream(data, folder)
        build = partial(_build, data, tokenizer.to(device), stream, done)
        named = [[shard.identity, data.split] for shard in stream.shards]
        parts = [Part(folder) for folder in cached_parts(key, named, build)]
    return _data_set(data, tokenizer, stream, [part for part in parts if part.count])


def _build(
    data: DataConfig, tokenizer: Tokenizer, stream: Stream, done: Callable[[int], None], number: int, target: Path
) -> None:  # fmt: skip
    """Encodes a shard."""
    grids = [narrowest(grid) for grid in tokenizer.spec.grids]
    writer, digest, unreadable = PartWriter(target, grids * (1 + data.flip)), hashlib.sha256(), []
    smallest, largest = 0, 0
    config = replace(data, channels=tokenizer.image_shape[0])
    samples = stream.shards[number].samples()
    while some := list(islice(samples, IMAGES_AT_ONCE)):
        pictures = list(decoded(config, [sample.image for sample in some]))
        good = [row for row, picture in enumerate(pictures) if not isinstance(picture, str)]
        unreadable += [some[row].name for row in range(len(some)) if row not in good]
        if unreadable and data.strict:
            raise ValueError(f"{unreadable[0]} cannot be read as an image; remove it, or set strict to false")
        if not good:
            continue
        images = binarize(torch.from_numpy(np.stack([pictures[row].pixels for row in good])), data.binarize)
        labels, texts = [some[row].label for row in good], [some[row].text for row in good]
        for content in (images.numpy(), np.array(labels), "\0".join(texts).encode()):
            digest.update(content)
        codes = [encode(tokenizer, each.to(tokenizer.device)) for each in (images, images.flip(-1))[: 1 + data.flip]]
        writer.add([grid.cpu().numpy() for one in codes for grid in one], labels, texts)
        smallest, largest = min(smallest, *labels), max(largest, *labels)
        done(writer.count)
    writer.close(
        fingerprint=digest.hexdigest(), unreadable=unreadable, captioned=writer.ended > 0,
        labelled=smallest >= 0, num_classes=largest + 1,
    )  # fmt: skip


def _data_set(
    data: DataConfig, tokenizer: Tokenizer, stream: Stream, parts: Sequence[Part]
) -> tuple[ImageDataset, list[StoredCodes]]:
    """See `_encoded`."""
    if not parts:
        raise ValueError(f"no image of the split {data.split} of {data.source} can be read")
    count = sum(part.count for part in parts)
    labels = in_one([part.labels() for part in parts]) if all(part.meta["labelled"] for part in parts) else None
    classes = None if labels is None else stream.class_names
    num_classes = len(classes) if classes else max(part.meta["num_classes"] for part in parts)
    unreadable = [name for part in parts for name in part.meta["unreadable"]]
    findings = Finding.of(unreadable, "image", UNREADABLE, "damaged, or of an unknown kind")
    dataset = ImageDataset(
        torch.zeros((), dtype=torch.uint8).expand(count, *tokenizer.image_shape), labels,
        Texts(parts) if any(part.meta["captioned"] for part in parts) else None, classes,
        None if labels is None else num_classes, stream.name, unreadable,
        Account(used=count, findings=(*stream.findings, *findings)), stream.path,
    )  # fmt: skip
    prints = "".join(part.meta["fingerprint"] for part in parts)
    dataset.__dict__["fingerprint"] = hashlib.sha256(prints.encode()).hexdigest()[:16]
    grids = read_codes(parts)
    half = len(tokenizer.spec.grids)
    return dataset, [grids[start : start + half] for start in range(0, len(grids), half)]
