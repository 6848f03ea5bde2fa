"""One thread that draws the codes of all requests, and one that does everything else of the models.

The drawing thread takes turns among the batches, one code each.  What comes before and after, such as encoding,
decoding and judging images, is done in the other thread, one task after the other, so that it never delays the next
code.  Codes of one model are decoded in batches, which take less time than their images one by one; a tokenizer gives
the same pixels alone and in a batch.  While other images of the model are drawn, codes wait for them as long as the
last batch took to decode, or until there are `DECODED`.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core import Codes, Runner
from ..decoding import Batcher, Guided, Job, Request, Sampling
from ..decoding.guidance import GuidedRunner
from ..pipeline import Pipeline

T = TypeVar("T")
Settle = Callable[[Any], None]
"""Gives a future its result, or an exception, from any thread."""
log = logging.getLogger("chainrule.serving")


DECODED = 8
"""Images that are decoded at once: more take hardly less time each, and the first of them would wait for the last."""


class Busy(Exception):
    """More work is waiting than the server takes."""


class Engine:
    """Draws requests of several models.

    Args:
        max_rows: images of one model, or candidates of completions, that are drawn at once.
        max_waiting: images that may wait for a place, of all models together.
    """

    def __init__(self, max_rows: int = 32, max_waiting: int = 256) -> None:
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.pending = 0  # rows of requests that are not done
        self.num_codes = 0  # drawn since the start
        self._packed: dict[int, Packed] = {}  # by the id of a model, as long as somebody holds it
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._futures: dict[Job, Settle] = {}
        self._thread = threading.Thread(target=self._run, name="chainrule-draw", daemon=True)
        self._others = ThreadPoolExecutor(1, "chainrule-compute")
        self._thread.start()

    @property
    def num_rows(self) -> int:
        """Rows that are being drawn now."""
        return sum(batcher.num_rows for batcher in self._batchers())

    def close(self) -> None:
        """Ends the threads after what they are doing."""
        self._inbox.put(None)
        self._others.shutdown(cancel_futures=True)

    async def compute(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Calls a function of models in the thread for everything but drawing."""
        call = partial(_without_gradients, function, *args, **options)
        return await asyncio.get_running_loop().run_in_executor(self._others, call)

    async def decode(self, pipeline: Pipeline, codes: Codes) -> Tensor:
        """The images of codes, uint8 (B, C, H, W), decoded together with others; see `Pipeline.decode`."""
        future, settle = _settled_elsewhere()
        packed = self._of(pipeline)
        packed.undecoded.put((codes, future, settle))
        alone = not any(batcher.num_rows for batcher in list(packed.batchers.values()))
        seconds = 0.0 if alone or packed.undecoded.qsize() >= DECODED else packed.seconds
        timer = asyncio.get_running_loop().call_later(seconds, self._others.submit, packed.decode, pipeline)
        try:
            return await future
        finally:
            timer.cancel()

    async def draw(
        self, pipeline: Pipeline, request: Request, on_code: Callable[[int, Callable[[], Any]], None] | None = None
    ) -> Codes:
        """The codes of a request, drawn together with others; cancelling frees its places.

        Args:
            on_code: see `decoding.Job`; called in the drawing thread.

        Raises:
            Busy: too many images are waiting.
            ValueError: a context that does not fit the model, or a precision that it does not have.
        """
        job = Job(request, on_code)
        if self.pending + job.num_rows > self.max_rows + self.max_waiting:
            raise Busy
        future, settle = _settled_elsewhere()
        self.pending += job.num_rows
        try:
            self._inbox.put(partial(self._add, pipeline, self._of(pipeline), job, settle))
            return await future
        except asyncio.CancelledError:
            self._inbox.put(partial(self._cancel, job))
            raise
        finally:
            self.pending -= job.num_rows

    def _of(self, pipeline: Pipeline) -> Packed:
        key = id(pipeline)
        if key not in self._packed:
            self._packed[key] = Packed()
            weakref.finalize(pipeline, self._packed.pop, key, None)
        return self._packed[key]

    # ---------------------------------------------------------------- in the drawing thread

    def _batchers(self) -> list[Batcher]:
        return [batcher for packed in list(self._packed.values()) for batcher in list(packed.batchers.values())]

    def _add(self, pipeline: Pipeline, packed: Packed, job: Job, settle: Settle) -> None:
        try:
            batcher = packed.batcher(pipeline, job.request.sampling, self.max_rows)
            batcher.runner.prior.check_context(job.request.context, len(job.request.seeds))
            batcher.add(job)
            self._futures[job] = settle
        except Exception as error:
            settle(error)

    def _cancel(self, job: Job) -> None:
        self._futures.pop(job, None)
        for batcher in self._batchers():
            batcher.cancel(job)

    def _run(self) -> None:
        while True:
            busy = [batcher for batcher in self._batchers() if batcher.is_busy]
            try:
                while True:
                    call = self._inbox.get(block=not busy)
                    if call is None:
                        return
                    call()
                    busy = busy or [batcher for batcher in self._batchers() if batcher.is_busy]
            except queue.Empty:
                pass
            for batcher in busy:
                self._step(batcher)

    def _step(self, batcher: Batcher) -> None:
        try:
            done = batcher.step()
        except Exception as error:  # a fault, or no memory: what shared the batch is lost, and the server goes on
            log.exception("drawing failed")
            for job in batcher.clear():
                self._futures.pop(job, lambda _: None)(error)
            return
        self.num_codes += batcher.last_rows
        for job in done:
            self._futures.pop(job)(job.codes)


