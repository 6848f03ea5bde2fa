"""What the page does: draw, complete, vary, examine and compare; `blocks` is how it looks.

Pictures are PNG files that say how they were drawn.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..drawing import Drawing, Known, to_base64
from ..images import to_pil
from ..pipeline import Pipeline
from ..variation import kept
from .engine import Busy
from .errors import APIError
from .schemas import Draw, drawing_of, find_model
from .settings import Settings
from .store import Store
from .studio import Studio, png_files

FRAMES = 8
"""How often a picture is shown while it grows."""
HISTORY = 60
HALVES = {
    "top half": (0, 0, 1, 0.5),
    "bottom half": (0, 0.5, 1, 1),
    "left half": (0, 0, 0.5, 1),
    "right half": (0.5, 0, 1, 1),
}
PAINTED = "what I paint over"
CHOOSE = "choose a picture first: upload one, or take the last one that was drawn"

Items = list[tuple[str, str]]
"""Pictures for a gallery: path and caption."""


@dataclass(frozen=True)
class Inputs:
    """What the inputs of the page say; Gradio gives their values in this order, see `blocks.build`."""

    model: str
    text: str
    label: str | None
    prefix: Image.Image | None
    seeds: str
    n: float
    best_of: float
    negative: str
    guidance: float
    temperature: float
    top_k: float | None
    top_p: float | None
    upscalers: list[str]


class Page:
    """The page of a studio: what its buttons do, and what its inputs offer for a model.

    Args:
        store: keeps the files that are shown.
    """

    def __init__(self, studio: Studio, settings: Settings, store: Store) -> None:
        self.studio, self.settings, self.store = studio, settings, store
        self.names = list(studio.models)

    async def draw(
        self, history: Items, height: float | None, width: float | None, *values: Any
    ) -> AsyncIterator[tuple[Items, Items]]:
        """Pictures as they grow, of a size in pixels; then the pictures and the history with them."""
        async with _shown():
            inputs = Inputs(*values)
            name, served = find_model(self.studio, inputs.model)
            _, *own = served.pipeline.tokenizer.image_shape
            size = (int(height or own[0]), int(width or own[1])) if name in self.studio.resizable else None
            async for items in self._grow(self._drawing(inputs, size=size)):
                yield items, history
            yield items, [*items, *history][:HISTORY]

    async def compare(self, history: Items, other: str, *values: Any) -> AsyncIterator[tuple[Items, ...]]:
        """Pictures by two models from the same seeds."""
        async with _shown():
            inputs = Inputs(*values)
            first = self._drawing(inputs)
            second = replace(self._drawing(self._fitting(other, inputs, len(first.seeds))), seeds=first.seeds)
            one, two = await asyncio.gather(*(self.studio.draw(drawing) for drawing in (first, second)))
            left, right = await self._items(first, one), await self._items(second, two)
            yield left, right, [*left, *right, *history][:HISTORY]

    async def complete(
        self, history: Items, editor: dict[str, Any] | None, where: str, particles: float, paste: bool, *values: Any
    ) -> AsyncIterator[tuple[Items, Items]]:
        """Completions as they grow."""
        async with _shown():
            if editor is None or editor.get("background") is None:
                raise APIError(CHOOSE)
            inputs = Inputs(*values)
            _, served = find_model(self.studio, inputs.model)
            shape = served.pipeline.tokenizer.image_shape
            mask = torch.ones(shape[1:], dtype=torch.bool)
            if where == PAINTED:
                mask = ~_painted(editor["layers"], shape)
            else:
                x0, y0, x1, y1 = HALVES[where]
                mask[int(y0 * shape[1]) : int(y1 * shape[1]), int(x0 * shape[2]) : int(x1 * shape[2])] = False
            if mask.all():
                raise APIError("paint over the part that is to be drawn, or choose a half")
            known = Known.of(_fitted(editor["background"], shape), mask, int(particles), paste)
            async for items in self._grow(self._drawing(inputs, known)):
                yield items, history
            yield items, [*items, *history][:HISTORY]

    async def vary(
        self, history: Items, picture: Image.Image | None, strength: float, particles: float, *values: Any
    ) -> AsyncIterator[tuple[Items, Items]]:
        """Variations as they grow."""
        async with _shown():
            if picture is None:
                raise APIError(CHOOSE)
            inputs = replace(Inputs(*values), prefix=None)  # that of the picture itself
            pipeline = find_model(self.studio, inputs.model)[1].pipeline
            image, mask = _fitted(picture, pipeline.tokenizer.image_shape), kept(pipeline, strength)
            known = Known.of(image, mask, int(particles), whole=True)
            async for items in self._grow(self._drawing(inputs, known)):
                yield items, history
            yield items, [*items, *history][:HISTORY]

    async def examine(self, picture: Image.Image | None, model: str, text: str, label: str | None) -> tuple[Any, ...]:
        """Reconstruction, map of surprise, likelihood and codes of a picture."""
        async with _shown():
            if picture is None:
                raise APIError("choose a picture first")
            name, served = find_model(self.studio, model)
            reads = served.pipeline.prior.conditions.reads_text
            image = _fitted(picture, served.pipeline.tokenizer.image_shape)
            chosen = label or None
            scores, colours = await self.studio.score(name, image, chosen, text if reads else None)
            rebuilt = await self.studio.reconstruct(name, image)
            codes = await self.studio.encode(name, image)
            bits = scores.bits_of_codes if scores.bits_per_dim is None else scores.bits_per_dim
            unit = "bits of codes" if scores.bits_per_dim is None else "bits per dimension"
            words = f"-log p = {scores.nats.item():.2f} nats, {bits.item():.3f} {unit}"
            rows = "\n\n".join(_written(grid[0]) for grid in codes)
            return _picture(image), _picture(rebuilt), _picture(colours), words, rows

    def choices(self, model: str) -> tuple[Any, ...]:
        """What the inputs offer for a model: text, class, prefix, negative text, guidance, height and width."""
        pipeline = self.studio.models[model].pipeline
        reads, classes = pipeline.prior.conditions.reads_text, _classes(pipeline)
        guided = reads or pipeline.prior.conditions.null_label
        needed = bool(classes) and not pipeline.prior.conditions.null_label
        label = gr.update(visible=bool(classes), choices=classes, value=classes[0][1] if needed else None)
        source = f"Draw from {_source(pipeline)} of this picture"
        prefix = gr.update(visible=pipeline.prior.conditions.reads_image, label=source)
        sides = pipeline.tokenizer.image_shape[1:]
        size = [gr.update(visible=model in self.studio.resizable, value=side, minimum=side) for side in sides]
        return gr.update(visible=reads), label, prefix, gr.update(visible=reads), gr.update(visible=guided), *size

    def about(self, model: str) -> str:
        """What a model draws, and what is known to go wrong."""
        pipeline = self.studio.models[model].pipeline
        _, height, width = pipeline.tokenizer.image_shape
        faults = pipeline.card.get("known_faults")
        told = [f"{pipeline.prior.name}, {width}x{height} pixels, {pipeline.tokenizer.spec.length} codes."]
        if pipeline.prior.conditions.reads_image:
            told.append(f"It draws from {_source(pipeline)} of a picture.")
        if model in self.studio.resizable:
            told.append("It draws larger pictures, too.")
        return " ".join([*told, f"Known faults: {faults}"] if faults else told)

    def _drawing(self, inputs: Inputs, known: Known | None = None, size: tuple[int, int] | None = None) -> Drawing:
        """The drawing of what the inputs say."""
        pipeline = find_model(self.studio, inputs.model)[1].pipeline
        reads, guided, prefix = pipeline.prior.conditions.reads_text, inputs.guidance != 1, None
        if inputs.prefix is not None and pipeline.prior.conditions.reads_image:
            prefix = to_base64(_fitted(inputs.prefix, pipeline.tokenizer.image_shape))
        try:
            seeds = [int(one) for one in inputs.seeds.replace(" ", "").split(",") if one]
        except ValueError:
            raise APIError("seeds must be whole numbers with commas") from None
        images = {"seeds": seeds} if len(seeds) > 1 else {"n": int(inputs.n), "seed": seeds[0] if seeds else None}
        options = Draw(
            model=inputs.model, label=inputs.label or None, best_of=int(inputs.best_of), upscalers=inputs.upscalers,
            negative=(inputs.negative or None) if guided and reads else None, guidance=inputs.guidance,
            temperature=inputs.temperature, top_k=int(inputs.top_k or 0) or None, top_p=inputs.top_p or None,
            prefix=prefix, **images,
        )  # fmt: skip
        return drawing_of(self.studio, self.settings, options, inputs.text if reads else None, known, size)

    def _fitting(self, model: str, inputs: Inputs, count: int) -> Inputs:
        """The inputs for `count` images of another model, without what it has not: the class, guidance, upscalers."""
        pipeline = self.studio.models[model].pipeline
        conditions = pipeline.prior.conditions
        label = inputs.label if inputs.label in [value for _, value in _classes(pipeline)] else None
        guidance = inputs.guidance if conditions.reads_text or conditions.null_label else 1.0
        channels, known = pipeline.tokenizer.image_shape[0], self.studio.upscalers
        upscalers = [name for name in inputs.upscalers if known[name].model.config.image_channels == channels]
        return replace(
            inputs, model=model, label=label, guidance=guidance, upscalers=upscalers, seeds="", n=count
        )  # fmt: skip

    async def _grow(self, drawing: Drawing) -> AsyncIterator[Items]:
        frames = 0 if drawing.best_of > 1 else FRAMES
        async for images, done in self.studio.grow(drawing, frames, self.settings.timeout):
            yield await self._items(drawing, images, done)

    async def _items(self, drawing: Drawing, images: Tensor, done: bool = True) -> Items:
        """Files of pictures, and their seeds as captions."""
        items = []
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in drawing.model.name).strip("-")[-40:]
        for file, seed in zip(await png_files(drawing, images, done), drawing.seeds, strict=True):
            name = f"{stem}-{seed}-{secrets.token_hex(4)}.png" if done else f"growing-{secrets.token_hex(8)}.png"
            items.append((self.store.write(name, file), f"seed {seed}" if done else ""))
        return items


class _shown:
    """Errors of a request as a message on the page."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, Busy):
            raise gr.Error("Too many images are waiting; try again soon.", print_exception=False)
        if isinstance(error, asyncio.TimeoutError):
            raise gr.Error("Drawing took longer than this server allows.", print_exception=False)
        if isinstance(error, (APIError, ValueError)):
            sentence = str(error.errors()[0]["msg"] if hasattr(error, "errors") else error)
            raise gr.Error(sentence[:1].upper() + sentence[1:] + ".", print_exception=False)


