"""Where a picture comes from: what its PNG file says of it, and drawing it again from that.

Every PNG file that the package writes has text chunks: `Software`, and `chainrule`, a JSON object that is either a
`Drawing`, which holds everything that determines the pixels, or a `Derived`, which names the inputs of a picture that
is computed and not drawn.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from .decoding import Sampling, Scorer
from .files import parse_json
from .images import grid, to_pil
from .larger import at_size
from .pictures import captioned, enlarge, hide
from .pipeline import OnImage, Pipeline
from .saving.hub import find, is_local
from .saving.weights import weights_sha256
from .strict import build_dataclass, to_plain
from .variation import redraw
from .zoo import load_kind, load_scorer, load_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

    from .upscaling.upscaler import Upscaler

KEY = "chainrule"
"""The keyword of the text chunk."""


def versions() -> dict[str, str]:
    """What the pixels may depend on besides the model and the options."""
    from . import __version__

    return {"chainrule": __version__, "torch": str(torch.__version__)}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A saved model: the name it was opened by, and the sha256 of its weights (None where it has no folder)."""

    name: str
    sha256: str | None = None

    @classmethod
    def of(cls, name: str) -> Source:
        """Of a model that `chainrule.load` opens."""
        return cls(name=name, sha256=weights_sha256(find(name)))

    @classmethod
    def of_reranker(cls, name: str) -> Source:
        """Of a reranker or classifier, or of a public CLIP, which is no saved model of this package."""
        return cls.of(name) if is_local(name) else cls(name=name)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a completion was given.

    image, mask: PNG files in base64: the image, and white where it is known
    particles, paste: see `Pipeline.complete`
    whole:       whether the whole image was encoded, and not the known part alone; see `variation.redraw`
    """

    image: str
    mask: str
    particles: int = 1
    paste: bool = False
    whole: bool = False

    @classmethod
    def of(cls, image: Tensor, mask: Tensor, particles: int = 1, paste: bool = False, whole: bool = False) -> Known:
        """Of an image uint8 (C, H, W) and a mask bool (H, W)."""
        white = mask[None].to(torch.uint8) * 255
        return cls(image=to_base64(image), mask=to_base64(white), particles=particles, paste=paste, whole=whole)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The image uint8 (C, H, W) and the mask bool (H, W)."""
        return _from_base64(self.image), _from_base64(self.mask)[0] >= 128


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the images make one picture.

    kind:    one image; several side by side; each above its text; or an image, what is known of it, and completions
    scale:   each pixel becomes scale x scale
    columns: images in a row, see `images.grid`
    """

    kind: Literal["single", "grid", "captions", "completions"] = "single"
    scale: int = 1
    columns: int | None = None


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Images that were drawn: everything that determines their pixels.

    seeds:         one per image, on which alone, of all seeds, it depends
    labels, texts: one per image; None: of no class or text in particular
    negative, best_of: see `Pipeline.sample`
    reranker:      the judge of best_of; None: the model itself
    decoder:       the tokenizer that decodes in the place of the model's own
    upscalers:     applied one after the other
    known:         of completions
    prefix:        PNG file in base64, of a model that draws from an image: that image
    size:          height and width, where `larger.at_size` has changed them
    """

    model: Source
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None = None
    texts: tuple[str, ...] | None = None
    negative: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    best_of: int = 1
    reranker: Source | None = None
    decoder: Source | None = None
    upscalers: tuple[Source, ...] = ()
    known: Known | None = None
    prefix: str | None = None
    size: tuple[int, int] | None = None
    layout: Layout = field(default_factory=Layout)
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=versions)

    def only(self, *kept: int) -> Drawing:
        """The drawing of some of the images, by their numbers."""
        chosen = {
            name: None if getattr(self, name) is None else tuple(getattr(self, name)[index] for index in kept)
            for name in ("seeds", "labels", "texts")
        }
        return replace(self, **chosen)

    def sources(self) -> list[Source]:
        """All models that take part."""
        return [self.model, *(one for one in (self.reranker, self.decoder) if one is not None), *self.upscalers]

    def arguments(self) -> dict[str, Any]:
        """Of `Pipeline.sample`, `complete` and `request`, for all of these images."""
        labels = None if self.labels is None else torch.tensor(self.labels)
        texts = None if self.texts is None else list(self.texts)
        count = len(self.seeds)
        given = {"n": count, "label": labels, "text": texts, "negative": self.negative, "seed": self.seeds}
        prefix = {} if self.prefix is None else {"prefix": _from_base64(self.prefix)}
        return given | prefix | to_plain(self.sampling)

    def draw(self, pipeline: Pipeline, scorer: Scorer | None = None, on_image: OnImage | None = None) -> Tensor:
        """The images, uint8 (n, C, H, W), not yet upscaled.

        Args:
            pipeline: the model, with `decoder` if there is one.
            scorer: `reranker`, opened.
            on_image: see `Pipeline.sample`.
        """
        if self.known is None:
            return pipeline.sample(best_of=self.best_of, scorer=scorer, on_image=on_image, **self.arguments())
        image, mask = self.known.tensors()
        given = {"particles": self.known.particles, "on_image": on_image} | self.arguments()
        if self.known.whole:
            return redraw(pipeline, image, mask, **given)
        return pipeline.complete(image, mask, paste=self.known.paste, **given)

    def picture(self, images: Tensor, upscale: Callable[[Tensor], Tensor]) -> Image:
        """The images in the layout of the file."""
        layout = self.layout
        if layout.kind == "completions":
            image, mask = self.known.tensors()
            images = torch.cat([image[None], hide(image[None], mask), images.cpu()])
        images = upscale(images)
        if layout.kind == "single":
            return to_pil(enlarge(images, layout.scale))[0]
        if layout.kind == "captions":
            return captioned(images.cpu(), self.texts, layout.scale)
        return grid(images, layout.columns, layout.scale)


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A picture that is computed from files or from several models: a map, a reconstruction, decoded codes, a demo.

    made:   what it is
    inputs: the sha256 of each file that was read
    """

    made: str
    model: Source
    inputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    @classmethod
    def of(cls, made: str, model: str, paths: Sequence[Path] = ()) -> Derived:
        """Of a model that `chainrule.load` opens, and files."""
        inputs = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        return cls(made=made, model=Source.of(model), inputs=inputs)


Origin = Drawing | Derived


def text_chunks(origin: Origin | None) -> dict[str, str]:
    """The text chunks of a PNG file; none without an origin."""
    if origin is None:
        return {}
    value = {key: one for key, one in to_plain(origin).items() if one not in (None, [], {})}
    return {"Software": f"chainrule {origin.versions['chainrule']}", KEY: json.dumps(value)}


def read_origin(path: str | Path) -> Origin:
    """What a PNG file says of itself.

    Raises:
        ValueError: no picture, or one that says nothing.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            text = getattr(opened, "text", {}).get(KEY)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture") from error
    if text is None:
        raise ValueError(
            f"{path} does not say how it was drawn: it was not written by chainrule, or with --no-metadata, or "
            "another program has removed the text"
        )
    value = parse_json(text, f"{path} has a damaged text about its origin")
    return build_dataclass(Derived if "made" in value else Drawing, value, str(path))


