"""What requests may hold, as the OpenAPI schema shows it; and how they become drawings."""

from __future__ import annotations

import base64
import binascii
import io
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data.images import decode, decode_mask
from ..decoding import Sampling, image_seeds
from ..drawing import Drawing, Known, check_upscaler, to_base64
from ..pipeline import Pipeline
from .errors import APIError
from .settings import Settings
from .studio import Helper, Served, Studio

MAX_SEED = 2**63 - 1


class Options(BaseModel):
    """What all ways to draw share."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="A name of /v1/models; the first by default.")
    n: int = Field(1, ge=1, description="Images.")
    seed: int | None = Field(
        None, ge=0, lt=MAX_SEED, description="Image i depends on it and on i only; at random by default."
    )
    seeds: list[int] | None = Field(None, description="One per image, in the place of n and seed.")
    label: int | str | None = Field(None, description="A class by number or name.")
    negative: str | None = Field(None, description="A text to draw away from, with guidance.")
    prefix: str | None = Field(
        None, description="A picture, base64, whose grey, edges or low resolution a model draws from."
    )
    temperature: float = Field(1.0, ge=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    guidance: float = Field(1.0, description="Above 1 draws towards the text or label; 3 is a start.")
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    upscalers: list[str] = Field([], description="Applied one after the other; each doubles the images.")
    metadata: bool = Field(True, description="Whether PNG files say how they were drawn.")

    def sampling(self) -> Sampling:
        """How codes are drawn."""
        names = "temperature", "top_k", "top_p", "guidance", "precision"
        return Sampling(**{name: getattr(self, name) for name in names})

    def image_seeds(self) -> tuple[int, ...]:
        """One seed per image."""
        if self.seeds is None:
            return tuple(image_seeds(secrets.randbits(62) if self.seed is None else self.seed, self.n))
        if self.seed is not None or self.n not in (1, len(self.seeds)):
            raise APIError("seeds gives each image its own seed: leave n and seed out", param="seeds")
        if not self.seeds or not all(0 <= one < MAX_SEED for one in self.seeds):
            raise APIError(f"seeds must be a list of numbers in 0..{MAX_SEED - 1}", param="seeds")
        return tuple(self.seeds)


class Generation(Options):
    """`POST /v1/images/generations`: OpenAI's fields, and this server's."""

    prompt: str = Field(
        "", description="A text, or for a model of classes the name of a class; empty for any other model."
    )
    size: str | None = Field(
        None, description="Width x height as 64x64, with upscalers after them; the model's own by default, or by auto."
    )
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png"] = "png"
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=16, description="With stream: pictures sent while they grow.")
    user: str | None = Field(None, description="Whoever asks; not used.")
    best_of: int = Field(1, ge=1, description="Candidates for each image, of which the best is kept.")
    reranker: str | None = Field(None, description="Judges the candidates; by default the model itself.")


class Edit(Generation):
    """`POST /v1/images/edits`, beside the files `image` and `mask`: what is transparent is drawn."""

    best_of: Literal[1] = 1
    reranker: None = None
    particles: int = Field(8, ge=1, description="Candidates, to agree with what is known further below.")
    paste: bool = Field(False, description="Keep known pixels exactly, not as the model's tokenizer sees them.")


class Draw(Options):
    """`POST /api/draw`."""

    text: str | None = Field(None, description="What to draw, for a model that reads texts.")
    best_of: int = Field(1, ge=1)
    reranker: str | None = None
    image: str | None = Field(None, description="A picture to complete, base64.")
    mask: str | None = Field(None, description="Base64: white where the picture is known; by default its alpha.")
    strength: float | None = Field(
        None, gt=0, le=1, description="In the place of a mask: vary the picture, and draw this share of codes again."
    )
    particles: int | None = Field(
        None, ge=1, description="Candidates: 8 by default for a completion, 1 for a variation."
    )
    paste: bool = False
    size: tuple[int, int] | None = Field(None, description="Height and width; the model's own by default.")


class Score(BaseModel):
    """`POST /api/score`, `/api/encode` and `/api/reconstruct`: an image, base64, and for scores its condition."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    image: str = Field(description="A picture, base64, of the model's size.")
    label: int | str | None = None
    text: str | None = None


class Upscale(BaseModel):
    """`POST /api/upscale`: an image, base64, of any size."""

    model_config = ConfigDict(extra="forbid")

    upscalers: list[str] = Field(min_length=1, description="Applied one after the other; each doubles the image.")
    image: str


