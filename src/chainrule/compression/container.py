"""The compressed file: a header that says what must agree, and one stream per batch of images.

4 bytes      "CRZ1"
4 + 4 bytes  length of the header, CRC-32 of the header (all numbers are little-endian)
header       JSON, deflated: the fields of `Header`
then for each batch of images
4 + 4 bytes  length of the stream, CRC-32 of the stream
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

from ..strict import build_dataclass

MAGIC = b"CRZ1"
HEAD = struct.Struct("<4sII")
BLOCK = struct.Struct("<II8s")


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
        if min(self.num_images, self.batch_size) < 1:
            raise ValueError("a file holds at least 1 image")
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
    parts = [HEAD.pack(MAGIC, len(text), zlib.crc32(text)), text]
    for block in blocks:
        parts += [BLOCK.pack(len(block.stream), zlib.crc32(block.stream), block.checksum), block.stream]
    return b"".join(parts)


def unpack(data: bytes) -> tuple[Header, list[Block]]:
    """The inverse of `pack`.

    Raises:
        ValueError: something else than a compressed file, or a damaged one.
    """
    if data[:4] != MAGIC:
        raise ValueError("this is no file of chainrule compress")
    try:
        _, length, crc = HEAD.unpack_from(data)
        place = HEAD.size + length
        text = data[HEAD.size : place]
        if zlib.crc32(text) != crc:
            raise ValueError("its header has another checksum")
        header = build_dataclass(Header, json.loads(zlib.decompress(text)), "the header")
        blocks = []
        for _ in header.batches():
            length, crc, codes = BLOCK.unpack_from(data, place)
            place += BLOCK.size + length
            stream = data[place - length : place]
            if len(stream) != length or zlib.crc32(stream) != crc:
                raise ValueError(f"stream {len(blocks) + 1} has another checksum")
            blocks.append(Block(stream, codes))
    except (struct.error, zlib.error, ValueError) as error:
        raise ValueError(f"the compressed file is damaged: {error}") from error
    if place != len(data):
        raise ValueError(f"the compressed file is damaged: {len(data) - place} bytes follow its end")
    return header, blocks
