"""The page: draw, complete, examine and compare, in a browser; built with Gradio.

Everything that is loaded comes from the server itself.  Pictures are PNG files that say how they were drawn.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..drawing import Drawing, Known, Source
from ..images import to_pil
from ..pipeline import Pipeline
from ..zoo import load_kind
from .engine import Busy, Engine
from .errors import APIError
from .schemas import Draw, drawing_of, find_model
from .settings import Settings
from .store import Store
from .studio import Served, Studio, png_files

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
CSS = """
.gallery-item img, .grid-wrap img, .image-frame img, .preview img {image-rendering: pixelated}
@media (max-width: 640px) {.grid-wrap .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important}}
"""
SEEDS = "Empty: at random. One number, or one for each image with commas."

Items = list[tuple[str, str]]
"""Pictures for a gallery: path and caption."""


@dataclass(frozen=True)
class Inputs:
    """What the inputs of the page say; Gradio gives their values in this order, see `Page.blocks`."""

    model: str
    text: str
    label: str | None
    seeds: str
    n: float
    best_of: float
    negative: str
    guidance: float
    temperature: float
    top_k: float | None
    top_p: float | None
    upscalers: list[str]


def look() -> dict[str, Any]:
    """Theme and style, for `launch` and for mounting: fonts of the reader's system, nothing from elsewhere."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css": CSS}


def demo(models: str | Pipeline | Sequence[str]) -> gr.Blocks:
    """The page of one or several models, for a notebook or a Space: `chainrule.demo("emoji_parti").launch()`.

    Args:
        models: a name, folder or hub id; several of them; or a pipeline.
    """
    if isinstance(models, Pipeline):
        served = {"model": Served(models, Source(name="model"))}
    else:
        names = [models] if isinstance(models, str) else list(models)
        served = {name: Served(load_kind(name, "pipeline"), Source.of(name)) for name in names}
    settings = Settings(models=tuple(served))
    page = Page(Studio(served, Engine(settings.max_rows, settings.max_waiting)), settings, Store())
    blocks = page.blocks()
    blocks.launch = functools.partial(blocks.launch, **look())
    return blocks


