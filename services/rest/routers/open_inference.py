"""/v2: the Open Inference Protocol over HTTP. Errors are ``{"error": "..."}``; see services/rest/error_handlers.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from ekiben.errors import BadInput, NotFound, TooLarge, Unsupported
from services.app_state import AppState
from services.open_inference.http_codec import (
    HEADER_LENGTH,
    chosen_encoding,
    pack,
    read_request,
    unpack,
    write_answer,
)
from services.open_inference.tensors import MAX_BYTES
from services.rest.disconnect import cancel_on_disconnect
from services.rest.middleware import release, take
from services.rest.responses import json_response
from services.rest.uploads.request_body import read_body
from services.schemas import open_inference

router = APIRouter(tags=["Open Inference Protocol"])

_IN_THREAD = 64 * 1024
_UNOFFERED = ("systemsharedmemory", "cudasharedmemory", "trace", "logging")
_NO_BODY: dict[int | str, dict[str, Any]] = {200: {"description": "Done; the body is empty."}}
_STATISTICS: dict[int | str, dict[str, Any]] = {200: {"description": "As Triton's statistics extension gives them."}}
_CONFIG: dict[int | str, dict[str, Any]] = {200: {"description": "What clients need of Triton's configuration."}}

MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"


@router.get("/v2/health/live", summary="The server answers", responses={200: {"model": open_inference.ServerLive}})
async def live() -> Response:
    return json_response({"live": True})


@router.get(
    "/v2/health/ready",
    summary="Requests can be served",
    responses={200: {"model": open_inference.ServerReady}, 503: {"model": open_inference.ServerReady}},
)
async def ready(request: Request) -> Response:
    ok = await _app_state(request).protocol_management.ready()
    return json_response({"ready": ok}, 200 if ok else 503)


@router.get("/v2", summary="The server, and what it offers", responses={200: {"model": open_inference.ServerMetadata}})
async def server(request: Request) -> Response:
    return json_response(_app_state(request).protocol_management.server())


@router.get("/v2/models/stats", summary="Statistics of all models", responses=_STATISTICS)
async def all_statistics(request: Request) -> Response:
    return json_response(await _app_state(request).protocol_management.statistics("", ""))


@router.get(MODEL + "/ready", summary="The model can be asked", responses={200: {"model": open_inference.ModelReady}})
@router.get(
    VERSION + "/ready", summary="The version can be asked", responses={200: {"model": open_inference.ModelReady}}
)
async def model_ready(request: Request, model: str, version: str = "") -> Response:
    ok = await _app_state(request).protocol_management.model_ready(model, version)
    return json_response({"name": model, "ready": ok}, 200 if ok else 503)


@router.get(MODEL, summary="Inputs and outputs of a model", responses={200: {"model": open_inference.ModelMetadata}})
@router.get(
    VERSION, summary="Inputs and outputs of a version", responses={200: {"model": open_inference.ModelMetadata}}
)
async def metadata(request: Request, model: str, version: str = "") -> Response:
    return json_response(await _app_state(request).protocol_management.metadata(model, version))


@router.get(MODEL + "/config", summary="Configuration of a model", responses=_CONFIG)
@router.get(VERSION + "/config", summary="Configuration of a version", responses=_CONFIG)
async def config(request: Request, model: str, version: str = "") -> Response:
    return json_response(await _app_state(request).protocol_management.config(model, version))


@router.get(MODEL + "/stats", summary="Statistics of a model", responses=_STATISTICS)
@router.get(VERSION + "/stats", summary="Statistics of a version", responses=_STATISTICS)
async def statistics(request: Request, model: str, version: str = "") -> Response:
    return json_response(await _app_state(request).protocol_management.statistics(model, version))


_INFER: dict[str, Any] = {
    "responses": {
        200: {
            "description": "Outputs as JSON, or as binary data after the JSON where the request says so.",
            "model": open_inference.InferAnswerBody,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferBody"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "parameters": [
            {
                "in": "header",
                "name": "Inference-Header-Content-Length",
                "required": False,
                "description": "Length of the JSON that binary tensors follow; 0: the body is one encoded image.",
                "schema": {"type": "integer"},
            }
        ],
    },
}


@router.post(MODEL + "/infer", summary="Ask a model", **_INFER)
@router.post(VERSION + "/infer", summary="Ask a version", **_INFER)
async def infer(request: Request, model: str, version: str = "") -> Response:
    app_state = _app_state(request)
    body = await read_body(request, MAX_BYTES, encoded=True)
    encoding = request.headers.get("content-encoding", "")
    length = request.headers.get(HEADER_LENGTH)
    data = body if not encoding else await asyncio.to_thread(unpack, body, encoding)
    take(request.scope, len(data) - len(body))
    head = (
        int(length) if length is not None and length.isascii() and length.isdigit() and len(length) < 12 else len(data)
    )
    requested, form = await _run(lambda: read_request(model, version, data, length), head)
    answer = await cancel_on_disconnect(request.receive, app_state.open_inference.infer(requested))
    release(request.scope, len(data))
    packed = chosen_encoding(request.headers.get("accept-encoding", ""))

    def write() -> tuple[bytes, int | None, str | None]:
        text, head = write_answer(answer, form)
        small = len(text) < 1024  # compression would not make it smaller
        return (text, head, None) if packed is None or small else (pack(text, packed), head, packed)

    size = sum(tensor.nbytes for tensor in answer.outputs)
    try:
        text, length_of_json, packed_as = await _run(write, size)
    except TooLarge:
        await app_state.open_inference.forget(answer)
        raise
    headers = {} if length_of_json is None else {"Inference-Header-Content-Length": str(length_of_json)}
    if packed_as is not None:
        headers["Content-Encoding"] = packed_as
    kind = "application/json" if length_of_json is None else "application/octet-stream"
    return Response(text, headers=headers, media_type=kind)


_INDEX: dict[str, Any] = {
    "summary": "All models, as a repository",
    "responses": {200: {"model": list[open_inference.IndexedModel]}},
    "openapi_extra": {
        "requestBody": {"content": {"application/json": {"schema": open_inference.IndexBody.model_json_schema()}}}
    },
}


@router.post("/v2/repository/index", **_INDEX)
@router.post("/v2/repository/{repository}/index", **_INDEX)
async def repository_index(request: Request, repository: str = "") -> Response:
    given = await _json(request)
    wanted = given.get("ready", False)
    if not isinstance(wanted, bool):
        raise BadInput("ready is true or false")
    return json_response(await _app_state(request).protocol_management.repository(repository, ready=wanted))


_LOADING: dict[str, Any] = {
    "responses": _NO_BODY,
    "openapi_extra": {
        "requestBody": {"content": {"application/json": {"schema": open_inference.LoadBody.model_json_schema()}}}
    },
}


@router.post("/v2/repository/models/{model}/load", summary="Load a model and keep it loaded", **_LOADING)
@router.post("/v2/repository/{repository}/models/{model}/load", summary="Load a model and keep it loaded", **_LOADING)
async def load(request: Request, model: str, repository: str = "") -> Response:
    return await _change(request, repository, model, _app_state(request).protocol_management.load)


@router.post("/v2/repository/models/{model}/unload", summary="Take a model out of memory", **_LOADING)
@router.post("/v2/repository/{repository}/models/{model}/unload", summary="Take a model out of memory", **_LOADING)
async def unload(request: Request, model: str, repository: str = "") -> Response:
    return await _change(request, repository, model, _app_state(request).protocol_management.unload)


@router.api_route("/v2/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
async def elsewhere(rest: str) -> Response:
    """Unsupported for paths of extensions that other servers of the protocol offer; NotFound for every other path."""
    parts = rest.split("/")
    # Trace settings exist below models too, and generate beside infer.
    if parts[0] in _UNOFFERED or parts[-1] in ("generate", "generate_stream") or parts[-2:] == ["trace", "setting"]:
        raise Unsupported(f"/v2/{rest[:200]} belongs to an extension that Ekiben does not offer")
    raise NotFound("nothing is at this path; GET /v2 lists what is offered")


async def _change(request: Request, repository: str, model: str, change: Callable[..., Awaitable[None]]) -> Response:
    given = (await _json(request)).get("parameters", {})
    if not isinstance(given, dict):
        raise BadInput("parameters is a JSON object")
    if repository:
        raise NotFound("there is one repository, without a name")
    await change(model, given)
    return Response(b"", 200)


async def _json(request: Request) -> dict[str, Any]:
    body = await read_body(request, 1 << 20)
    if not body.strip():
        return {}
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the request is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(given, dict):
        raise BadInput("the request is a JSON object")
    return given


async def _run(work: Callable[[], Any], size: int) -> Any:
    """The result of ``work()``, called in a thread where ``size`` bytes take long."""
    return await asyncio.to_thread(work) if size > _IN_THREAD else work()


def _app_state(request: Request) -> AppState:
    app_state: AppState = request.app.state.app_state
    return app_state