@dataclass(frozen=True)
class Repetition:
    """A picture drawn again.

    picture:     as it is now
    differences: from the file, in words; empty if all pixels are equal
    """

    drawing: Drawing
    picture: Image
    differences: list[str]


def repeat(path: str | Path, device: str | None = None, on_image: OnImage | None = None) -> Repetition:
    """Draws the picture of a PNG file again, from what the file says.

    Args:
        path: a file that `chainrule sample` or `complete`, the page or the server has written.
        device: None: the one it was drawn on.
        on_image: see `Pipeline.sample`.

    Raises:
        ValueError: a file that says nothing of itself, a picture that was not drawn, or a model that is missing.
    """
    from PIL import Image

    drawing = read_origin(path)
    if isinstance(drawing, Derived):
        raise ValueError(f"{path} is {drawing.made} by {drawing.model.name}: only drawn pictures can be repeated")
    device = device or drawing.device
    pipeline = load_kind(drawing.model.name, "pipeline", device=device)
    if drawing.decoder is not None:
        pipeline = pipeline.with_tokenizer(load_tokenizer(drawing.decoder.name, device))
    if drawing.size is not None:
        pipeline = at_size(pipeline, *drawing.size)
    upscale = open_upscalers([one.name for one in drawing.upscalers], pipeline, device)
    scorer = None
    if drawing.reranker is not None:
        scorer = open_judges(drawing.reranker.name, pipeline, device)(drawing)
    picture = drawing.picture(drawing.draw(pipeline, scorer, on_image), upscale)
    with Image.open(path) as opened:
        before, after = np.asarray(opened.convert("RGB")), np.asarray(picture.convert("RGB"))
    return Repetition(drawing, picture, _differences(drawing, before, after, device))


