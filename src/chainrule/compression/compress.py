"""Images <-> compressed files, with any pipeline: its prior gives the probabilities of the codes of its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Context, select
from ..core.values import as_tensor
from ..pipeline import Pipeline
from ..progress import progress
from ..saving.model import prior_hash, tokenizer_hash
from .container import MODEL, Block, Header, checksum, pack, unpack
from .entropy import OnStep, coder_library, decode, encode
from .environment import environment, one_thread, short

OTHER = "the compressed file was written {}; its images are not restored, because they might be wrong"


@dataclass(frozen=True)
class Decompressed:
    """The images of a compressed file.

    images: uint8 (B, C, H, W)
    names:  of their files, None where `compress` was given no names
    """

    images: Tensor
    names: tuple[str, ...] | None


def pipeline_hash(pipeline: Pipeline) -> bytes:
    """sha256 of everything that the probabilities of codes and the meaning of codes depend on."""
    parts = [tokenizer_hash(pipeline.tokenizer), prior_hash(pipeline.prior)]
    if pipeline.text_tokenizer is not None:
        parts.append(pipeline.text_tokenizer.hash())
    return hashlib.sha256("".join(parts).encode()).digest()


@torch.no_grad()
@one_thread()
def compress(
    pipeline: Pipeline, images: Tensor, label: int | str | Sequence[int | str] | None = None,
    text: str | Sequence[str] | None = None, *, names: Sequence[str] | None = None, batch_size: int = 100,
    lossy: bool = False,
) -> bytes:  # fmt: skip
    """The compressed file of images: about -log2 p(images) bits, and some 30 bytes for all images together.

    Args:
        pipeline: over pixels, for exact images; or over the codes of a learned tokenizer, with `lossy`.
        images: uint8 (B, C, H, W) of the model's size.
        label, text: of all images, or one per image, as for `Pipeline.log_prob`; the file keeps them.
        names: of the images' files, B; the file keeps them.
        batch_size: images that are coded together.  `decompress` works with as many, and so needs as much memory.
        lossy: whether images may change that the tokenizer cannot hold; what is kept is `pipeline.reconstruct(images)`.

    Raises:
        ValueError: images that would change without `lossy`; wrong images, labels, texts or names; or constriction is
            not installed.
    """
    coder_library()
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    images = as_tensor(images, "images")
    count, spec, blocks = len(images), pipeline.prior.spec, []
    pipeline.tokenizer.check_images(images)
    if pipeline.prior.conditions.reads_image:
        raise ValueError("a model that draws from an image would need the image to read the file; take another model")
    _, context = pipeline.condition(count, label, text)
    header = Header(
        num_images=count, batch_size=batch_size, model=pipeline_hash(pipeline)[:MODEL],
        environment=short(environment(pipeline.device)),
        labels=None if label is None else tuple(context.label.tolist()),
        texts=None if text is None else (text,) * count if isinstance(text, str) else tuple(text),
        names=None if names is None else tuple(names),
    )  # fmt: skip
    runner = pipeline.prior.runner()
    with progress("Compressing", count * spec.length, "codes") as done:
        for part, known, context, on_step in _batches(pipeline, header, done):
            batch = images[part].to(pipeline.device)
            grids = pipeline.tokenizer.encode(batch)
            if not lossy and not torch.equal(pipeline.tokenizer.decode(grids), batch):
                raise ValueError(
                    "the model cannot hold these images exactly, so they would come back changed; add --lossy to allow "
                    "it, or take a model of pixels that has all their levels"
                )
            codes = torch.cat([known, pipeline.tokenizer.spec.flatten(grids)], 1)
            blocks.append(Block(encode(runner, context, codes, known.shape[1], on_step), checksum(codes)))
    return pack(header, blocks)


@torch.no_grad()
@one_thread()
def decompress(pipeline: Pipeline, data: bytes, *, any_environment: bool = False) -> Decompressed:
    """The images of a compressed file.

    Args:
        pipeline: the model that compressed them.
        data: what `compress` gave.
        any_environment: whether to try it although versions or hardware differ from those of `compress`.  The model
            then may round differently, and the codes come out wrong; a checksum finds this.

    Raises:
        ValueError: no compressed file, a damaged one, one of another model or environment, or images that could not
            be restored.
    """
    coder_library()
    header, blocks = unpack(data)
    if header.model != (found := pipeline_hash(pipeline)[:MODEL]):
        raise ValueError(
            OTHER.format(f"with another model (sha256 {header.model.hex()}…, this one has {found.hex()}…)")
        )
    here = environment(pipeline.device)
    differ = [name for name, there, now in zip(here, header.environment, short(here), strict=True) if there != now]
    if differ and not any_environment:
        now = ", ".join(f"{name} {here[name]}" for name in differ)
        raise ValueError(OTHER.format(f"in another environment than here ({now}), which it does not name"))
    runner, images = pipeline.prior.runner(), []
    with progress("Decompressing", header.num_images * pipeline.prior.spec.length, "codes") as done:
        for (_, known, context, on_step), block in zip(_batches(pipeline, header, done), blocks, strict=True):
            try:
                codes = decode(runner, context, block.stream, known, on_step)
            except ValueError:
                codes = None
            if codes is None or checksum(codes) != block.checksum:
                raise ValueError(
                    "the images could not be restored: the model rounds differently here than where they were "
                    "compressed; use the same computer and the same versions"
                )
            grids = pipeline.tokenizer.spec.unflatten(codes[:, known.shape[1] :])
            images.append(pipeline.tokenizer.decode(grids).cpu())
    return Decompressed(torch.cat(images), header.names)


def _batches(
    pipeline: Pipeline, header: Header, done: Callable[[int], None]
) -> Iterator[tuple[slice, Tensor, Context, OnStep]]:
    """For each stream: its images, the codes (B, number) that stand before theirs, their context, and progress."""
    length, index = pipeline.prior.spec.length, torch.arange(header.num_images, device=pipeline.device)
    before, context = pipeline.condition(header.num_images, header.labels, header.texts)
    known = torch.cat([index.new_zeros(header.num_images, 0), *(grid.flatten(1) for grid in before)], 1)
    for part in header.batches():
        rows = index[part]

        def on_step(steps: int, first: int = part.start, size: int = len(rows)) -> None:
            done(first * length + steps * size)

        yield part, known[part], select(context, rows), on_step
