"""What the APIs and the page do with models: draw, complete, score, encode, decode; asynchronously, on an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core import Codes
from ..decoding import Request, image_seeds, keep_best
from ..drawing import Drawing, Source, judge_by, text_chunks
from ..evaluation.scoring import Scores, score
from ..images import to_pil
from ..larger import at_size, is_resizable
from ..pictures import drawn, heat, hide, png, stretch
from ..pipeline import Pipeline
from ..variation import kept_codes
from ..zoo import load_kind, load_scorer
from .engine import Engine
from .settings import Settings

SIZES = 4
"""Models at other sizes than their own that are kept; each has packed weights of its own."""
OnPartial = Callable[[int, Tensor, int], None]
"""Called with the number of a partial image from 0, the codes (n, T) so far, and how many of them are known."""


@dataclass(frozen=True)
class Served:
    """A model of the server."""

    pipeline: Pipeline
    source: Source


@dataclass(frozen=True)
class Helper:
    """A model that judges or doubles images."""

    model: Any
    source: Source


class Studio:
    """Models by name, and an engine.

    Args:
        models: by the name that requests give; the first is the default.
        engine: draws.
        rerankers: judges of best-of by the name that requests give, see `zoo.load_scorer`.
        upscalers: by the name that requests give.

    Attributes:
        resizable: names of the models that draw images of other sizes, too.
    """

    def __init__(
        self, models: Mapping[str, Served], engine: Engine, rerankers: Mapping[str, Helper] | None = None,
        upscalers: Mapping[str, Helper] | None = None,
    ) -> None:  # fmt: skip
        self.models, self.engine = dict(models), engine
        self.rerankers, self.upscalers = dict(rerankers or {}), dict(upscalers or {})
        self.resizable = {name for name, served in self.models.items() if is_resizable(served.pipeline)}
        self._larger: dict[tuple[str, tuple[int, int]], Pipeline] = {}

    @classmethod
    def open(cls, settings: Settings) -> Studio:
        """Loads the models of a server."""
        models = {
            name: Served(load_kind(name, "pipeline", device=settings.device), Source.of(name))
            for name in settings.models
        }
        rerankers = {
            name: Helper(load_scorer(name, settings.device), Source.of_reranker(name)) for name in settings.rerankers
        }
        upscalers = {
            name: Helper(load_kind(name, "upscaler", device=settings.device), Source.of(name))
            for name in settings.upscalers
        }
        return cls(models, Engine(settings.max_rows, settings.max_waiting), rerankers, upscalers)

    async def warm(self) -> None:
        """Draws one image by each model, so that no request waits for kernels and packed weights."""
        for served in self.models.values():
            label = 0 if served.pipeline.num_classes else None
            prefix = served.pipeline.own_prefix(torch.zeros(served.pipeline.tokenizer.image_shape, dtype=torch.uint8))
            request = await self.engine.compute(served.pipeline.request, 1, label, prefix=prefix)
            await self.engine.decode(served.pipeline, await self.engine.draw(served.pipeline, request))

    async def pipeline_of(self, drawing: Drawing) -> Pipeline:
        """The model of a drawing, at its size; the `SIZES` that were drawn last are kept.

        Raises:
            ValueError: a model or a size that does not allow it.
        """
        name, size = drawing.model.name, drawing.size
        if size is None:
            return self.models[name].pipeline
        pipeline = self._larger.pop((name, size), None)
        if pipeline is None:
            pipeline = await self.engine.compute(at_size, self.models[name].pipeline, *size)
        pipeline = self._larger.setdefault((name, size), pipeline)
        if len(self._larger) > SIZES:
            del self._larger[next(iter(self._larger))]
        return pipeline

    async def draw(self, drawing: Drawing, on_partial: OnPartial | None = None, num_partial: int = 0) -> Tensor:
        """The images of a drawing, upscaled if it says so: uint8 (n, C, H, W).

        Args:
            on_partial: called in another thread, `num_partial` times at equal distances.
        """
        if drawing.best_of > 1:
            images = await self._best(drawing)
        else:
            images = await self._draw(drawing, on_partial, num_partial)
        return await self.upscale([one.name for one in drawing.upscalers], images)

    async def upscale(self, names: Sequence[str], images: Tensor) -> Tensor:
        """Images uint8 (n, C, H, W), doubled by each of these upscalers in turn."""
        for name in names:
            images = await self.engine.compute(self.upscalers[name].model.upscale, images)
        return images.cpu()

    async def _draw(self, drawing: Drawing, on_partial: OnPartial | None = None, num_partial: int = 0) -> Tensor:
        """As `draw`, not yet upscaled, and one candidate for each image."""
        pipeline, engine, known = await self.pipeline_of(drawing), self.engine, drawing.known
        given: dict[str, Any] = {}
        if known is not None:
            image, mask = known.tensors()
            codes = partial(kept_codes, pipeline) if known.whole else pipeline.known_codes
            given = {"particles": known.particles}
            given["known"] = await engine.compute(codes, image, mask, len(drawing.seeds))
            if known.whole:
                given["prefix"] = pipeline.own_prefix(image)
        arguments = drawing.arguments() | given
        run = asyncio.to_thread if arguments.get("prefix") is None else engine.compute  # a prefix is encoded
        request = await run(pipeline.request, **arguments)
        watch = None if not num_partial else _partials(request, pipeline.prior.spec.length, on_partial, num_partial)
        images = await engine.decode(pipeline, await engine.draw(pipeline, request, watch))
        if known is not None and not known.whole:
            images = await engine.compute(pipeline.completed, images, image, mask, given["known"], known.paste)
        return images.cpu()

    async def _best(self, drawing: Drawing) -> Tensor:
        """All candidates are drawn at once; then the best of each image is kept, as in `Pipeline.sample`."""
        pipeline = await self.pipeline_of(drawing)
        texts, labels = drawing.texts, drawing.labels
        if drawing.reranker is None:
            given = drawing.arguments()
            scorer = await self.engine.compute(pipeline.judge, given["label"], given["text"])
        else:
            name = drawing.reranker.name
            names = None if labels is None else pipeline.labels_by_name(labels)
            scorer = judge_by(self.rerankers[name].model, name, texts, names)
        candidates = zip(*(image_seeds(seed, drawing.best_of) for seed in drawing.seeds), strict=True)
        rounds = await _all([self._draw(replace(drawing, seeds=seeds)) for seeds in candidates])
        following = iter(rounds)
        return await self.engine.compute(keep_best, lambda _: next(following), drawing.seeds, drawing.best_of, scorer)

    async def grow(self, drawing: Drawing, num_partial: int, seconds: float) -> AsyncIterator[tuple[Tensor, bool]]:
        """Images while they grow, `num_partial` times, and at the end: uint8 (n, C, H, W), and whether they are done.

        Only those at the end are upscaled: what is not yet drawn would show in the pixels beside it.

        Raises:
            TimeoutError: they take longer than `seconds`.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()
        deadline = loop.time() + seconds

        def on_partial(index: int, codes: Tensor, num_known: int) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (codes, num_known))

        task = asyncio.ensure_future(self.draw(drawing, on_partial, num_partial))
        task.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (item := await asyncio.wait_for(queue.get(), deadline - loop.time())) is not None:
                yield await self.partial(drawing, *item), False
            yield await task, True
        finally:
            task.cancel()

    async def partial(self, drawing: Drawing, codes: Tensor, num_known: int) -> Tensor:
        """Images so far, uint8 (n, C, H, W), grey where they are not yet drawn."""
        pipeline = await self.pipeline_of(drawing)
        spec, size = pipeline.prior.spec, pipeline.tokenizer.image_shape[1:]
        images = await self.engine.decode(pipeline, spec.unflatten(codes))
        shown = drawn(spec, num_known, *size)
        if drawing.known is not None:
            image, mask = drawing.known.tensors()
            shown, images = shown | mask, torch.where(mask, image, images.cpu())
        return hide(images, shown)

    async def score(
        self, name: str, image: Tensor, label: Any = None, text: str | None = None
    ) -> tuple[Scores, Tensor]:
        """The likelihood of an image, uint8 (C, H, W), and a map of its surprise, uint8 (3, H, W)."""
        scores = await self.engine.compute(score, self.models[name].pipeline, image[None], label, text, surprise=True)
        surprise = scores.surprise
        return scores, heat(stretch(surprise, *image.shape[1:]), surprise.max().item())[0]

    async def encode(self, name: str, image: Tensor) -> Codes:
        """The codes of an image, uint8 (C, H, W)."""
        pipeline = self.models[name].pipeline
        return await self.engine.compute(pipeline.tokenizer.encode, image[None].to(pipeline.device))

    async def reconstruct(self, name: str, image: Tensor) -> Tensor:
        """What the codes of an image keep of it; both uint8 (C, H, W)."""
        return (await self.engine.compute(self.models[name].pipeline.reconstruct, image[None]))[0].cpu()

    async def decode(self, name: str, codes: Codes) -> Tensor:
        """The image of codes, uint8 (C, H, W).

        Raises:
            ValueError: codes that are not of this model.
        """
        tokenizer = self.models[name].pipeline.tokenizer
        tokenizer.spec.check(codes)
        return (await self.engine.compute(tokenizer.decode, codes))[0].cpu()


async def png_files(drawing: Drawing, images: Tensor, metadata: bool = True) -> list[bytes]:
    """One PNG file per image, each of which says how it alone is drawn again; written in a thread of its own."""

    def write() -> list[bytes]:
        pictures = enumerate(to_pil(images))
        return [png(one, text_chunks(drawing.only(index) if metadata else None)) for index, one in pictures]

    return await asyncio.to_thread(write)


def _partials(request: Request, length: int, on_partial: OnPartial, count: int) -> Callable[[int, Callable], None]:
    """Calls `on_partial` after equal shares of the codes that are drawn."""
    given = [False] * length if request.known is None else request.known.mask.tolist()
    places = [t + 1 for t, known in enumerate(given) if not known]
    wanted = {places[len(places) * (index + 1) // (count + 1) - 1]: index for index in range(count)} if places else {}

    def on_code(t: int, codes: Callable[[], Tensor]) -> None:
        if t + 1 in wanted:
            on_partial(wanted[t + 1], codes().clone(), t + 1)

    return on_code


async def _all(coroutines: Sequence[Coroutine[Any, Any, Tensor]]) -> list[Tensor]:
    """The results of all; the first error ends the others."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
