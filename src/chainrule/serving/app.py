"""The server as one application, and its start."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import generate_latest

from .. import __version__
from ..strict import build_dataclass, to_plain
from . import native, openai
from .connection import Door, Metrics
from .errors import APIError, install
from .settings import Settings
from .store import Store
from .studio import Studio

log = logging.getLogger("chainrule.serving")
VARIABLE = "CHAINRULE_SERVER"
"""The environment variable by which workers receive their settings."""


def create_app(settings: Settings) -> FastAPI:
    """The application; loads the models.

    Raises:
        ValueError: a model that there is not.
    """
    studio, store = Studio.open(settings), Store(settings.files)
    metrics = Metrics(studio.engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await studio.warm()
        app.state.ready = True
        log.info("ready: %s", ", ".join(studio.models))
        yield
        app.state.ready = False
        studio.engine.close()

    about = "Draws images with autoregressive models; OpenAI's image endpoints, and a native API."
    app = FastAPI(
        title="chainrule", version=__version__, description=about, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.ready, app.state.studio = False, studio
    install(app)
    app.include_router(openai.router(studio, settings, store))
    app.include_router(native.router(studio, settings))

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> Response:
        """Whether it can draw; 503 before and while it ends."""
        ready = app.state.ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get("/metrics", tags=["operation"], include_in_schema=False)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/pictures/{name}", tags=["OpenAI"])
    async def picture(name: str) -> FileResponse:
        """A picture that was asked for as a URL, for an hour."""
        path = store.find(name)
        if path is None:
            raise APIError("there is no such picture, or its hour is over", 404)
        return FileResponse(path, media_type="image/png")

    if settings.page:
        _mount_page(app, studio, settings, store)
    app.add_middleware(Door, settings=settings, metrics=metrics)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def _mount_page(app: FastAPI, studio: Studio, settings: Settings, store: Store) -> None:
    """The page at /; where the server has keys, one of them is asked for as the password."""
    import gradio

    from .blocks import build, look
    from .page import Page

    keys = settings.api_keys
    auth = (lambda _, password: password in keys) if keys else None
    gradio.mount_gradio_app(
        app, build(Page(studio, settings, store)), path="/", ssr_mode=False, footer_links=[], auth=auth,
        auth_message="Any name; the password is an API key." if keys else None, show_error=True,
        max_file_size=settings.max_bytes, **look(),
    )  # fmt: skip


def from_environment() -> FastAPI:
    """The application of a worker."""
    value: dict[str, Any] = json.loads(os.environ[VARIABLE])
    _start_log()
    torch.set_num_threads(value.pop("threads"))
    return create_app(build_dataclass(Settings, value, VARIABLE))


def run(settings: Settings, host: str, port: int, workers: int = 1, threads: int | None = None) -> None:
    """Serves until it is told to end (SIGTERM, Ctrl-C); requests that have begun are finished first.

    Args:
        host, port: where it listens.
        workers: processes, each with its own models.
        threads: of torch in each of the two threads of a worker; None: half of the cores for each worker.

    Raises:
        ValueError: a model that there is not.
    """
    with tempfile.TemporaryDirectory(prefix="chainrule-") as folder:
        settings = settings if settings.files else replace(settings, files=folder)
        threads = threads or max(1, (os.cpu_count() or 2) // (2 * workers))
        os.environ[VARIABLE] = json.dumps(to_plain(settings) | {"threads": threads})
        options = {"host": host, "port": port, "access_log": False, "log_level": "warning", "log_config": None}
        app: Any = from_environment() if workers == 1 else "chainrule.serving.app:from_environment"
        uvicorn.run(app, factory=workers > 1, workers=workers, timeout_graceful_shutdown=60, **options)


def _start_log() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
