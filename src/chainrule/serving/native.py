"""What OpenAI's API lacks: labels, completions as JSON, likelihoods, maps of surprise, codes."""

from __future__ import annotations

import base64
from typing import Any

import torch
from fastapi import APIRouter, Request
from torch import Tensor

from ..drawing import Known
from ..images import to_pil
from ..pictures import png
from ..pipeline import Pipeline
from ..strict import to_plain
from ..variation import kept
from .connection import within
from .errors import APIError
from .schemas import (
    Codes,
    Draw,
    Score,
    Upscale,
    check_upscalers,
    drawing_of,
    find_model,
    find_upscalers,
    from_base64,
    read_alpha,
    read_mask,
    read_picture,
)
from .settings import Settings
from .studio import Studio, png_files


def describe(pipeline: Pipeline, resizable: bool) -> dict[str, Any]:
    """What a model draws and reads; `resizable`: whether it draws images of other sizes, too."""
    channels, height, width = pipeline.tokenizer.image_shape
    conditions = pipeline.prior.conditions
    return {
        "system": pipeline.prior.name,
        "image": {"height": height, "width": width, "channels": channels},
        "resizable": resizable,
        "codes": pipeline.tokenizer.spec.to_dict(),
        "classes": pipeline.num_classes,
        "class_names": None if pipeline.class_names is None else list(pipeline.class_names),
        "reads_text": conditions.reads_text,
        "guidance": conditions.reads_text or conditions.null_label,
        "image_prefix": conditions.image_prefix,
    }


def router(studio: Studio, settings: Settings) -> APIRouter:
    """The endpoints under /api."""
    routes = APIRouter(prefix="/api", tags=["native"])

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """What the models of this server draw and read."""
        found = {name: describe(one.pipeline, name in studio.resizable) for name, one in studio.models.items()}
        return {"models": found, "rerankers": list(studio.rerankers), "upscalers": list(studio.upscalers)}

    @routes.post("/draw")
    async def draw(options: Draw, request: Request) -> dict[str, Any]:
        """Draws images, or completes or varies one."""
        known = _known(options, find_model(studio, options.model)[1].pipeline, settings)
        drawing = drawing_of(studio, settings, options, options.text, known, options.size)
        images = await within(request, settings.timeout, studio.draw(drawing))
        files = await png_files(drawing, images, options.metadata)
        seeds = [str(seed) for seed in drawing.seeds]
        return {
            "images": [
                {"png": base64.b64encode(file).decode(), "seed": seed} for file, seed in zip(files, seeds, strict=True)
            ],
            "drawing": to_plain(drawing) | {"seeds": seeds, "known": None, "prefix": None},
        }

    @routes.post("/score")
    async def score(options: Score, request: Request) -> dict[str, Any]:
        """How probable a picture is, and where it is surprising."""
        name, image = _opened(studio, settings, options)
        work = studio.score(name, image, options.label, options.text)
        scores, colours = await within(request, settings.timeout, work)
        return {
            "nats": scores.nats.item(),
            "bits_per_dim": None if scores.bits_per_dim is None else scores.bits_per_dim.item(),
            "bits_of_codes": None if scores.bits_of_codes is None else scores.bits_of_codes.item(),
            "surprise": scores.surprise[0].tolist(),
            "map": _base64(colours),
        }

    @routes.post("/encode")
    async def encode(options: Score, request: Request) -> dict[str, Any]:
        """The codes of a picture."""
        name, image = _opened(studio, settings, options, only_image=True)
        codes = await within(request, settings.timeout, studio.encode(name, image))
        return {"codes": [grid[0].tolist() for grid in codes]}

    @routes.post("/decode")
    async def decode(options: Codes, request: Request) -> dict[str, Any]:
        """The picture of codes."""
        name, _ = find_model(studio, options.model)
        try:
            codes = tuple(torch.tensor(grid)[None] for grid in options.codes)
        except (ValueError, TypeError):
            raise APIError("codes must be grids of numbers, [height][width][depth] each", param="codes") from None
        return {"png": _base64(await within(request, settings.timeout, studio.decode(name, codes)))}

    @routes.post("/reconstruct")
    async def reconstruct(options: Score, request: Request) -> dict[str, Any]:
        """What the codes of a picture keep of it."""
        name, image = _opened(studio, settings, options, only_image=True)
        return {"png": _base64(await within(request, settings.timeout, studio.reconstruct(name, image)))}

    @routes.post("/upscale")
    async def upscale(options: Upscale, request: Request) -> dict[str, Any]:
        """A picture at twice its size, or more."""
        upscalers = find_upscalers(studio, options.upscalers)
        channels = upscalers[0].model.config.image_channels
        image = read_picture(from_base64(options.image, "image"), settings, (channels,))
        check_upscalers(upscalers, settings, image.shape)
        images = await within(request, settings.timeout, studio.upscale(options.upscalers, image[None]))
        return {"png": _base64(images[0])}

    return routes


def _known(options: Draw, pipeline: Pipeline, settings: Settings) -> Known | None:
    """What is known of an image that is to be completed or varied."""
    if options.image is None:
        if options.mask is not None or options.strength is not None:
            raise APIError("mask and strength say what is kept of an image: send the image too", param="image")
        return None
    data, shape = from_base64(options.image, "image"), pipeline.tokenizer.image_shape
    image = read_picture(data, settings, shape)
    if options.strength is not None:
        if options.mask is not None or options.paste:
            raise APIError("strength draws codes all over the image: leave mask and paste out", param="strength")
        return Known.of(image, kept(pipeline, options.strength), options.particles or 1, whole=True)
    if options.mask is None:
        mask = read_alpha(data, settings, shape[1:])
    else:
        mask = read_mask(from_base64(options.mask, "mask"), settings, shape[1:])
    return Known.of(image, mask, options.particles or 8, options.paste)


def _opened(studio: Studio, settings: Settings, options: Score, only_image: bool = False) -> tuple[str, Tensor]:
    """The name of a model, and a picture in its shape."""
    name, served = find_model(studio, options.model)
    if only_image and not (options.label is None and options.text is None):
        raise APIError("codes depend on the image alone: leave label and text out", param="label")
    shape = served.pipeline.tokenizer.image_shape
    return name, read_picture(from_base64(options.image, "image"), settings, shape)


def _base64(image: Tensor) -> str:
    """An image, uint8 (C, H, W), as a PNG file."""
    return base64.b64encode(png(to_pil(image[None])[0])).decode()
