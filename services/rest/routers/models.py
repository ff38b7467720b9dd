"""/v1/models: listing, loading and unloading models, importing an ONNX file, versions."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from ekiben.errors import BadInput
from services.app_state import AppState
from services.concurrency.threaded_iterator import iterate_in_thread
from services.jobs.submission import JobTerms
from services.model_registry.onnx_import import MAX_MODEL_BYTES, import_upload
from services.model_registry.version_files import remove_files, version_body, zip_version
from services.rest.async_requests import accepted
from services.rest.openapi import openapi
from services.rest.query_options import gather, parse
from services.rest.responses import json_response, page_response
from services.rest.uploads.image_upload import read_upload
from services.rest.uploads.request_body import MAX_JSON, parse_json_object, read_body, read_json_body
from services.schemas.body import PageBody
from services.schemas.jobs import AcceptedBody, JobOptions
from services.schemas.models import ModelBody, ModelUploadOptions, VersionBody
from services.schemas.validation import check

router = APIRouter(tags=["models"])

# The check of a file runs a child process that may take gigabytes: one at a time.
_ONE_IMPORT = asyncio.Semaphore(1)


class ActivateOptions(BaseModel):
    """Which version to activate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(ge=1, description="Of this model.")


@router.get("/v1/models", summary="All models", response_model=None, responses={200: {"model": PageBody[ModelBody]}})
async def find(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    items = await app_state.models.models()
    return page_response(items, len(items), 1, max(1, len(items)))


@router.get("/v1/models/{name}", summary="One model", response_model=None, responses={200: {"model": ModelBody}})
async def show(request: Request, name: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return json_response(await app_state.models.model(name))


@router.get(
    "/v1/models/{name}/versions",
    summary="The versions of a model, newest first",
    response_model=None,
    responses={200: {"model": PageBody[VersionBody]}},
)
async def versions(request: Request, name: str) -> Response:
    app_state: AppState = request.app.state.app_state
    rows = await asyncio.to_thread(app_state.registry.versions, name)
    items = [version_body(row) for row in rows]
    return page_response(items, len(items), 1, max(1, len(items)))


@router.post(
    "/v1/models/{name}/activate",
    summary="Make a version the one that the name means",
    response_model=None,
    responses={200: {"model": ModelBody}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ActivateOptions.model_json_schema()}},
        }
    },
)
async def activate(request: Request, name: str) -> Response:
    app_state: AppState = request.app.state.app_state
    wanted = check(ActivateOptions, {**gather(request.query_params), **await read_json_body(request)})
    return json_response(await app_state.models.activate(name, wanted.version))


@router.get(
    "/v1/models/{name}/versions/{version}/files",
    summary="All files of a version, as ZIP",
    response_model=None,
    responses={200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def download(request: Request, name: str, version: int) -> Response:
    app_state: AppState = request.app.state.app_state
    row = await asyncio.to_thread(app_state.registry.resolve, name, version)
    pieces = iterate_in_thread(await asyncio.to_thread(zip_version, app_state.store, row))
    headers = {"Content-Disposition": f'attachment; filename="{name}-{version}.zip"'}
    return StreamingResponse(pieces, media_type="application/zip", headers=headers)


@router.delete(
    "/v1/models/{name}/versions/{version}",
    summary="Remove a version with its files",
    status_code=204,
    response_model=None,
    responses={409: {"description": "It is the active one of several: activate another first."}},
)
async def remove_version(request: Request, name: str, version: int) -> Response:
    app_state: AppState = request.app.state.app_state
    await asyncio.to_thread(remove_files, app_state.registry, app_state.store, name, version)
    await asyncio.to_thread(app_state.index.refresh)
    return Response(status_code=204)


@router.post(
    "/v1/models",
    summary="Import an ONNX file",
    status_code=201,
    response_model=None,
    responses={201: {"model": ModelBody}},
    openapi_extra=openapi(ModelUploadOptions, file_description="The .onnx file.", raw=("application/octet-stream",)),
)
async def add(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    upload = await read_upload(request, limit=MAX_MODEL_BYTES, text_files=frozenset({"labels", "palette"}))
    if upload.data is None:
        raise BadInput("send the .onnx file as multipart field 'file'")
    options = parse(ModelUploadOptions, request.query_params, upload.fields)
    async with _ONE_IMPORT:
        row = await asyncio.to_thread(
            import_upload, app_state.registry, app_state.store, upload.data, upload.filename, options
        )
    await asyncio.to_thread(app_state.index.refresh)
    return json_response(await app_state.models.model(row.name), 201, {"Location": f"/v1/models/{row.name}"})


@router.post(
    "/v1/models/{name}/provision",
    summary="Download and export a known model that has no version",
    description="It is a job of kind provision: follow it with /v1/jobs/{id}/events. A second request while it "
    "waits or runs gives the same job. The model can be asked as soon as the job has succeeded, in every process.",
    status_code=202,
    response_model=None,
    responses={
        202: {"model": AcceptedBody},
        404: {"description": "Ekiben does not know how to make a model of this name."},
        409: {"description": "It has a version."},
    },
    openapi_extra={
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": JobOptions.model_json_schema()}},
        }
    },
)
async def provision(request: Request, name: str) -> Response:
    app_state: AppState = request.app.state.app_state
    body = await read_body(request, MAX_JSON)
    given = {**gather(request.query_params), **(await parse_json_object(body) if body else {})}
    options = check(JobOptions, given)
    terms = JobTerms(options.priority, options.timeout_s, webhook=options.webhook)
    return accepted(*await app_state.provisioning.submit(name, terms))


@router.post(
    "/v1/models/{name}/load",
    summary="Load a model and keep it loaded",
    description="The response comes when the model is ready in this process; the others follow within a second.",
    response_model=None,
    responses={200: {"model": ModelBody}},
)
async def load(request: Request, name: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return json_response(await app_state.models.load(name))


@router.post(
    "/v1/models/{name}/unload",
    summary="Take a model out of memory",
    description="Requests under way finish first. The next request for it loads it again.",
    response_model=None,
    responses={200: {"model": ModelBody}},
)
async def unload(request: Request, name: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return json_response(await app_state.models.unload(name))
