"""POST /v1/classify, /v1/segment, /v1/masks, /v1/masks/auto and /v1/cutouts: a route for each row of the table of
operations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.app_state import AppState
from services.inference.context import RequestContext
from services.inference.operations import Operation
from services.inference.pipeline import ImageSource
from services.rest.async_requests import split, submit
from services.rest.content_negotiation import prefers
from services.rest.disconnect import cancel_on_disconnect
from services.rest.openapi import IMAGE_TYPES, openapi, openapi_job
from services.rest.responses import json_response
from services.rest.uploads.image_upload import read_upload
from services.rest.uploads.multipart import Upload
from services.schemas.jobs import AcceptedBody

_BINARY = {"type": "string", "format": "binary"}


def create_router(operations: Iterable[Operation]) -> APIRouter:
    """A router with the routes of ``operations``."""
    router = APIRouter()
    for operation in operations:
        raw = (*IMAGE_TYPES, "application/dicom", *(("application/x-nifti",) if operation.volumes else ()))
        forms = {form.media_type: {"schema": _BINARY} for form in operation.representations}
        described: dict[str, Any] = {"model": operation.response, **({"content": forms} if forms else {})}
        router.add_api_route(
            operation.path,
            _endpoint(operation),
            methods=["POST"],
            name=operation.name,
            tags=[operation.tag],
            summary=operation.summary,
            response_model=None,
            responses={200: described, 202: {"model": AcceptedBody}},
            openapi_extra=openapi_job(openapi(operation.request, raw=raw)),
        )
    return router


def _endpoint(operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await respond(request, operation, await read_upload(request, limit=upload_limit(request, operation)))

    return endpoint


def upload_limit(request: Request, operation: Operation) -> int:
    """Bytes of the file that ``operation`` takes: a volume may be larger than an image."""
    app_state: AppState = request.app.state.app_state
    return (
        app_state.settings.volume_mb * 1_000_000 if operation.volumes else app_state.inference.pipeline.limits.max_bytes
    )


async def respond(request: Request, operation: Operation, upload: Upload) -> Response:
    """The response of an operation on ``upload``, in the form that Accept prefers; or 202 with a job, if Prefer says
    so.

    Raises the operation's refusals, and CallerLeft for a caller who disconnects.
    """
    app_state: AppState = request.app.state.app_state
    options, job = await split(request, operation.request, upload.fields)
    if job is not None:
        return await submit(request, operation.name, options, job, upload)
    accept = request.headers.get("accept", "")
    form = next((each for each in operation.representations if prefers(accept, each.media_type)), None)
    if form is not None:
        options = form.prepare(options)
    source = ImageSource(upload.data, upload.filename, options.image_id)
    outcome = await cancel_on_disconnect(
        request.receive, operation.run(RequestContext(app_state.inference), source, options)
    )
    if form is None:
        return json_response(outcome.body)
    content, media_type = await asyncio.to_thread(form.encode, outcome, options)
    headers = {"X-Prediction-ID": outcome.body.id} if outcome.body.id else {}
    if form.filename is not None:
        headers["Content-Disposition"] = f'attachment; filename="{form.filename}"'
    return Response(content, headers=headers, media_type=media_type)
