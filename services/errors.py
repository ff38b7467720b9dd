"""The one table from refusals to HTTP, and the one shape in which every error leaves."""

from __future__ import annotations

import logging

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ekiben.errors import (
    BadInput,
    CallerLeft,
    Conflict,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    Refusal,
    Temporary,
    TooLarge,
    TooSlow,
    Unavailable,
    UnsupportedImage,
)
from ekiben.logs import request_id
from services import metrics

log = logging.getLogger(__name__)

# The first row whose class fits wins, so subclasses stand before their parents.
STATUS: tuple[tuple[type[Refusal], int], ...] = (
    (TooLarge, 413),
    (TooSlow, 408),
    (UnsupportedImage, 415),
    (BadInput, 400),
    (NotFound, 404),
    (Conflict, 409),
    (CallerLeft, 499),  # nginx's number for it; only logs and metrics see it
    (DeadlineExceeded, 504),
    (Overloaded, 503),
    (Unavailable, 503),
    (Temporary, 503),
    (Refusal, 400),
)

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


def status_of(refusal: Refusal) -> int:
    return next(status for kind, status in STATUS if isinstance(refusal, kind))


def error_body(code: str, message: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message, "request_id": request_id.get()}})


def error_response(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(code, message), status, headers, "application/json")


def response_for(error: BaseException) -> Response:
    """The response of any error: a refusal in its own words, everything else as an internal error, logged."""
    if isinstance(error, Refusal):
        metrics.refused.labels(error.code).inc()
        headers = {}
        if isinstance(error, Temporary) and not isinstance(error, CallerLeft):
            headers["Retry-After"] = str(error.retry_after_s or 1)
        return error_response(status_of(error), error.code, error.message, headers)
    log.error("internal error", exc_info=error)
    return error_response(500, "internal_error", "internal error; the log has it under this request id")


def install(app: FastAPI) -> None:
    """Give the application Ekiben's error shape for everything that can go wrong in it."""

    async def refusal(_: Request, error: Exception) -> Response:
        return response_for(error)

    async def http(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        detail = str(error.detail) if isinstance(error, HTTPException) else ""
        if status == 404:
            detail = "nothing is at this path; /docs describes the API"
        return error_response(status, _CODES.get(status, "bad_request"), detail, headers)

    async def invalid(_: Request, error: Exception) -> Response:
        details = error.errors() if isinstance(error, RequestValidationError) else []
        text = "; ".join(f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in details)
        return error_response(400, "bad_request", text)

    app.add_exception_handler(Refusal, refusal)
    app.add_exception_handler(Exception, refusal)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
