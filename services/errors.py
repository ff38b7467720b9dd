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
    Unsupported,
    UnsupportedImage,
)
from ekiben.logs import request_id
from services import metrics

log = logging.getLogger(__name__)

# The first row whose class fits wins, so subclasses stand before their parents. Then: HTTP status, gRPC code.
STATUS: tuple[tuple[type[Refusal], int, str], ...] = (
    (TooLarge, 413, "INVALID_ARGUMENT"),
    (TooSlow, 408, "DEADLINE_EXCEEDED"),
    (UnsupportedImage, 415, "INVALID_ARGUMENT"),
    (BadInput, 400, "INVALID_ARGUMENT"),
    (NotFound, 404, "NOT_FOUND"),
    (Conflict, 409, "FAILED_PRECONDITION"),
    (Unsupported, 501, "UNIMPLEMENTED"),
    (CallerLeft, 499, "CANCELLED"),  # nginx's number for it; only logs and metrics see it
    (DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
    (Overloaded, 503, "UNAVAILABLE"),  # which clients may try again; RESOURCE_EXHAUSTED they may not
    (Unavailable, 503, "UNAVAILABLE"),
    (Temporary, 503, "UNAVAILABLE"),
    (Refusal, 400, "INVALID_ARGUMENT"),
)

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


def status_of(refusal: Refusal) -> int:
    return next(status for kind, status, _ in STATUS if isinstance(refusal, kind))


def grpc_code_of(refusal: Refusal) -> str:
    """The name of a grpc.StatusCode."""
    return next(code for kind, _, code in STATUS if isinstance(refusal, kind))


def code_and_message(error: BaseException) -> tuple[str, str]:
    """What any error is called and what a caller is told of it; counted, and logged where it is no refusal."""
    if isinstance(error, Refusal):
        metrics.refused.labels(error.code).inc()
        return error.code, error.message
    log.error("internal error", exc_info=error)
    return "internal_error", "internal error; the log has it under this request id"


def error_body(code: str, message: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message, "request_id": request_id.get()}})


def error_response(
    status: int, code: str, message: str, headers: dict[str, str] | None = None, path: str = ""
) -> Response:
    """``path``: what was asked for; under /v2 an error is worded as the Open Inference Protocol says."""
    protocol = path == "/v2" or path.startswith("/v2/")
    body = orjson.dumps({"error": message}) if protocol else error_body(code, message)
    return Response(body, status, headers, "application/json")


def response_for(error: BaseException, path: str = "") -> Response:
    """The response of any error: a refusal in its own words, everything else as an internal error, logged."""
    code, message = code_and_message(error)
    if not isinstance(error, Refusal):
        return error_response(500, code, message, path=path)
    headers = {}
    if isinstance(error, Temporary) and not isinstance(error, CallerLeft):
        headers["Retry-After"] = str(error.retry_after_s or 1)
    return error_response(status_of(error), code, message, headers, path)


def install(app: FastAPI) -> None:
    """Give the application Ekiben's error shape for everything that can go wrong in it."""

    async def refusal(request: Request, error: Exception) -> Response:
        return response_for(error, request.url.path)

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        detail = str(error.detail) if isinstance(error, HTTPException) else ""
        if status == 404:
            detail = "nothing is at this path; /docs describes the API"
        return error_response(status, _CODES.get(status, "bad_request"), detail, headers, request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        details = error.errors() if isinstance(error, RequestValidationError) else []
        text = "; ".join(f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in details)
        return error_response(400, "bad_request", text, path=request.url.path)

    app.add_exception_handler(Refusal, refusal)
    app.add_exception_handler(Exception, refusal)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