class Page:
    """The page of a studio.

    Args:
        store: keeps the files that are shown.
    """

    def __init__(self, studio: Studio, settings: Settings, store: Store) -> None:
        self.studio, self.settings, self.store = studio, settings, store
        self.names = list(studio.models)

    # ---------------------------------------------------------------- what it does

    async def draw(self, history: Items, *values: Any) -> AsyncIterator[tuple[Items, Items]]:
        """Pictures as they grow; then the pictures and the history with them."""
        async with _shown():
            drawing = self._drawing(Inputs(*values))
            async for items in self._grow(drawing):
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
                raise APIError("choose a picture first: upload one, or take the last one that was drawn")
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
        """What the inputs offer for a model: text, class, negative text, guidance."""
        pipeline = self.studio.models[model].pipeline
        reads, classes = pipeline.prior.conditions.reads_text, _classes(pipeline)
        guided = reads or pipeline.prior.conditions.null_label
        needed = bool(classes) and not pipeline.prior.conditions.null_label
        label = gr.update(visible=bool(classes), choices=classes, value=classes[0][1] if needed else None)
        return gr.update(visible=reads), label, gr.update(visible=reads), gr.update(visible=guided)

    def about(self, model: str) -> str:
        """What a model draws, and what is known to go wrong."""
        pipeline = self.studio.models[model].pipeline
        _, height, width = pipeline.tokenizer.image_shape
        faults = pipeline.card.get("known_faults")
        size = f"{width}x{height} pixels, {pipeline.tokenizer.spec.length} codes"
        return f"{pipeline.prior.name}, {size}." + (f" Known faults: {faults}" if faults else "")

    def _drawing(self, inputs: Inputs, known: Known | None = None) -> Drawing:
        """The drawing of what the inputs say."""
        pipeline = find_model(self.studio, inputs.model)[1].pipeline
        reads, guided = pipeline.prior.conditions.reads_text, inputs.guidance != 1
        try:
            seeds = [int(one) for one in inputs.seeds.replace(" ", "").split(",") if one]
        except ValueError:
            raise APIError("seeds must be whole numbers with commas") from None
        images = {"seeds": seeds} if len(seeds) > 1 else {"n": int(inputs.n), "seed": seeds[0] if seeds else None}
        options = Draw(
            model=inputs.model, label=inputs.label or None, best_of=int(inputs.best_of), upscalers=inputs.upscalers,
            negative=(inputs.negative or None) if guided and reads else None, guidance=inputs.guidance,
            temperature=inputs.temperature, top_k=int(inputs.top_k or 0) or None, top_p=inputs.top_p or None, **images,
        )  # fmt: skip
        return drawing_of(self.studio, self.settings, options, inputs.text if reads else None, known)

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

    # ---------------------------------------------------------------- how it looks

    def blocks(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(title="chainrule", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
            gr.Markdown("# chainrule\nPictures by autoregressive models, one code after the other.")
            history = gr.State([])
            model = gr.Dropdown(self.names, value=self.names[0], label="Model", interactive=True, elem_id="model")
            about = gr.Markdown(self.about(self.names[0]), elem_id="about")
            text = gr.Textbox(label="Prompt", placeholder="what to draw", elem_id="prompt")
            label = gr.Dropdown([], label="Class", elem_id="class")
            with gr.Row():
                seeds = gr.Textbox(label="Seeds", info=SEEDS, elem_id="seeds")
                n = gr.Slider(1, self.settings.max_n, value=min(4, self.settings.max_n), step=1, label="Images")
                best_of = gr.Slider(1, min(16, self.settings.max_candidates), value=1, step=1, label="Best of")
            with gr.Accordion("More options", open=False):
                negative = gr.Textbox(label="Draw away from (with guidance)")
                guidance = gr.Slider(1, 10, value=1, step=0.25, label="Guidance")
                temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature")
                top_k = gr.Number(label="Top k (0: all codes)", value=0, precision=0, minimum=0)
                top_p = gr.Slider(0, 1, value=1, step=0.01, label="Top p")
                upscalers = gr.Dropdown(
                    list(self.studio.upscalers), label="Upscalers, in this order", multiselect=True, value=[],
                    visible=bool(self.studio.upscalers), elem_id="upscalers",
                )  # fmt: skip
            inputs = [model, text, label, seeds, n, best_of, negative, guidance, temperature, top_k, top_p, upscalers]
            last = self._draw_tab(history, text, inputs)
            with gr.Tab("Complete"):
                self._complete_tab(history, last, inputs)
            with gr.Tab("Examine"):
                self._examine_tab(model, text, label)
            with gr.Tab("Compare"):
                self._compare_tab(history, inputs)
            with gr.Tab("History"):
                shown = _gallery("Drawn in this visit")
                history.change(lambda items: items, history, shown, show_progress="hidden")
            choices = [text, label, negative, guidance]
            model.change(self.choices, model, choices, show_progress="hidden")
            model.change(self.about, model, about, show_progress="hidden")
            page.load(self.choices, model, choices, show_progress="hidden")
        page.queue(default_concurrency_limit=16)
        page._queue.sleep_when_free = 0.05  # seconds; at Gradio's 0.001 an idle page slows all that is drawn
        return page

    def _draw_tab(self, history: gr.State, text: gr.Textbox, inputs: list[Any]) -> gr.Gallery:
        with gr.Tab("Draw"):
            button = gr.Button("Draw", variant="primary", elem_id="draw")
            gallery = _gallery("Pictures")
        for event in (button.click, text.submit):
            event(self.draw, [history, *inputs], [gallery, history], show_progress="minimal")
        return gallery

    def _complete_tab(self, history: gr.State, last: gr.Gallery, inputs: list[Any]) -> None:
        editor = gr.ImageEditor(
            type="pil", label="A picture; paint over the part that is to be drawn", sources=["upload", "clipboard"],
            layers=False, brush=gr.Brush(colors=["#ff4040"], color_mode="fixed"), canvas_size=(384, 384),
            elem_id="editor",
        )  # fmt: skip
        take = gr.Button("Take the first picture drawn")
        where = gr.Radio([PAINTED, *HALVES], value=PAINTED, label="Draw", elem_id="where")
        with gr.Row():
            particles = gr.Slider(1, self.settings.max_candidates, value=8, step=1, label="Particles")
            paste = gr.Checkbox(label="Keep known pixels exactly")
        button = gr.Button("Complete", variant="primary", elem_id="complete")
        gallery = _gallery("Completions", "completions")
        take.click(_first, last, editor, show_progress="hidden")
        button.click(
            self.complete, [history, editor, where, particles, paste, *inputs], [gallery, history],
            show_progress="minimal",
        )  # fmt: skip

    def _examine_tab(self, model: gr.Dropdown, text: gr.Textbox, label: gr.Dropdown) -> None:
        picture = gr.Image(
            type="pil", label="A picture", sources=["upload", "clipboard"], image_mode=None, elem_id="picture"
        )
        button = gr.Button("Examine", variant="primary", elem_id="examine")
        words = gr.Textbox(label="Likelihood", interactive=False, elem_id="likelihood")
        with gr.Row():
            read, rebuilt, surprise = map(
                _shown_picture, ("As the model reads it", "Reconstruction", "Surprise: light where unexpected")
            )
        codes = gr.Textbox(label="Codes", lines=4, max_lines=16, interactive=False)
        outputs = [read, rebuilt, surprise, words, codes]
        button.click(self.examine, [picture, model, text, label], outputs, show_progress="minimal")

    def _compare_tab(self, history: gr.State, inputs: list[Any]) -> None:
        other = gr.Dropdown(self.names, value=self.names[-1], label="The other model", elem_id="other")
        button = gr.Button("Compare on the same seeds", variant="primary", elem_id="compare")
        with gr.Row():
            left, right = _gallery("Model"), _gallery("The other model")
        outputs = [left, right, history]
        button.click(self.compare, [history, other, *inputs], outputs, show_progress="minimal")


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


def _gallery(label: str, elem_id: str | None = None) -> gr.Gallery:
    look = {"columns": 4, "object_fit": "contain", "height": "auto", "elem_id": elem_id}
    return gr.Gallery(label=label, interactive=False, type="filepath", **look)


def _shown_picture(label: str) -> gr.Image:
    buttons = ["download", "fullscreen"]
    return gr.Image(label=label, format="png", interactive=False, type="pil", min_width=160, buttons=buttons)


def _classes(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Names of classes, and what `Pipeline.label_number` takes for them."""
    names = pipeline.class_names or [str(number) for number in range(pipeline.num_classes)]
    return [(name, name) for name in names]


def _first(items: Items | None) -> Any:
    """The first picture of a gallery, for the editor."""
    if not items:
        raise gr.Error("Draw a picture first.", print_exception=False)
    return items[0][0]


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
