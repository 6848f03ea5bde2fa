"""The compressed file: a short header that says what must agree, and one stream per batch of images.

3 bytes      "CZ2"
4 bytes      CRC-32 of all that follows (numbers are little-endian; a varint has 7 bits in each byte, low ones first)
varint       number of images
varint       images per stream
6 bytes      start of the model's hash
6 bytes      a byte for each entry of `environment`
varint       length of what comes next, 0 for nothing
labels ...   JSON, deflated: classes, texts and names of files
then for each batch of images
varint       length of the stream in words of 4 bytes
4 bytes      start of the sha256 of the codes, int32 (B, T)
stream       see `entropy`

So one image costs 27 bytes besides its stream, and each further batch 5 or 6.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..files import parse_json
from ..strict import build_dataclass

MAGIC = b"CZ2"
START = len(MAGIC) + 4
"""Bytes before what the CRC-32 is of."""
MODEL, ENVIRONMENT, CODES, WORD = 6, 6, 4, 4
"""Bytes of the model's hash, the environment, a checksum of codes, and a word of a stream."""
MAX_HEADER = 1 << 26
"""Bytes of the header, uncompressed."""
MAX_IMAGES = 1 << 20
TEXTS = ("labels", "texts", "names")
"""Fields of a header that few files have."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the decoder must know, and what must agree with it.

    num_images:  images in the file
    batch_size:  images per stream; the last stream may have fewer
    model:       start of `pipeline_hash` of the model, `MODEL` bytes
    environment: what the rounding of the model depends on, see `environment.short`
    labels:      class of each image; None: no class
    texts:       text of each image; None: no text
    names:       name of each image's file, if it had one
    """

    num_images: int
    batch_size: int
    model: bytes
    environment: bytes
    labels: tuple[int, ...] | None = None
    texts: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.num_images <= MAX_IMAGES and 1 <= self.batch_size <= MAX_IMAGES):
            raise ValueError(f"a file holds 1 to {MAX_IMAGES:,} images")
        for each in (self.labels, self.texts, self.names):
            if each is not None and len(each) != self.num_images:
                raise ValueError(f"{len(each)} values are not one for each of {self.num_images} images")

    def batches(self) -> list[slice]:
        """The images of each stream."""
        starts = range(0, self.num_images, self.batch_size)
        return [slice(start, min(start + self.batch_size, self.num_images)) for start in starts]


@dataclass(frozen=True)
class Block:
    """The stream of a batch, and the checksum of its codes."""

    stream: bytes
    checksum: bytes


def checksum(codes: Tensor) -> bytes:
    """Of codes int64 (B, T)."""
    return hashlib.sha256(codes.cpu().numpy().astype("<i4").tobytes()).digest()[:CODES]


def pack(header: Header, blocks: Sequence[Block]) -> bytes:
    """The bytes of a file."""
    texts = {name: value for name in TEXTS if (value := getattr(header, name)) is not None}
    text = zlib.compress(json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode(), 9) if texts else b""
    parts = [_varint(header.num_images), _varint(min(header.batch_size, header.num_images)), header.model]
    parts += [header.environment, _varint(len(text)), text]
    for block in blocks:
        parts += [_varint(len(block.stream) // WORD), block.checksum, block.stream]
    body = b"".join(parts)
    return MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def unpack(data: bytes) -> tuple[Header, list[Block]]:
    """The inverse of `pack`.

    Raises:
        ValueError: something else than a compressed file, or a damaged one.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("this is no file of chainrule compress, or one of another version")
    if zlib.crc32(data[START:]) != int.from_bytes(data[len(MAGIC) : START], "little"):
        raise ValueError("the compressed file is damaged, its checksum is another; copy it again")
    reader = _Reader(data, START)
    try:
        numbers = {"num_images": reader.varint(), "batch_size": reader.varint()}
        must_agree = {"model": reader.take(MODEL), "environment": reader.take(ENVIRONMENT)}
        text = reader.take(reader.varint())
        texts = parse_json(_inflate(text), "its header") if text else {}
        if not isinstance(texts, dict) or set(texts) - set(TEXTS):
            raise ValueError("its header holds something else than labels, texts and names")
        header = build_dataclass(Header, numbers | must_agree | texts, "its header")
        blocks = []
        for _ in header.batches():
            words, codes = reader.varint(), reader.take(CODES)
            blocks.append(Block(reader.take(words * WORD), codes))
    except (zlib.error, ValueError) as error:
        raise ValueError(f"the compressed file is damaged: {error}") from error
    return header, blocks


def _inflate(data: bytes) -> str:
    """A text, which zlib can make as long as it likes; raises ValueError beyond `MAX_HEADER` bytes."""
    text = (inflating := zlib.decompressobj()).decompress(data, MAX_HEADER)
    if inflating.unconsumed_tail or not inflating.eof:
        raise ValueError(f"its header is cut short or longer than {MAX_HEADER:,} bytes")
    return text.decode()


def _varint(number: int) -> bytes:
    low = number & 127
    return bytes([low]) if number < 128 else bytes([low | 128]) + _varint(number >> 7)


class _Reader:
    """Reads bytes and numbers one after the other; raises ValueError at the end of the data."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data, place

    def take(self, count: int) -> bytes:
        found = self.data[self.place : self.place + count]
        if len(found) < count:
            raise ValueError("it is cut short")
        self.place += count
        return found

    def varint(self) -> int:
        number = shift = 0
        while shift < 35:
            (byte,) = self.take(1)
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
        raise ValueError("a number in it is too large")
