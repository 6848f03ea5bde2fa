"""Reading one split of images, labels and captions through `datasets`, which is imported only inside functions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .account import Finding
from .captions import IMAGE_COLUMNS, LABEL_COLUMNS, TEXT_COLUMNS, as_texts, guess
from .config import DataConfig
from .rows import CHUNK, Rows, RowSource, add_labels

T = TypeVar("T")
SHARD = 8192
"""Images of a folder, or rows of a table that is not in several files, that make a shard."""


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A split that is read row by row.

    table:      a `datasets.IterableDataset`
    identities: of each of its shards a JSON value that says whether it has changed
    """

    table: Any
    identities: list[Any]

    @classmethod
    def of(cls, builder: Any) -> dict[str, Streamed]:
        """The splits of a `datasets.DatasetBuilder`: a shard is a file, known by its name and time or revision."""
        found, files = {}, {str(split): files for split, files in (builder.config.data_files or {}).items()}
        for split, table in builder.as_streaming_dataset().items():
            listed = files.get(str(split), [])
            origins = getattr(listed, "origin_metadata", [])
            known = [[file, *origin] for file, origin in zip(listed, origins, strict=True)]
            if len(known) != table.num_shards:
                known = [[builder.hash, known, number] for number in range(table.num_shards)]
            found[str(split)] = cls(table=table, identities=known)
        return found


class TableSource(RowSource):
    """A source that `datasets` reads as one table per split."""

    @abstractmethod
    def tables(self, scratch: Path) -> dict[str, Any]:
        """Split -> `datasets.Dataset`; files are written below `scratch` only."""

    @abstractmethod
    def streams(self) -> dict[str, Streamed]:
        """The splits, read row by row; nothing is written."""

    def findings(self) -> list[Finding]:
        """About files beside the tables."""
        return []

    def rows(self, split: str, scratch: Path) -> Rows:
        import datasets

        config, tables = self.config, self.tables(scratch)
        table = of_split(tables, split, config)
        image_column = find_image_column(config, table)
        label_column = guess(config.label_column, "label_column", LABEL_COLUMNS, table.column_names)
        text_column = guess(config.text_column, "text_column", TEXT_COLUMNS, table.column_names)
        table = table.cast_column(image_column, datasets.Image(decode=False))
        rows = Rows(
            names=[f"row {row}" for row in range(len(table))],
            cells=_cells(table.select_columns([image_column]), image_column),
            texts=None if text_column is None else [as_texts(value) for value in table[text_column]],
            findings=self.findings(),
        )
        if label_column is not None:
            with_labels = [other for other in tables.values() if label_column in other.column_names]
            everywhere = [value for other in with_labels for value in other.unique(label_column)]
            names = getattr(table.features[label_column], "names", None)
            add_labels(config, rows, table[label_column], everywhere, names)
        return rows


def of_split(tables: Mapping[str, T], split: str, config: DataConfig) -> T:
    """The table of a split; raises ValueError where there is none."""
    if split not in tables:
        raise ValueError(f"{config.source} has no split {split!r}; it has {', '.join(tables)}")
    return tables[split]


def find_image_column(config: DataConfig, table: Any) -> str:
    """The column of images of a table, or of a stream; raises ValueError where there is none."""
    import datasets

    features = table.features or {}
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    found = guess(config.image_column, "image_column", (*typed, *IMAGE_COLUMNS), list(features))
    if found is None:
        raise ValueError(f"{config.source} has no column of images among {', '.join(features)}; set image_column")
    return found


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


def _cells(table: Any, column: str) -> Iterator[bytes | str | None]:
    for chunk in table.iter(batch_size=CHUNK):
        for cell in chunk[column]:
            yield cell and (cell["bytes"] or cell["path"])
