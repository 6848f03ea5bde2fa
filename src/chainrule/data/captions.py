"""Captions and labels in files beside images.

    metadata.csv | jsonl | parquet, captions.csv | tsv | jsonl | txt   a row for each image: its file and its caption
    a.txt, a.caption, a.json, a.cls beside a.png                        the caption, or of .cls the label, of one image

Names are relative to the folder of the file.  A caption of several lines in a.txt is several captions of that image.
"""

from __future__ import annotations

import csv
import posixpath
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..files import decode_text, parse_json, split_lines
from .account import Finding
from .config import DataConfig
from .tree import File

TABLES = (
    "metadata.csv", "metadata.jsonl", "metadata.parquet",
    "captions.csv", "captions.tsv", "captions.jsonl", "captions.txt",
)  # fmt: skip
FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_name", "image_path", "path", "name")
IMAGE_COLUMNS = ("image", "img", "images", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "description")
BESIDE = (".txt", ".caption", ".json", ".cls")


@dataclass(kw_only=True)
class Beside:
    """What files say about images.

    texts:       captions of an image, by its name; the first is the one
    labels:      label of an image, by its name
    columns:     of tables
    metadata:    whether there is a table called metadata
    used:        names of the files that were read
    findings:    rows and files that belong to no image
    """

    texts: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    metadata: bool = False
    used: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)


def read_beside(config: DataConfig, files: Sequence[File], images: Sequence[File]) -> Beside:
    """Captions and labels of `images`, from tables first and then from the files beside them.

    Raises:
        ValueError: a file that cannot be read, with its name and line.
    """
    found = Beside()
    names = {same_name(image.name): image.name for image in images}
    for file in files:
        if file.base.lower() in TABLES:
            _read_table(config, file, names, found)
    _read_sidecars(files, images, found)
    return found


def same_name(name: str) -> str:
    """A name as it is compared: composed letters, "/" between folders."""
    return posixpath.normpath(unicodedata.normalize("NFC", name.strip().replace("\\", "/")))


def first_of(config: DataConfig, texts: Sequence[str]) -> str:
    """The caption of an image that has several: the first, or all as lines where one is drawn at each visit."""
    texts = [" ".join(text.split("\n")) for text in texts] if config.captions == "random" else texts[:1]
    return "\n".join(texts)


def as_texts(value: Any) -> list[str]:
    """The captions in a cell of a table."""
    values = value if isinstance(value, list) else [value]
    return [text for text in (str(value) for value in values if value is not None) if text.strip()]


