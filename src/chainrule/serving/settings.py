"""What a server is told: models, address, and limits."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.checks import check_sizes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one server.

    models:       names or folders of pipelines; the first is the default
    rerankers:    of models that judge the candidates of best-of
    upscalers:    of models that double images
    device:       where models compute
    api_keys:     one of them must come with every request for a model; none: everybody may draw
    cors:         origins whose pages may call the API from a browser
    page:         whether / is a page to draw with
    files:        folder of the pictures of `response_format: url`, for all workers; they are deleted after an hour
    max_rows:     images of one model, or candidates of completions, that are drawn at once
    max_waiting:  images that may wait; beyond that requests are answered with 429
    max_n:        images of a request
    max_candidates: of best-of, and particles of a completion
    max_bytes:    of the body of a request
    max_pixels:   of a picture that is uploaded
    max_drawn:    pixels of an image that is drawn at another size than the model's own
    max_upscaled: pixels of a picture that upscalers make
    timeout:      seconds until a request is given up
    """

    models: tuple[str, ...]
    rerankers: tuple[str, ...] = ()
    upscalers: tuple[str, ...] = ()
    device: str = "cpu"
    api_keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    page: bool = True
    files: str = ""
    max_rows: int = 32
    max_waiting: int = 256
    max_n: int = 16
    max_candidates: int = 64
    max_bytes: int = 20_000_000
    max_pixels: int = 16_000_000
    max_drawn: int = 1 << 18
    max_upscaled: int = 1 << 20
    timeout: float = 300.0

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("name at least one model to serve")
        check_sizes(self, "max_rows", "max_n", "max_candidates", "max_drawn", "max_upscaled")
        if not self.timeout > 0 or self.max_bytes < 1 or self.max_pixels < 1 or self.max_waiting < 0:
            raise ValueError("timeout, max_bytes and max_pixels must be above 0, max_waiting at least 0")
