"""Error responses: every error leaves in one shape, with the status of services/error_codes.py."""

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
    UnsupportedEncoding,
)
from ekiben.logs import request_id
from services.error_codes import ROUTING_CODES, code_and_message, presentable, status_of

log = logging.getLogger(__name__)


def error_body(code: str, message: str, job_id: str | None = None) -> bytes:
    """The JSON of an error, with the id of the present request and, where there is one, of the job that it waits
    for."""
    facts = {"code": code, "message": message, "request_id": request_id.get()}
    return orjson.dumps({"error": facts if job_id is None else {**facts, "job_id": job_id}})


def error_response(
    status: int,
    code: str,
    message: str,
    headers: dict[str, str] | None = None,
    path: str = "",
    job_id: str | None = None,
) -> Response:
    """An error response. ``path``: of the request; under /v2 the body is that of the Open Inference Protocol."""
    protocol = path == "/v2" or path.startswith("/v2/")
    body = orjson.dumps({"error": message}) if protocol else error_body(code, message, job_id)
    return Response(body, status, headers, "application/json")


def response_for(error: BaseException, path: str = "") -> Response:
    """The response for any error: a refusal with its message, another one as a logged internal error."""
    error = presentable(error)
    code, message = code_and_message(error)
    if not isinstance(error, Refusal):
        return error_response(500, code, message, path=path)
    headers = {}
    if isinstance(error, Temporary) and not isinstance(error, CallerLeft):
        headers["Retry-After"] = str(error.retry_after_s or 1)
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = "identity"  # RFC 9110, 12.5.3: what a request may be encoded with
    job_id = error.job_id if isinstance(error, Temporary) else None
    return error_response(status_of(error), code, message, headers, path, job_id)


def install_error_handlers(app: FastAPI) -> None:
    """Register handlers for refusals, for FastAPI's own errors, and for everything else."""

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