def _classes(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Names of classes, and what `Pipeline.label_number` takes for them."""
    names = pipeline.class_names or [str(number) for number in range(pipeline.num_classes)]
    return [(name, name) for name in names]


def _source(pipeline: Pipeline) -> str:
    """What a model that draws from an image reads of it, in words."""
    return f"the {pipeline.prior.conditions.image_prefix.replace('_', ' ')}"


def _fitted(picture: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    """A picture resized and cropped to a model's size: uint8 (C, H, W); white where it is transparent."""
    channels, height, width = shape
    picture = picture.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture).reshape(height, width, channels).transpose(2, 0, 1).copy())


def _painted(layers: Sequence[Image.Image], shape: tuple[int, int, int]) -> Tensor:
    """Where something was painted, cropped as the picture is: bool (H, W)."""
    _, height, width = shape
    found = torch.zeros(height, width, dtype=torch.bool)
    for layer in layers:
        alpha = ImageOps.fit(layer.convert("RGBA").getchannel("A"), (width, height), Image.Resampling.BOX)
        found |= torch.from_numpy(np.array(alpha) >= 64)
    return found


def _picture(image: Tensor) -> Image.Image:
    """An image, uint8 (C, H, W), enlarged so that its pixels are seen."""
    picture = to_pil(image[None])[0]
    scale = max(1, 256 // picture.width)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _written(grid: Tensor) -> str:
    """A grid of codes (H, W, D) as rows of numbers; codes of one position are joined by +."""
    return "\n".join(" ".join("+".join(map(str, codes)) for codes in row) for row in grid.tolist())
