"""The first images of a stream as a folder, from which its training is planned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path, PurePath

from ..data.cache import scratch
from ..data.shards import cached_parts
from ..data.stream import Sample, Stream, open_stream
from ..data.tree import image_suffixes
from ..recipe import Recipe

TABLE = "metadata.jsonl"
"""Of the labels and captions of a split."""


def with_first_images(recipe: Recipe, count: int, judged: int) -> Recipe:
    """The recipe with the first images of its stream in the place of the stream; they are copied into the cache.

    Args:
        recipe: its data are a stream.
        count, judged: images of the training split and of the evaluation split.

    Raises:
        ValueError: as `open_stream`.
    """
    splits = {"train": (recipe.data.split, count), "test": (recipe.evaluation.split, judged)}
    with scratch() as folder:
        streams = {}
        for name, (split, _) in splits.items():
            (folder / name).mkdir()
            streams[name] = open_stream(replace(recipe.data, split=split), folder / name)

        def build(_: int, target: Path) -> None:
            for name, stream in streams.items():
                _copy(stream, splits[name][1], target / name)

        identity = [[stream.shards[0].identity, *splits[name]] for name, stream in streams.items()]
        [copied] = cached_parts("the first images of a stream", [identity], build)
    rows = (copied / "train" / TABLE).read_text(encoding="utf-8").splitlines()
    columns = {
        "image_column": None,
        "label_column": "label" if all("label" in json.loads(row) for row in rows) else None,
        "text_column": recipe.data.text_column and "text",
    }
    data = replace(recipe.data, source=str(copied), split="train", stream=False, **columns)
    return replace(recipe, data=data, evaluation=replace(recipe.evaluation, split="test"))


def _copy(stream: Stream, count: int, target: Path) -> None:
    """Writes the first images and a table of labels and captions; the first image gets the last class, to have all."""
    target.mkdir()
    rows = []
    samples: Iterator[Sample] = chain.from_iterable(shard.samples() for shard in stream.shards)
    for number, sample in enumerate(islice(samples, count)):
        suffix = PurePath(sample.name).suffix.lower()
        path = target / f"{number:06d}{suffix if suffix in image_suffixes() else '.png'}"
        if isinstance(sample.image, bytes):
            path.write_bytes(sample.image)
        else:
            shutil.copyfile(sample.image, path)
        row = {"file_name": path.name, "text": sample.text}
        if sample.label >= 0:
            row["label"] = len(stream.class_names) - 1 if stream.class_names and number == 0 else sample.label
        rows.append(json.dumps(row) + "\n")
    (target / TABLE).write_text("".join(rows), encoding="utf-8")
