"""What requests may hold, as the OpenAPI schema shows it; and how they become drawings."""

from __future__ import annotations

import base64
import binascii
import io
import secrets
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data.images import decode
from ..decoding import Sampling, image_seeds
from ..drawing import Drawing, Known, Source
from ..pipeline import Pipeline
from .errors import APIError
from .settings import Settings
from .studio import Served, Studio

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
    temperature: float = Field(1.0, ge=0)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    guidance: float = Field(1.0, description="Above 1 draws towards the text or label; 3 is a start.")
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
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

    prompt: str = Field(description="A text, or for a model of classes the name of a class; empty for any other model.")
    size: str | None = Field(None, description="The model's own, as 64x64, or auto.")
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
    particles: int = Field(8, ge=1, description="Candidates of a completion.")
    paste: bool = False


class Score(BaseModel):
    """`POST /api/score`, `/api/encode` and `/api/reconstruct`: an image, base64, and for scores its condition."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    image: str = Field(description="A picture, base64, of the model's size.")
    label: int | str | None = None
    text: str | None = None


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


def drawing_of(
    studio: Studio, settings: Settings, options: Options, text: str | None, known: Known | None = None
) -> Drawing:
    """The drawing that a request asks for; raises APIError or ValueError where it cannot be.

    Args:
        text: what to draw; None: nothing in particular.
        known: of completions.
    """
    name, served = find_model(studio, options.model)
    pipeline, seeds = served.pipeline, options.image_seeds()
    best_of, reranker = getattr(options, "best_of", 1), getattr(options, "reranker", None)
    candidates = max(best_of, known.particles if known is not None else 1)
    if len(seeds) > settings.max_n:
        raise APIError(f"n must be at most {settings.max_n}", param="n")
    if candidates > settings.max_candidates or len(seeds) * candidates > settings.max_rows + settings.max_waiting:
        raise APIError(f"there may be at most {settings.max_candidates} candidates for an image, fewer for many images")
    if reranker is not None and (best_of == 1 or reranker not in studio.rerankers):
        known_names = ", ".join(studio.rerankers) or "none"
        raise APIError(f"a reranker judges with best_of above 1, and this server has: {known_names}", param="reranker")
    label = None if options.label is None else (pipeline.label_number(options.label),) * len(seeds)
    return Drawing(
        model=served.source if served.source.name == name else replace(served.source, name=name), seeds=seeds,
        labels=label, texts=None if text is None else (text,) * len(seeds), negative=options.negative,
        sampling=options.sampling(), best_of=best_of, known=known, device=str(pipeline.device),
        reranker=None if reranker is None else Source.of_reranker(reranker),
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


def check_size(pipeline: Pipeline, size: str | None) -> str:
    """The size of a model's images as OpenAI writes it; raises APIError for another one."""
    _, height, width = pipeline.tokenizer.image_shape
    own = f"{width}x{height}"
    if size not in (None, "auto", own):
        raise APIError(f"this model draws images of {own}: leave size out, or send auto or {own}", param="size")
    return own


def read_picture(data: bytes, pipeline: Pipeline, settings: Settings, name: str = "image") -> Tensor:
    """A picture of a model's size and channels: uint8 (C, H, W); raises APIError for anything else."""
    return _read(data, settings, pipeline.tokenizer.image_shape, name)


def read_mask(data: bytes, pipeline: Pipeline, settings: Settings, alpha: bool) -> Tensor:
    """Where a picture is known, bool (H, W): where it is opaque, or where it is white."""
    _, *size = pipeline.tokenizer.image_shape
    _read(data, settings, (1, *size), "mask")
    with Image.open(io.BytesIO(data)) as picture:
        has_alpha = "A" in picture.getbands() or "transparency" in picture.info
        if alpha and not has_alpha:
            raise APIError("nothing says what to draw: the mask, or the image, must be transparent there", param="mask")
        values = picture.convert("RGBA").getchannel("A") if alpha else picture.convert("L")
        return torch.from_numpy(np.array(values) >= 128)


def _read(data: bytes, settings: Settings, shape: tuple[int, int, int], name: str) -> Tensor:
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(data)) as picture:
            size = picture.size
        if size[0] * size[1] > settings.max_pixels:
            raise APIError(f"{name} has more than {settings.max_pixels:,} pixels", 413, name)
        if size != (width, height):
            raise APIError(f"{name} is {size[0]}x{size[1]}, but this model needs {width}x{height} pixels", param=name)
        return torch.from_numpy(decode(data, None, channels).pixels.copy())
    except APIError:
        raise
    except Exception:
        raise APIError(f"{name} is no picture that can be read", param=name) from None


def from_base64(text: str, name: str) -> bytes:
    """Bytes of base64, with or without the beginning of a data URL."""
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (ValueError, binascii.Error):
        raise APIError(f"{name} must be a picture in base64", param=name) from None
