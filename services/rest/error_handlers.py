"""The one table from refusals to HTTP, and the one shape in which every error leaves."""

from __future__ import annotations

import logging

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ekiben.errors import (
    CallerLeft,
    Refusal,
    Temporary,
)
from ekiben.logs import request_id
from services.error_codes import ROUTING_CODES, code_and_message, status_of

log = logging.getLogger(__name__)


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


def install_error_handlers(app: FastAPI) -> None:
    """Give the application Ekiben's error shape for everything that can go wrong in it."""

    async def refusal(request: Request, error: Exception) -> Response:
        return response_for(error, request.url.path)

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        detail = str(error.detail) if isinstance(error, HTTPException) else ""
        if status == 404:
            detail = "nothing is at this path; /docs describes the API"
        return error_response(status, ROUTING_CODES.get(status, "bad_request"), detail, headers, request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        details = error.errors() if isinstance(error, RequestValidationError) else []
        text = "; ".join(f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in details)
        return error_response(400, "bad_request", text, path=request.url.path)

    app.add_exception_handler(Refusal, refusal)
    app.add_exception_handler(Exception, refusal)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