def guess(name: str | None, option: str, guesses: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column of a name, or the first of the guesses that is there; raises ValueError where a name is not there."""
    if name is not None and name not in columns:
        raise ValueError(f"{option} is {name!r}, but the columns are {', '.join(columns)}")
    return name or next((guess for guess in guesses if guess in columns), None)


def _read_table(config: DataConfig, file: File, names: dict[str, str], found: Beside) -> None:
    rows = list(_rows(file, names))
    if not rows:
        return
    found.metadata, missing = found.metadata or file.base.startswith("metadata"), []
    found.used.add(file.name)
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    found.columns += [column for column in columns if column not in found.columns]
    image = guess(None, "", FILE_COLUMNS, columns)
    if image is None:
        raise ValueError(
            f"{file.name}, line 1: no column among {', '.join(columns)} names the images; call it file_name"
        )
    text = config.text_column if config.text_column in columns else guess(None, "", TEXT_COLUMNS, columns)
    label = config.label_column if config.label_column in columns else guess(None, "", LABEL_COLUMNS, columns)
    for line, row in rows:
        given = row.get(image)
        name = names.get(same_name(posixpath.join(posixpath.dirname(file.name), str(given or "").replace("\\", "/"))))
        if name is None:
            missing.append(f"line {line} of {file.name} ({given})")
            continue
        if text is not None and (texts := as_texts(row.get(text))):
            found.texts.setdefault(name, []).extend(texts)
        if label is not None and row.get(label) not in (None, ""):
            found.labels.setdefault(name, row[label])
    found.findings += Finding.of(missing, "row", "left out", "there is no such image")


def _rows(file: File, names: dict[str, str]) -> list[tuple[int, dict[str, Any]]]:
    """Number of the line, and values by column, of the rows of a table."""
    if file.suffix == ".parquet":
        import io

        import pyarrow.parquet

        return list(enumerate(pyarrow.parquet.read_table(io.BytesIO(file.read())).to_pylist(), 1))
    lines = split_lines(decode_text(file.read(), file.name))
    if file.suffix == ".jsonl":
        return [(number, _object(file, number, line)) for number, line in enumerate(lines, 1) if line.strip()]
    first = next((line for line in lines if line.strip()), "")
    separator = next((mark for mark in ",\t;" if _names_files(first.split(mark))), None)
    if file.suffix == ".txt" and separator is None:
        return _tab_rows(file, lines)
    return _separated_rows(file, lines, separator, names)


def _names_files(cells: Sequence[str]) -> bool:
    """Whether these are the names of columns."""
    return any(cell.strip().strip('"').lower() in FILE_COLUMNS for cell in cells)


def _separated_rows(
    file: File, lines: Sequence[str], separator: str | None, names: dict[str, str]
) -> list[tuple[int, dict[str, Any]]]:
    """See `_rows`; `separator` is None where no line names the columns, which then are the file and its caption."""
    mark = separator or ("\t" if file.suffix == ".tsv" else ",")
    reader = csv.reader((line + "\n" for line in lines), delimiter=mark, strict=True)
    found, start = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file.name}, line {start}: {error}; put a caption with commas between quotes") from error
    folder = posixpath.dirname(file.name)
    known = any(same_name(posixpath.join(folder, cells[0])) in names for _, cells in found)
    if separator is None and not (known and all(len(cells) == 2 for _, cells in found)):
        raise ValueError(f"{file.name}, line 1 must name the columns, such as file_name,text")
    columns = ["file_name", "text"] if separator is None else [column.strip() for column in found.pop(0)[1]]
    for number, cells in found:
        if len(cells) != len(columns):
            raise ValueError(
                f"{file.name}, line {number}: {len(cells)} values for the {len(columns)} columns "
                f"{', '.join(columns)}; put a caption with commas between quotes"
            )
    lowered = [column.lower() if column.lower() in FILE_COLUMNS else column for column in columns]
    return [(number, dict(zip(lowered, cells, strict=True))) for number, cells in found]


def _tab_rows(file: File, lines: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for number, line in enumerate(lines, 1):
        name, tab, caption = line.partition("\t")
        if tab:
            found.append((number, {"file_name": name, "text": caption.strip()}))
        elif line.strip():
            raise ValueError(f'line {number} of {file.name} must be "file<TAB>caption", got {line!r}')
    return found


def _object(file: File, number: int, line: str) -> dict[str, Any]:
    value = parse_json(line, f"{file.name}, line {number}")
    if not isinstance(value, dict):
        raise ValueError(f'{file.name}, line {number}: must be an object such as {{"file_name": …, "text": …}}')
    return value


def _read_sidecars(files: Sequence[File], images: Sequence[File], found: Beside) -> None:
    """Adds what lies beside images to `found`, where no table has said it."""
    beside: dict[str, dict[str, File]] = {}
    for file in files:
        if file.suffix in BESIDE and file.name not in found.used:
            beside.setdefault(same_name(posixpath.splitext(file.name)[0]), {})[file.suffix] = file
    for image in images:
        keys = (same_name(posixpath.splitext(image.name)[0]), same_name(image.name))
        of_image = next((beside[key] for key in keys if key in beside), {})
        if ".cls" in of_image:
            text = decode_text(of_image[".cls"].read(), of_image[".cls"].name).strip()
            found.labels.setdefault(image.name, text)
        for suffix in (".txt", ".caption", ".json"):
            if suffix in of_image and not found.texts.get(image.name):
                file = of_image[suffix]
                texts = _json_texts(file) if suffix == ".json" else _lines(file)
                if texts := as_texts(texts):
                    found.texts[image.name] = texts
        found.used |= {file.name for file in of_image.values()}
    if found.texts:
        lost = [file.name for group in beside.values() for file in group.values() if file.name not in found.used]
        lost = [name for name in lost if name.lower().endswith((".txt", ".caption"))]
        found.findings += Finding.of(lost, "caption file", "ignored", "there is no image of that name")
        found.used |= set(lost)


def _lines(file: File) -> list[str]:
    return [line.strip() for line in split_lines(decode_text(file.read(), file.name))]


def _json_texts(file: File) -> Any:
    """The caption in a JSON file as img2dataset writes it, or None."""
    value = parse_json(decode_text(file.read(), file.name), file.name)
    column = guess(None, "", TEXT_COLUMNS, list(value)) if isinstance(value, dict) else None
    return None if column is None else value[column]
