"""Errors in OpenAI's format, one sentence each."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from .engine import Busy

TYPES = {401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error"}


class APIError(Exception):
    """An answer other than what was asked for.

    Args:
        message: one sentence.
        status: of HTTP.
        param: the field of the request that is wrong.
        code: a short name of the error.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code


def body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict:
    """The body of an error."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(error: Exception) -> JSONResponse:
    """The response to an error of any kind."""
    headers = None
    if isinstance(error, APIError):
        status, found = error.status, body(error.message, error.status, error.param, error.code)
    elif isinstance(error, Busy):
        status, headers = 429, {"Retry-After": "2"}
        found = body("too many images are waiting; try again in 2 seconds", status, code="rate_limit_exceeded")
    elif isinstance(error, TimeoutError):
        status, found = 504, body("drawing took longer than this server allows", 504, code="timeout")
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
        status, found = 400, body(f"{where or 'the body'}: {first['msg']}", 400, where or None)
    elif isinstance(error, HTTPException):
        status, headers = error.status_code, error.headers
        found = body(str(error.detail), status)
    elif isinstance(error, ValueError):
        status, found = 400, body(" ".join(str(error).split()), 400)
    else:
        status, found = 500, body("the server failed; its log says why", 500)
    return JSONResponse(found, status, headers)


def install(app: FastAPI) -> None:
    """Lets an app answer all errors in this format."""
    import asyncio

    async def handle(_: Request, error: Exception) -> JSONResponse:
        return answer(error)

    kinds = APIError, Busy, TimeoutError, asyncio.TimeoutError, RequestValidationError, HTTPException, ValueError
    for kind in (*kinds, Exception):
        app.add_exception_handler(kind, handle)
