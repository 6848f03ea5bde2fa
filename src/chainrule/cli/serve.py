"""`chainrule serve`: a page to draw with, and an API."""

from __future__ import annotations

import os
from typing import Annotated

import typer

Models = Annotated[list[str], typer.Argument(metavar="MODEL", help="Bundled models, folders, or hub ids.")]
Host = Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for other computers too.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")]
Rerankers = Annotated[
    list[str] | None, typer.Option("--reranker", metavar="MODEL", help="A judge that requests with best_of may name.")
]
Upscalers = Annotated[
    list[str] | None,
    typer.Option("--upscaler", metavar="MODEL", help="A model that requests may name to double images."),
]
Keys = Annotated[
    list[str] | None,
    typer.Option("--api-key", help="Requests need one of these keys, or of those in CHAINRULE_API_KEYS, with commas."),
]
Origins = Annotated[
    list[str] | None, typer.Option("--cors", metavar="ORIGIN", help="A page of this origin may call the API.")
]
Page = Annotated[bool, typer.Option("--no-page", help="Serve the API alone.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes, each with its own models.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads that draw, of each worker.", show_default="half of its cores")
]
Rows = Annotated[int, typer.Option(min=1, help="Images of one model that are drawn at once.")]
Waiting = Annotated[int, typer.Option(min=0, help="Images that may wait; beyond that the answer is 429.")]
Files = Annotated[
    str, typer.Option(metavar="FOLDER", help="For pictures by URL, if servers share one.", show_default="a new folder")
]
MostImages = Annotated[int, typer.Option("--max-n", min=1, help="Images of a request.")]
Timeout = Annotated[float, typer.Option(help="Seconds until a request is given up.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]


def serve(
    models: Models, host: Host = "127.0.0.1", port: Port = 8000, rerankers: Rerankers = None,
    upscalers: Upscalers = None, api_key: Keys = None, cors: Origins = None, no_page: Page = False,
    workers: Workers = 1, threads: Threads = None, max_rows: Rows = 32, max_waiting: Waiting = 256,
    max_n: MostImages = 16, timeout: Timeout = 300.0, files: Files = "", device: Device = "cpu",
) -> None:  # fmt: skip
    """Serve models: a page to draw with at /, OpenAI's image endpoints under /v1, and a native API under /api.

    \b
    Examples:
      chainrule serve emoji_parti mnist_diagonal_bilstm
      chainrule serve runs/mine --host 0.0.0.0 --port 80 --api-key secret --workers 2
      chainrule serve shapes_parti --reranker shapes_reranker --upscaler shapes_upscaler --no-page
    """
    try:
        from ..serving.app import run
        from ..serving.settings import Settings
    except ModuleNotFoundError as error:
        raise ValueError(f"the server needs the package {error.name}: pip install 'chainrule[server]'") from error
    from .common import check_device

    check_device(device)
    keys = [*(api_key or ()), *filter(None, os.environ.get("CHAINRULE_API_KEYS", "").split(","))]
    settings = Settings(
        models=tuple(models), rerankers=tuple(rerankers or ()), upscalers=tuple(upscalers or ()), device=device,
        api_keys=tuple(keys), cors=tuple(cors or ()), page=not no_page, max_rows=max_rows, max_waiting=max_waiting,
        max_n=max_n, timeout=timeout, files=files,
    )  # fmt: skip
    print(f"Loading {', '.join(models)}; then listening at http://{host}:{port} until Ctrl-C", flush=True)
    run(settings, host, port, workers, threads)
