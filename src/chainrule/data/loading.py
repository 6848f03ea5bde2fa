"""Images of a source, decoded once and kept by `cache`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from . import cache
from .account import Finding
from .config import SPLIT, DataConfig
from .dataset import ImageDataset
from .sources import find_source


def load(config: DataConfig, known: Sequence[Finding] = ()) -> ImageDataset:
    """The images of one split, ready in memory; decoded once, then mapped from the cache.

    A warning says what is not used, or not as it stands, except the `known` findings of another split.

    A data set of the hub is kept under its name: delete the cache (CHAINRULE_CACHE, or ~/.cache/chainrule) to
    fetch a newer version.  A local folder is read again whenever a file in it has changed.

    Raises:
        ValueError: when the source, the split or a column is not there, images differ in size and `size` is
            None, a label is out of range, or (with `strict`) an image cannot be read.
    """
    split, start, stop = SPLIT.fullmatch(config.split).groups()
    source = find_source(config)
    dataset, folder = cache.cached(source.key(split), lambda target: source.build(split, target), source.name)
    if dataset.skipped and config.strict:
        said = dataset.account.unreadable(dataset.name, dataset.skipped)
        raise ValueError(said + "; repair or remove them, or set strict to false")
    if said := dataset.account.sentences(dataset.name, dataset.skipped, known):
        warnings.warn(said, stacklevel=2)
    first, last = _bound(start, len(dataset), 0), _bound(stop, len(dataset), len(dataset))
    if first >= last:
        raise ValueError(f"the split {config.split} of {dataset.name} is empty: {split} has {len(dataset)} images")
    dataset = replace(dataset.slice(first, last), path=source.path())
    cache.remember_fingerprint(dataset, folder / f"fingerprint-{first}-{last}")
    return dataset


def with_size(config: DataConfig, largest: int) -> DataConfig:
    """The config with a size, at most `largest`, where it has none and the source chooses one; errors as of `load`."""
    return config if config.size is not None else replace(config, size=find_source(config).chosen_size(largest))


def _bound(text: str | None, count: int, default: int) -> int:
    """One end of a slice such as "-5000" or "10%", as a row in 0..count."""
    if text is None:
        return default
    number = round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)
    return min(max(number + count if text.startswith("-") else number, 0), count)
