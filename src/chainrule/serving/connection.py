"""Around each request: who may ask, how much, how long; a number for the log; and what is counted."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .engine import Engine
from .errors import APIError, answer
from .settings import Settings

T = TypeVar("T")
log = logging.getLogger("chainrule.serving")
KEYED = "/v1/", "/api/"
"""Paths that need a key, if the server has any."""
COUNTED = *KEYED, "/pictures/", "/healthz", "/readyz", "/metrics", "/openapi.json"
"""Paths that are counted by their route; all others are the page."""


async def within(request: Request, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which ends early when the client leaves or the time is over.

    Raises:
        TimeoutError: the time is over.
        APIError: the client has left, and nobody reads this answer.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        raise APIError("the client has left", 499) if gone in done else TimeoutError
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Metrics:
    """What Prometheus reads, of one worker."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("chainrule_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "chainrule_request_seconds", "Time until the end of the answer.", ["route"], registry=self.registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
        )  # fmt: skip
        gauges = {
            "chainrule_rows": ("Images, or candidates, that are being drawn.", lambda: engine.num_rows),
            "chainrule_pending_rows": ("Images that wait or are being drawn.", lambda: engine.pending),
            "chainrule_codes": ("Codes drawn since the start.", lambda: engine.num_codes),
        }
        for name, (about, value) in gauges.items():
            Gauge(name, about, registry=self.registry).set_function(value)


class Door:
    """Middleware: keys, the size of bodies, request ids, the log and the metrics."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        number = given if 0 < len(given) <= 64 and given.isprintable() else secrets.token_hex(8)
        since, status = time.monotonic(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number.encode("latin-1"))]
            await send(message)

        try:
            self._check(scope["path"], headers)
            await self.app(scope, self._limited(receive), sending)
        except APIError as error:
            await answer(error)(scope, receive, sending)
        finally:
            seconds = time.monotonic() - since
            path = scope["path"]
            route = (getattr(scope.get("route"), "path", None) or "other") if path.startswith(COUNTED) else "page"
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            if path.startswith(KEYED) or status >= 400:
                log.info("%s %s %s %d %.3f s", number, scope["method"], path, status, seconds)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Raises APIError for a missing key, or a body that is said to be too long."""
        keys = self.settings.api_keys
        if keys and path.startswith(KEYED):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not any(hmac.compare_digest(given, key.encode()) for key in keys):
                raise APIError(
                    "send an API key of this server as Authorization: Bearer KEY", 401, code="invalid_api_key"
                )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.settings.max_bytes:
            raise APIError(f"the body may have at most {self.settings.max_bytes:,} bytes", 413)

    def _limited(self, receive: Receive) -> Receive:
        total = 0

        async def receiving() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.settings.max_bytes:
                raise HTTPException(413, f"the body may have at most {self.settings.max_bytes:,} bytes")
            return message

        return receiving
