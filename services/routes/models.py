"""/v1/models: what can be asked, loading and unloading, importing an ONNX file."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from db.listing import Listed
from db.tables import ModelReplica
from ekiben.errors import BadInput, NotFound, Temporary
from models.engine import ModelKey, ModelState
from services.importing import MAX_MODEL_BYTES, UploadOptions, import_upload
from services.job_results import in_thread
from services.model_files import remove_files, version_body, zip_version
from services.options import check
from services.platform import Platform
from services.routes.options import gather, openapi, parse
from services.streamed_form import read_json_body
from services.upload import read_upload
from services.vision import LOCAL
from services.wire import ModelBody, PageBody, VersionBody, json_response

router = APIRouter(tags=["models"])

# Checking a file runs a child process that may take gigabytes: one at a time.
_ONE_IMPORT = asyncio.Semaphore(1)


class ActivateOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(ge=1, description="Of this model.")


_NO_COUNTS = {"predictions": 0, "batches": 0, "loads": 0, "waiting": 0, "batch_size": 1}


@router.get("/v1/models", summary="All models", response_model=None, responses={200: {"model": PageBody[ModelBody]}})
async def find(request: Request) -> Response:
    platform: Platform = request.app.state.platform
    listed = await asyncio.to_thread(platform.registry.models, LOCAL)
    items = await _bodies(platform, listed)
    return json_response({"items": items, "total": len(items), "page": 1, "limit": max(1, len(items))})


@router.get("/v1/models/{name}", summary="One model", response_model=None, responses={200: {"model": ModelBody}})
async def show(request: Request, name: str) -> Response:
    return json_response(await _one(request.app.state.platform, name))


@router.get(
    "/v1/models/{name}/versions",
    summary="The versions of a model, newest first",
    response_model=None,
    responses={200: {"model": PageBody[VersionBody]}},
)
async def versions(request: Request, name: str) -> Response:
    platform: Platform = request.app.state.platform
    rows = await asyncio.to_thread(platform.registry.versions, name)
    items = [version_body(row) for row in rows]
    return json_response({"items": items, "total": len(items), "page": 1, "limit": max(1, len(items))})


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
    platform: Platform = request.app.state.platform
    wanted = check(ActivateOptions, {**gather(request.query_params), **await read_json_body(request)})
    await asyncio.to_thread(platform.registry.activate, name, wanted.version)
    await asyncio.to_thread(platform.index.refresh)
    return json_response(await _one(platform, name))


@router.get(
    "/v1/models/{name}/versions/{version}/files",
    summary="All files of a version, as ZIP",
    response_model=None,
    responses={200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def download(request: Request, name: str, version: int) -> Response:
    platform: Platform = request.app.state.platform
    row = await asyncio.to_thread(platform.registry.resolve, name, version)
    pieces = in_thread(zip_version(platform.store, row))
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
    platform: Platform = request.app.state.platform
    await asyncio.to_thread(remove_files, platform.registry, platform.store, name, version)
    await asyncio.to_thread(platform.index.refresh)
    return Response(status_code=204)


@router.post(
    "/v1/models",
    summary="Import an ONNX file",
    status_code=201,
    response_model=None,
    responses={201: {"model": ModelBody}},
    openapi_extra=openapi(UploadOptions, file_description="The .onnx file.", raw=("application/octet-stream",)),
)
async def bring(request: Request) -> Response:
    platform: Platform = request.app.state.platform
    upload = await read_upload(request, limit=MAX_MODEL_BYTES, text_files=frozenset({"labels", "palette"}))
    if upload.data is None:
        raise BadInput("send the .onnx file as multipart field 'file'")
    options = parse(UploadOptions, request.query_params, upload.fields)
    async with _ONE_IMPORT:
        row = await asyncio.to_thread(
            import_upload, platform.registry, platform.store, upload.data, upload.filename, options
        )
    await asyncio.to_thread(platform.index.refresh)
    return json_response(await _one(platform, row.name), 201, {"Location": f"/v1/models/{row.name}"})


@router.post(
    "/v1/models/{name}/load",
    summary="Load a model and keep it loaded",
    description="Answers when it is ready in the process that answers; the others follow within a second.",
    response_model=None,
    responses={200: {"model": ModelBody}},
)
async def load(request: Request, name: str) -> Response:
    platform: Platform = request.app.state.platform
    key = await _active(platform, name)
    await platform.runner.load(key, pin=True)
    await asyncio.to_thread(platform.registry.set_desired, name, "loaded")
    return json_response(await _one(platform, name))


@router.post(
    "/v1/models/{name}/unload",
    summary="Take a model out of memory",
    description="Requests under way finish first. The next request for it loads it again.",
    response_model=None,
    responses={200: {"model": ModelBody}},
)
async def unload(request: Request, name: str) -> Response:
    platform: Platform = request.app.state.platform
    key = await _active(platform, name)
    await asyncio.to_thread(platform.registry.set_desired, name, "unloaded")
    await platform.runner.unload(key)
    return json_response(await _one(platform, name))


async def _active(platform: Platform, name: str) -> ModelKey:
    row = await asyncio.to_thread(platform.registry.resolve, name)
    return ModelKey(row.owner, row.name, row.version)


async def _one(platform: Platform, name: str) -> dict[str, Any]:
    listed = await asyncio.to_thread(platform.registry.models, LOCAL)
    for row in listed:
        if row.model.name == name:
            return (await _bodies(platform, [row]))[0]
    known = ", ".join(row.model.name for row in listed) or "none"
    raise NotFound(f"there is no model {name!r}; there are: {known}")


async def _bodies(platform: Platform, listed: Sequence[Listed]) -> list[dict[str, Any]]:
    replicas = await asyncio.to_thread(platform.registry.replicas)
    held: dict[ModelKey, ModelState] | None
    try:
        held = {state.key: state for state in await platform.runner.states()}
    except Temporary:
        held = None
    return [await _body(platform, row, replicas, held) for row in listed]


async def _body(
    platform: Platform, listed: Listed, replicas: Sequence[ModelReplica], held: dict[ModelKey, ModelState] | None
) -> dict[str, Any]:
    model, active = listed.model, listed.active
    mine = [row for row in replicas if row.name == model.name]
    manifest: dict[str, Any] = active.manifest if active else {}
    state, reason, memory, counters = "unavailable", model.unavailable_reason, 0, _NO_COUNTS
    if active is not None:
        key = ModelKey(active.owner, active.name, active.version)
        state, reason, memory = _state(key, held, mine)
        if held is not None and key in held:
            counters = await platform.runner.counters(key)
    weights = manifest.get("weights")
    return {
        "name": model.name,
        "task": active.task if active else model.task,
        "version": active.version if active else None,
        "state": state,
        "reason": reason,
        "desired": model.desired,
        "memory_bytes": memory,
        "weights": _weights(weights) if weights else None,
        "licence": manifest.get("licence"),
        "source": manifest.get("source"),
        "precision": manifest.get("precision"),
        "classes": len(manifest["labels"]) or None if manifest else None,
        "counters": counters,
        "replicas": [
            {
                "process_id": row.process_id,
                "host": row.host,
                "version": row.version,
                "state": row.state,
                "reason": row.reason,
                "memory_bytes": row.memory_bytes,
            }
            for row in mine
        ],
        "versions": [version_body(row) for row in listed.versions],
    }


def _state(
    key: ModelKey, held: dict[ModelKey, ModelState] | None, replicas: Sequence[ModelReplica]
) -> tuple[str, str | None, int]:
    """What this process (or its runner) says; else the best of what the others reported."""
    if held is None:
        return "unavailable", "the runner is not reachable", 0
    own = held.get(key)
    if own is not None and own.state != "unloaded":
        return "unavailable" if own.state == "failed" else own.state, own.reason or None, own.memory_bytes
    others = [r for r in replicas if r.version == key.version and r.state in ("ready", "loading")]
    if others:
        best = min(others, key=lambda r: r.state != "ready")
        return best.state, None, best.memory_bytes
    return "unloaded", None, 0


def _weights(weights: dict[str, Any]) -> str:
    return f"{weights['kind']} ({weights['detail']})" if weights.get("detail") else str(weights["kind"])