class Codes(BaseModel):
    """`POST /api/decode`: what `/api/encode` gives."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    codes: list[Any] = Field(description="Grids from coarse to fine, each [height][width][depth].")


def find_model(studio: Studio, name: str | None) -> tuple[str, Served]:
    """The model of a request; raises APIError where there is none of that name."""
    if name is None:
        name = next(iter(studio.models))
    if name not in studio.models:
        known = ", ".join(studio.models)
        raise APIError(f"this server has no model {name!r}; it has: {known}", 404, "model", "model_not_found")
    return name, studio.models[name]


def find_upscalers(studio: Studio, names: Sequence[str]) -> list[Helper]:
    """The upscalers of a request; raises APIError where there is none of a name."""
    for name in names:
        if name not in studio.upscalers:
            known = ", ".join(studio.upscalers) or "none"
            raise APIError(f"this server has no upscaler {name!r}; it has: {known}", 404, "upscalers")
    return [studio.upscalers[name] for name in names]


def check_upscalers(upscalers: Sequence[Helper], settings: Settings, shape: Sequence[int]) -> None:
    """Raises APIError or ValueError where images (C, H, W) cannot be upscaled, or become too large."""
    for one in upscalers:
        check_upscaler(one.source.name, one.model, shape[0])
    if upscalers and shape[1] * shape[2] << 2 * len(upscalers) > settings.max_upscaled:
        raise APIError(f"upscalers may make at most {settings.max_upscaled:,} pixels of an image", param="upscalers")


def drawing_of(
    studio: Studio, settings: Settings, options: Options, text: str | None, known: Known | None = None,
    size: tuple[int, int] | None = None,
) -> Drawing:  # fmt: skip
    """The drawing that a request asks for; raises APIError or ValueError where it cannot be.

    Args:
        text: what to draw; None: nothing in particular.
        known: of completions and variations.
        size: height and width, before upscalers; None: the model's own.
    """
    name, served = find_model(studio, options.model)
    pipeline, seeds = served.pipeline, options.image_seeds()
    best_of, reranker = getattr(options, "best_of", 1), getattr(options, "reranker", None)
    candidates = max(best_of, known.particles if known is not None else 1)
    if len(seeds) > settings.max_n:
        raise APIError(f"n must be at most {settings.max_n}", param="n")
    if candidates > settings.max_candidates or len(seeds) * candidates > settings.max_rows + settings.max_waiting:
        raise APIError(f"there may be at most {settings.max_candidates} candidates for an image, fewer for many images")
    if known is not None and best_of > 1:
        raise APIError("best of several is kept of images, not of completions: leave best_of at 1", param="best_of")
    if reranker is not None and (best_of == 1 or reranker not in studio.rerankers):
        known_names = ", ".join(studio.rerankers) or "none"
        raise APIError(f"a reranker judges with best_of above 1, and this server has: {known_names}", param="reranker")
    upscalers = find_upscalers(studio, options.upscalers)
    channels, *own = pipeline.tokenizer.image_shape
    size = None if size == tuple(own) else size
    if size is not None:
        _check_size(settings, size, own, known)
    check_upscalers(upscalers, settings, (channels, *(size or own)))
    label = None if options.label is None else (pipeline.label_number(options.label),) * len(seeds)
    prefix = None if options.prefix is None else _read_prefix(options.prefix, settings, pipeline, known)
    return Drawing(
        model=served.source if served.source.name == name else replace(served.source, name=name), seeds=seeds,
        labels=label, texts=None if text is None else (text,) * len(seeds), negative=options.negative,
        sampling=options.sampling(), best_of=best_of, known=known, prefix=prefix, device=str(pipeline.device),
        reranker=None if reranker is None else studio.rerankers[reranker].source,
        upscalers=tuple(one.source for one in upscalers), size=size,
    )  # fmt: skip


def by_prompt(pipeline: Pipeline, options: Generation) -> tuple[Generation, str | None]:
    """The prompt as the text or the class of a model: the options, and the text.

    Raises:
        APIError: a prompt that the model would ignore, or that is no class of it.
    """
    prompt = options.prompt.strip()
    if pipeline.prior.conditions.reads_text:
        return options, prompt
    if not prompt:
        return options, None
    if not pipeline.num_classes:
        raise APIError("this model draws without a prompt, which it would ignore: send an empty one", param="prompt")
    names = {name.lower(): name for name in pipeline.class_names or ()}
    return options.model_copy(update={"label": names.get(prompt.lower(), prompt)}), None


def _check_size(settings: Settings, size: Sequence[int], own: Sequence[int], known: Known | None) -> None:
    """Raises APIError for a height and width, other than the model's own, that nobody may ask for."""
    named = f"{own[1]}x{own[0]}"
    if known is not None:
        raise APIError(
            f"pictures are completed and varied at {named}, the model's own size: leave size out", 400, "size"
        )
    if min(size) < 1 or size[0] * size[1] > settings.max_drawn:
        raise APIError(
            f"this model draws images of {named}, and where it allows other sizes this server draws at most "
            f"{settings.max_drawn:,} pixels", param="size",
        )  # fmt: skip


