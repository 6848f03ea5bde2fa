"""OpenAI's image endpoints, as their client libraries call them: models, generations, edits, streams."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from ..drawing import Drawing, Known
from ..pipeline import Pipeline
from .connection import within
from .errors import APIError, answer
from .schemas import (
    Edit,
    Generation,
    by_prompt,
    drawing_of,
    find_model,
    read_alpha,
    read_picture,
    read_size,
    size_of,
)
from .settings import Settings
from .store import Store
from .studio import Studio, png_files

EDIT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        "image": {
                            "type": "string",
                            "format": "binary",
                            "description": "Of the model's size.",
                        },
                        "mask": {"type": "string", "format": "binary", "description": "Transparent where to draw."},
                        **Edit.model_json_schema()["properties"],
                    },
                }
            }
        },
    }
}


def router(studio: Studio, settings: Settings, store: Store) -> APIRouter:
    """The endpoints under /v1."""
    routes = APIRouter(tags=["OpenAI"])
    started = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "chainrule"}

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models of this server."""
        return {"object": "list", "data": [described(name) for name in studio.models]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return described(find_model(studio, name)[0])

    @routes.post("/v1/images/generations")
    async def generations(options: Generation, request: Request) -> Response:
        """Draws images of a prompt."""
        pipeline = find_model(studio, options.model)[1].pipeline
        options, text = by_prompt(pipeline, options)
        drawing = drawing_of(studio, settings, options, text, size=read_size(options))
        return await respond(request, options, drawing, "image_generation")

    @routes.post("/v1/images/edits", openapi_extra=EDIT_BODY)
    async def edits(request: Request) -> Response:
        """Draws what is transparent in the mask, or without a mask in the image."""
        async with request.form(max_files=2, max_fields=64, max_part_size=settings.max_bytes) as form:
            files = {name.removesuffix("[]"): one for name, one in form.multi_items() if isinstance(one, UploadFile)}
            fields = {name: one for name, one in form.multi_items() if not isinstance(one, UploadFile)}
            data = {name: await one.read() for name, one in files.items()}
        if "image" not in data or not data.keys() <= {"image", "mask"}:
            raise APIError("send one file called image, and perhaps one called mask", param="image")
        try:
            lists = {name: fields[name].split(",") for name in ("seeds", "upscalers") if name in fields}
            options = Edit.model_validate(fields | lists)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        pipeline = find_model(studio, options.model)[1].pipeline
        shape = pipeline.tokenizer.image_shape
        image = read_picture(data["image"], settings, shape)
        mask = read_alpha(data.get("mask", data["image"]), settings, shape[1:])
        options, text = by_prompt(pipeline, options)
        known = Known.of(image, mask, options.particles, options.paste)
        drawing = drawing_of(studio, settings, options, text, known, read_size(options))
        return await respond(request, options, drawing, "image_edit")

    async def respond(request: Request, options: Generation, drawing: Drawing, kind: str) -> Response:
        pipeline = await studio.pipeline_of(drawing)
        common = {"size": size_of(drawing, pipeline), "quality": "auto", "background": "opaque", "output_format": "png"}
        usage = _usage(drawing, pipeline)
        if options.stream:
            if options.partial_images and drawing.best_of > 1:
                raise APIError("partial images would show candidates that best_of rejects", param="partial_images")
            stream = _events(studio, settings, drawing, options, kind, common | {"usage": usage})
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        if options.partial_images:
            raise APIError("partial_images needs stream", param="partial_images")
        images = await within(request, settings.timeout, studio.draw(drawing))
        files = await png_files(drawing, images, options.metadata)
        if options.response_format == "url":
            data = [{"url": f"{request.base_url}pictures/{store.add(file)}"} for file in files]
        else:
            data = [{"b64_json": base64.b64encode(file).decode()} for file in files]
        data = [one | {"seed": str(seed)} for one, seed in zip(data, drawing.seeds, strict=True)]
        value = {"created": int(time.time()), "data": data, **common, "usage": usage}
        return Response(json.dumps({**value, "quality": None}), media_type="application/json")

    return routes


def _usage(drawing: Drawing, pipeline: Pipeline) -> dict[str, Any]:
    """What was read and drawn, counted in tokens: the text once for each image, and all codes of images."""
    count, tokenizer = len(drawing.seeds) * drawing.best_of, pipeline.text_tokenizer
    text = 0 if drawing.texts is None or tokenizer is None else tokenizer.length * count
    codes = pipeline.tokenizer.spec.length * count
    details = {"text_tokens": text, "image_tokens": 0}
    return {
        "input_tokens": text, "input_tokens_details": details, "output_tokens": codes, "total_tokens": text + codes
    }  # fmt: skip


async def _events(
    studio: Studio, settings: Settings, drawing: Drawing, options: Generation, kind: str, common: dict[str, Any]
) -> AsyncIterator[str]:
    """Server-sent events: the pictures while they grow, and at the end; or an error."""
    index = 0
    try:
        async for images, done in studio.grow(drawing, options.partial_images, settings.timeout):
            files = await png_files(drawing, images, done and options.metadata)
            for image_index, (file, seed) in enumerate(zip(files, drawing.seeds, strict=True)):
                more = {"image_index": image_index} | ({"seed": str(seed)} if done else {"partial_image_index": index})
                yield _event(f"{kind}.{'completed' if done else 'partial_image'}", file, common | more)
            index += 1
    except Exception as error:
        yield f"event: error\ndata: {answer(error).body.decode()}\n\n"


def _event(kind: str, file: bytes, more: dict[str, Any]) -> str:
    value = {"type": kind, "b64_json": base64.b64encode(file).decode(), "created_at": int(time.time()), **more}
    return f"event: {kind}\ndata: {json.dumps(value)}\n\n"
