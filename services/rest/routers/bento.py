"""POST /classify, /segment and so on: the Bento endpoints, as BentoML's clients call them (a form, the file ``image``).

BentoML's own handlers would fetch a URL that is sent in place of the file, have no limit on a body, write errors as
lists and go on computing for callers who left. So the requests of its clients are served here, as those of /v1; the
gateway's ``@bentoml.api`` methods are what /schema.json describes and what a program in the same process calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from fastapi import APIRouter, Request
from starlette.responses import Response

from ekiben.errors import BadInput
from services.inference.operations import Operation
from services.rest.openapi import openapi, openapi_job
from services.rest.routers.inference import respond, upload_limit
from services.rest.uploads.image_upload import read_upload
from services.rest.uploads.multipart import Upload
from services.schemas.jobs import AcceptedBody
from services.schemas.validation import json_options

_FIELD = "image"


def create_router(operations: Iterable[Operation]) -> APIRouter:
    """A router with the Bento endpoints of ``operations``."""
    router = APIRouter(tags=["bento"])
    for operation in operations:
        router.add_api_route(
            f"/{operation.name}",
            _endpoint(operation),
            methods=["POST"],
            name=operation.name,
            summary=f"Bento endpoint: as {operation.path}",
            response_model=None,
            responses={200: {"model": operation.response}, 202: {"model": AcceptedBody}},
            openapi_extra=openapi_job(openapi(operation.request, file_field=_FIELD, raw=())),
        )
    return router


def _endpoint(operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await respond(request, operation, await _read_form(request, operation))

    return endpoint


async def _read_form(request: Request, operation: Operation) -> Upload:
    """The form that BentoML's clients send. BadInput where it has no file."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise BadInput(f"send a multipart form with the image as file '{_FIELD}'")
    upload = await read_upload(request, file_field=_FIELD, limit=upload_limit(request, operation))
    if upload.data is None:
        raise BadInput(f"the form has no '{_FIELD}'")
    if not upload.is_file:
        raise BadInput(f"'{_FIELD}' must be a file, not text or an address")
    # BentoML's client sends every parameter as JSON, and null for one that was not given.
    as_json = json_options(operation.request)
    upload.fields = {
        name: text if name in as_json else text.strip('"') for name, text in upload.fields.items() if text != "null"
    }
    return upload