def _read_prefix(text: str, settings: Settings, pipeline: Pipeline, known: Known | None) -> str:
    """The picture that a model draws from, as `Drawing.prefix`; raises APIError for anything else."""
    if not pipeline.prior.conditions.reads_image:
        raise APIError("this model does not draw from an image: leave prefix out", param="prefix")
    if known is not None and known.whole:
        raise APIError("a variation is drawn from its own image: leave prefix out", param="prefix")
    shape = pipeline.tokenizer.image_shape
    return to_base64(read_picture(from_base64(text, "prefix"), settings, shape, "prefix"))


def read_size(options: Generation) -> tuple[int, int] | None:
    """The height and width of the images of a request, before upscalers; None for the model's own."""
    if options.size in (None, "auto"):
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", options.size)
    factor = 1 << len(options.upscalers)
    if found is None or any(int(side) % factor for side in found.groups()):
        multiples = f", both multiples of {factor} for the upscalers" if found else ""
        raise APIError(f"size must be auto, or width x height as 64x64{multiples}", param="size")
    width, height = (int(side) // factor for side in found.groups())
    return height, width


def size_of(drawing: Drawing, pipeline: Pipeline) -> str:
    """The size of the images of a drawing by a model of this size, as OpenAI writes it."""
    height, width = (side << len(drawing.upscalers) for side in pipeline.tokenizer.image_shape[1:])
    return f"{width}x{height}"


def read_picture(data: bytes, settings: Settings, shape: tuple[int, ...], name: str = "image") -> Tensor:
    """A picture: uint8 (C, H, W); raises APIError for anything else.

    Args:
        shape: its (C, H, W); (C,) for any size.
    """
    _check_picture(data, settings, shape[1:], name)
    try:
        return torch.from_numpy(decode(data, None, shape[0]).pixels.copy())
    except Exception:
        raise APIError(f"{name} is no picture that can be read", param=name) from None


def read_alpha(data: bytes, settings: Settings, size: tuple[int, int]) -> Tensor:
    """Where a picture of this height and width is known, bool (H, W): where it is opaque, as OpenAI's masks say it."""
    _check_picture(data, settings, size, "mask")
    with Image.open(io.BytesIO(data)) as picture:
        if not ("A" in picture.getbands() or "transparency" in picture.info):
            raise APIError("nothing says what to draw: the mask, or the image, must be transparent there", param="mask")
        return torch.from_numpy(np.array(picture.convert("RGBA").getchannel("A")) >= 128)


def read_mask(data: bytes, settings: Settings, size: tuple[int, int]) -> Tensor:
    """Where a picture of this height and width is known, bool (H, W), by the rules of `data.decode_mask`."""
    _check_picture(data, settings, size, "mask")
    return decode_mask(data, *size)


def _check_picture(data: bytes, settings: Settings, size: tuple[int, ...], name: str) -> None:
    """Raises APIError for what is no picture, is too large, or is not of this height and width, if one is given."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
    except Exception:
        raise APIError(f"{name} is no picture that can be read", param=name) from None
    if width * height > settings.max_pixels:
        raise APIError(f"{name} has more than {settings.max_pixels:,} pixels", 413, name)
    if size not in ((), (height, width)):
        wanted = f"{size[1]}x{size[0]}"
        raise APIError(f"{name} is {width}x{height}, but this model needs {wanted} pixels", param=name)


def from_base64(text: str, name: str) -> bytes:
    """Bytes of base64, with or without the beginning of a data URL."""
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (ValueError, binascii.Error):
        raise APIError(f"{name} must be a picture in base64", param=name) from None
