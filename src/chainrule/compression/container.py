"""The compressed file: a header that says what must agree, and one stream per batch of images.

4 bytes      "CRZ1"
4 bytes      CRC-32 of all that follows (numbers are little-endian)
4 bytes      length of the header
header       JSON, deflated: the fields of `Header`
then for each batch of images
4 bytes      length of the stream
8 bytes      start of the sha256 of the codes, int32 (B, T)
stream       see `entropy`
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from ..files import parse_json
from ..strict import build_dataclass

MAGIC = b"CRZ1"
HEAD = struct.Struct("<4sII")
BLOCK = struct.Struct("<I8s")
MAX_HEADER = 1 << 26
"""Bytes of the header, uncompressed."""
MAX_IMAGES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the decoder must know, and what must agree with it.

    num_images:  images in the file
    batch_size:  images per stream; the last stream may have fewer
    model:       `pipeline_hash` of the model
    environment: what the rounding of the model depends on, by name
    labels:      class of each image; None: no class
    texts:       text of each image; None: no text
    names:       name of each image's file, if it had one
    """

    num_images: int
    batch_size: int
    model: str
    environment: dict[str, str]
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
    return hashlib.sha256(codes.cpu().numpy().astype("<i4").tobytes()).digest()[:8]


def pack(header: Header, blocks: Sequence[Block]) -> bytes:
    """The bytes of a file."""
    plain = {key: value for key, value in asdict(header).items() if value is not None}
    text = zlib.compress(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode(), 9)
    parts = [struct.pack("<I", len(text)), text]
    for block in blocks:
        parts += [BLOCK.pack(len(block.stream), block.checksum), block.stream]
    body = b"".join(parts)
    return MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def _inflate(data: bytes) -> str:
    """A header, which zlib can make as long as it likes; raises ValueError beyond `MAX_HEADER` bytes."""
    text = (inflating := zlib.decompressobj()).decompress(data, MAX_HEADER)
    if inflating.unconsumed_tail or not inflating.eof:
        raise ValueError(f"its header is cut short or longer than {MAX_HEADER:,} bytes")
    return text.decode()


def unpack(data: bytes) -> tuple[Header, list[Block]]:
    """The inverse of `pack`.

    Raises:
        ValueError: something else than a compressed file, or a damaged one.
    """
    if data[:4] != MAGIC:
        raise ValueError("this is no file of chainrule compress")
    if len(data) < HEAD.size or zlib.crc32(data[8:]) != HEAD.unpack_from(data)[1]:
        raise ValueError("the compressed file is damaged, its checksum is another; copy it again")
    place = HEAD.size + HEAD.unpack_from(data)[2]
    try:
        plain = parse_json(_inflate(data[HEAD.size : place]), "its header")
        header = build_dataclass(Header, plain, "its header")
        blocks = []
        for _ in header.batches():
            length, codes = BLOCK.unpack_from(data, place)
            place += BLOCK.size + length
            blocks.append(Block(data[place - length : place], codes))
    except (struct.error, zlib.error, ValueError) as error:
        raise ValueError(f"the compressed file is damaged: {error}") from error
    return header, blocks