def _differences(drawing: Drawing, before: np.ndarray, after: np.ndarray, device: str) -> list[str]:
    found = []
    for source in drawing.sources():
        now = Source.of_reranker(source.name) if source is drawing.reranker else Source.of(source.name)
        if now.sha256 != source.sha256:
            found.append(f"the weights of {source.name} are others ({_short(now)}, in the file {_short(source)})")
    if before.shape != after.shape:
        return [
            *found,
            f"the size is {after.shape[1]}x{after.shape[0]}, in the file {before.shape[1]}x{before.shape[0]}",
        ]
    if count := int((before != after).any(-1).sum()):
        found.append(f"{count:,} of {before.shape[0] * before.shape[1]:,} pixels are others")
        facts = {"device": (device, drawing.device)}
        facts |= {name: (now, drawing.versions.get(name)) for name, now in versions().items()}
        found += [f"{name} is {now}, in the file {then}" for name, (now, then) in facts.items() if now != then]
    return found


def _short(source: Source) -> str:
    return "without sha256" if source.sha256 is None else f"sha256 {source.sha256[:12]}…"


# ---------------------------------------------------------------- the models beside the pipeline


def open_upscalers(names: Sequence[str] | None, pipeline: Pipeline, device: str) -> Callable[[Tensor], Tensor]:
    """From images of a model, uint8 (B, C, H, W), to larger ones; without names, to themselves.

    Raises:
        ValueError: no such upscaler, or one for another number of channels.
    """
    models = {name: load_kind(name, "upscaler", device=device) for name in names or ()}
    for name, model in models.items():
        check_upscaler(name, model, pipeline.tokenizer.image_shape[0])

    def upscale(images: Tensor) -> Tensor:
        for name in names or ():
            images = models[name].upscale(images)
        return images

    return upscale


def check_upscaler(name: str, model: Upscaler, channels: int) -> None:
    """Raises ValueError for an upscaler of images of another number of channels."""
    own = model.config.image_channels
    if own != channels:
        raise ValueError(
            f"the upscaler {name} takes images of {own} channels (1 grey, 3 colour), and these have {channels}; "
            f"leave the upscaler {name} out"
        )


def open_judges(name: str, pipeline: Pipeline, device: str) -> Callable[[Drawing], Scorer]:
    """From a drawing to what scores its images by their texts or, without texts, by their labels.

    Raises:
        ValueError: no such model; from the function: one that does not judge by these.
    """
    scorer = load_scorer(name, device)

    def judge(drawing: Drawing) -> Scorer:
        labels = None if drawing.labels is None else pipeline.labels_by_name(drawing.labels)
        return judge_by(scorer, name, drawing.texts, labels)

    return judge


def judge_by(
    scorer: Any, name: str, texts: Sequence[str] | None, labels: Sequence[str] | Tensor | None
) -> Scorer:  # fmt: skip
    """A model that scores images, by their texts or, without texts, by their labels (`Pipeline.labels_by_name`).

    Raises:
        ValueError: a model that does not judge by these.
    """
    kind, wanted = ("labels", labels) if texts is None else ("texts", texts)
    if not hasattr(scorer, f"for_{kind}"):
        raise ValueError(f"{name} does not judge images by {kind}")
    return getattr(scorer, f"for_{kind}")(wanted)


def to_base64(image: Tensor) -> str:
    """An image uint8 (C, H, W) as a PNG file in base64."""
    buffer = io.BytesIO()
    to_pil(image[None])[0].save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _from_base64(text: str) -> Tensor:
    from PIL import Image

    array = np.array(Image.open(io.BytesIO(base64.b64decode(text))))
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