def _without_gradients(function: Callable[..., T], *args: Any, **options: Any) -> T:
    with torch.no_grad():
        return function(*args, **options)


def _settled_elsewhere() -> tuple[asyncio.Future, Settle]:
    """A future of the running loop, and what settles it from another thread."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    return future, lambda result: loop.call_soon_threadsafe(_settle, future, result)


def _settle(future: asyncio.Future, result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


class Packed:
    """A model as the engine draws and decodes with it; it does not hold the model.

    Attributes:
        runners: by precision.
        batchers: by precision, and whether guided.
        undecoded: codes that wait, the future of their images, and what settles it.
        seconds: that the last batch took to decode.
    """

    def __init__(self) -> None:
        self.runners: dict[str, Runner] = {}
        self.batchers: dict[tuple[str, bool], Batcher] = {}
        self.undecoded: queue.SimpleQueue[tuple[Codes, asyncio.Future, Settle]] = queue.SimpleQueue()
        self.seconds = 0.0

    def batcher(self, pipeline: Pipeline, sampling: Sampling, max_rows: int) -> Batcher:
        """What draws requests with these options."""
        precision, guided = key = sampling.precision, sampling.guidance != 1
        if precision not in self.runners:
            self.runners[precision] = pipeline.prior.runner(precision)
        if key not in self.batchers:
            runner = self.runners[precision]
            runner = GuidedRunner(Guided(pipeline.prior), runner) if guided else runner
            self.batchers[key] = Batcher(runner, max_rows)
        return self.batchers[key]

    @torch.no_grad()
    def decode(self, pipeline: Pipeline) -> None:
        """Decodes about `DECODED` images that wait; what an earlier call has taken is gone."""
        taken, count = [], 0
        with suppress(queue.Empty):
            while count < DECODED:
                codes, future, settle = self.undecoded.get_nowait()
                if not future.done():  # nobody has left
                    taken.append((codes, settle))
                    count += len(codes[0])
        if not taken:
            return
        since = time.monotonic()
        try:
            images = pipeline.decode(tuple(map(torch.cat, zip(*(codes for codes, _ in taken), strict=True))))
            parts = images.split([len(codes[0]) for codes, _ in taken])
        except Exception as error:
            parts = [error] * len(taken)
        self.seconds = time.monotonic() - since
        for part, (_, settle) in zip(parts, taken, strict=True):
            settle(part)
