"""How the page looks: its inputs, and one tab for each thing that it does; built with Gradio.

Everything that is loaded comes from the server itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..drawing import Source
from ..pipeline import Pipeline
from ..zoo import load_kind
from .engine import Engine
from .page import HALVES, PAINTED, Items, Page
from .settings import Settings
from .store import Store
from .studio import Served, Studio

CSS = """
.gallery-item img, .grid-wrap img, .image-frame img, .preview img {image-rendering: pixelated}
@media (max-width: 640px) {.grid-wrap .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important}}
"""
SEEDS = "Empty: at random. One number, or one for each image with commas."


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
    blocks = build(Page(Studio(served, Engine(settings.max_rows, settings.max_waiting)), settings, Store()))
    blocks.launch = functools.partial(blocks.launch, **look())
    return blocks


def build(page: Page) -> gr.Blocks:
    """The page, to launch or to mount with `look`."""
    with gr.Blocks(title="chainrule", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown("# chainrule\nPictures by autoregressive models, one code after the other.")
        history = gr.State([])
        model = gr.Dropdown(page.names, value=page.names[0], label="Model", interactive=True, elem_id="model")
        about = gr.Markdown(page.about(page.names[0]), elem_id="about")
        text = gr.Textbox(label="Prompt", placeholder="what to draw", elem_id="prompt")
        label = gr.Dropdown([], label="Class", elem_id="class")
        prefix = _upload("A picture to draw from", "prefix", visible=False)
        with gr.Row():
            seeds = gr.Textbox(label="Seeds", info=SEEDS, elem_id="seeds")
            n = gr.Slider(1, page.settings.max_n, value=min(4, page.settings.max_n), step=1, label="Images")
            best_of = gr.Slider(1, min(16, page.settings.max_candidates), value=1, step=1, label="Best of")
        with gr.Accordion("More options", open=False):
            negative = gr.Textbox(label="Draw away from (with guidance)")
            guidance = gr.Slider(1, 10, value=1, step=0.25, label="Guidance")
            temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature")
            top_k = gr.Number(label="Top k (0: all codes)", value=0, precision=0, minimum=0)
            top_p = gr.Slider(0, 1, value=1, step=0.01, label="Top p")
            upscalers = gr.Dropdown(
                list(page.studio.upscalers), label="Upscalers, in this order", multiselect=True, value=[],
                visible=bool(page.studio.upscalers), elem_id="upscalers",
            )  # fmt: skip
        inputs = [
            model, text, label, prefix, seeds, n, best_of, negative, guidance, temperature, top_k, top_p, upscalers
        ]  # fmt: skip
        last, *size = _draw_tab(page, history, text, inputs)
        _complete_tab(page, history, last, inputs)
        _vary_tab(page, history, last, inputs)
        _examine_tab(page, model, text, label)
        _compare_tab(page, history, inputs)
        with gr.Tab("History"):
            shown = _gallery("Drawn in this visit")
            history.change(lambda items: items, history, shown, show_progress="hidden")
        choices = [text, label, prefix, negative, guidance, *size]
        model.change(page.choices, model, choices, show_progress="hidden")
        model.change(page.about, model, about, show_progress="hidden")
        blocks.load(page.choices, model, choices, show_progress="hidden")
    blocks.queue(default_concurrency_limit=16)
    blocks._queue.sleep_when_free = 0.05  # seconds; at Gradio's 0.001 an idle page slows all that is drawn
    return blocks


def _draw_tab(page: Page, history: gr.State, text: gr.Textbox, inputs: list[Any]) -> tuple[Any, ...]:
    """The pictures that are drawn, and the height and width that are asked for."""
    with gr.Tab("Draw"):
        with gr.Row():
            height, width = (
                gr.Number(label=f"{side}, pixels", precision=0, visible=False, elem_id=side.lower())
                for side in ("Height", "Width")
            )
        button = gr.Button("Draw", variant="primary", elem_id="draw")
        gallery = _gallery("Pictures")
    for event in (button.click, text.submit):
        event(page.draw, [history, height, width, *inputs], [gallery, history], show_progress="minimal")
    return gallery, height, width


def _complete_tab(page: Page, history: gr.State, last: gr.Gallery, inputs: list[Any]) -> None:
    with gr.Tab("Complete"):
        editor = gr.ImageEditor(
            type="pil", label="A picture; paint over the part that is to be drawn", sources=["upload", "clipboard"],
            layers=False, brush=gr.Brush(colors=["#ff4040"], color_mode="fixed"), canvas_size=(384, 384),
            elem_id="editor",
        )  # fmt: skip
        take = gr.Button("Take the first picture drawn")
        where = gr.Radio([PAINTED, *HALVES], value=PAINTED, label="Draw", elem_id="where")
        with gr.Row():
            particles = gr.Slider(1, page.settings.max_candidates, value=8, step=1, label="Particles")
            paste = gr.Checkbox(label="Keep known pixels exactly")
        button = gr.Button("Complete", variant="primary", elem_id="complete")
        gallery = _gallery("Completions", "completions")
    take.click(_first, last, editor, show_progress="hidden")
    given = [history, editor, where, particles, paste, *inputs]
    button.click(page.complete, given, [gallery, history], show_progress="minimal")


def _vary_tab(page: Page, history: gr.State, last: gr.Gallery, inputs: list[Any]) -> None:
    with gr.Tab("Vary"):
        picture = _upload("A picture, of whose codes a share is drawn again", "varied")
        take = gr.Button("Take the first picture drawn")
        with gr.Row():
            strength = gr.Slider(0.05, 1, value=0.4, step=0.05, label="Share of codes that is drawn again")
            particles = gr.Slider(1, page.settings.max_candidates, value=1, step=1, label="Particles")
        button = gr.Button("Vary", variant="primary", elem_id="vary")
        gallery = _gallery("Variations", "variations")
    take.click(_first, last, picture, show_progress="hidden")
    given = [history, picture, strength, particles, *inputs]
    button.click(page.vary, given, [gallery, history], show_progress="minimal")


def _examine_tab(page: Page, model: gr.Dropdown, text: gr.Textbox, label: gr.Dropdown) -> None:
    with gr.Tab("Examine"):
        picture = _upload("A picture", "picture")
        button = gr.Button("Examine", variant="primary", elem_id="examine")
        words = gr.Textbox(label="Likelihood", interactive=False, elem_id="likelihood")
        with gr.Row():
            read, rebuilt, surprise = map(
                _shown_picture, ("As the model reads it", "Reconstruction", "Surprise: light where unexpected")
            )
        codes = gr.Textbox(label="Codes", lines=4, max_lines=16, interactive=False)
    outputs = [read, rebuilt, surprise, words, codes]
    button.click(page.examine, [picture, model, text, label], outputs, show_progress="minimal")


def _compare_tab(page: Page, history: gr.State, inputs: list[Any]) -> None:
    with gr.Tab("Compare"):
        other = gr.Dropdown(page.names, value=page.names[-1], label="The other model", elem_id="other")
        button = gr.Button("Compare on the same seeds", variant="primary", elem_id="compare")
        with gr.Row():
            left, right = _gallery("Model"), _gallery("The other model")
    outputs = [left, right, history]
    button.click(page.compare, [history, other, *inputs], outputs, show_progress="minimal")


def _gallery(label: str, elem_id: str | None = None) -> gr.Gallery:
    look = {"columns": 4, "object_fit": "contain", "height": "auto", "elem_id": elem_id}
    return gr.Gallery(label=label, interactive=False, type="filepath", **look)


def _upload(label: str, elem_id: str, visible: bool = True) -> gr.Image:
    options = {"label": label, "elem_id": elem_id, "visible": visible}
    return gr.Image(type="pil", sources=["upload", "clipboard"], image_mode=None, height=240, **options)


def _shown_picture(label: str) -> gr.Image:
    buttons = ["download", "fullscreen"]
    return gr.Image(label=label, format="png", interactive=False, type="pil", min_width=160, buttons=buttons)


def _first(items: Items | None) -> Any:
    """The first picture of a gallery, for an input."""
    if not items:
        raise gr.Error("Draw a picture first.", print_exception=False)
    return items[0][0]
