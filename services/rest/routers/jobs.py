"""/v1/jobs: work that outlives a request."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from db.job_states import OVER
from ekiben.errors import BadInput, Conflict, NotFound, Refusal
from ekiben.ids import LOCAL_OWNER
from services.app_state import AppState
from services.concurrency.threaded_iterator import iterate_in_thread
from services.jobs.event_stream import LOOK_S, follow
from services.jobs.result_export import json_lines, zip_archive
from services.rest.content_negotiation import prefers
from services.rest.pagination import Limit, Page
from services.rest.responses import json_response, page_response
from services.schemas.body import PageBody
from services.schemas.jobs import (
    ItemBody,
    JobBody,
    Kind,
    State,
    StatusBody,
    event_text,
    item_body,
    job_body,
    status_body,
)

router = APIRouter(tags=["jobs"])

LINES = "application/x-ndjson"
ZIP = "application/zip"
EVENTS = "text/event-stream"

_PING_S = 15.0  # silence after which a comment is sent, so that proxies keep the connection


@router.get(
    "/v1/jobs", summary="Jobs, newest first", response_model=None, responses={200: {"model": PageBody[JobBody]}}
)
async def find(
    request: Request,
    state: Annotated[State | None, Query(description="Only in this state.")] = None,
    kind: Annotated[Kind | None, Query(description="Only of this kind.")] = None,
    page: Page = 1,
    limit: Limit = 50,
) -> Response:
    app_state: AppState = request.app.state.app_state
    found, running = await app_state.jobs.jobs(state, kind, page, limit)
    items = [job_body(job, running.get(job.id, 0)) for job in found.items]
    return page_response(items, found.total, page, limit)


@router.get("/v1/jobs/{id}", summary="One job", response_model=None, responses={200: {"model": JobBody}})
async def show(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return json_response(job_body(*await app_state.jobs.job(id)))


@router.get(
    "/v1/jobs/{id}/status", summary="State and progress", response_model=None, responses={200: {"model": StatusBody}}
)
async def status(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    job, _ = await app_state.jobs.job(id)
    return json_response(status_body(job))


@router.get(
    "/v1/jobs/{id}/items",
    summary="The items of a job, with their results so far",
    response_model=None,
    responses={200: {"model": PageBody[ItemBody]}},
)
async def items(
    request: Request,
    id: str,
    state: Annotated[State | None, Query(description="Only in this state.")] = None,
    page: Page = 1,
    limit: Limit = 50,
) -> Response:
    app_state: AppState = request.app.state.app_state
    found, results = await app_state.jobs.items(id, state, page, limit)
    bodies = [item_body(item, results.get(item.id)) for item in found.items]
    return page_response(bodies, found.total, page, limit)


@router.get(
    "/v1/jobs/{id}/result",
    summary="What came out: the answer of a request; of a batch its items",
    response_model=None,
    responses={
        200: {
            "description": "Of a request: the response of its own route; of an import or a training: its result. Of a "
            "batch: a page of items; with the Accept header, all of them as JSON lines or, with their files, as ZIP.",
            "model": PageBody[ItemBody],
            "content": {
                LINES: {"schema": {"type": "string"}},
                ZIP: {"schema": {"type": "string", "format": "binary"}},
            },
        },
        409: {"description": "The job is not over yet, or has no result: it failed or was cancelled."},
    },
)
async def result(request: Request, id: str, page: Page = 1, limit: Limit = 50) -> Response:
    app_state: AppState = request.app.state.app_state
    job, _ = await app_state.jobs.job(id)
    if job.state not in OVER:
        raise Conflict(f"the job is {job.state}: its result is there when it is over", code="not_finished")
    accept = request.headers.get("accept", "")
    for mime_type, ending, made in ((LINES, "jsonl", json_lines), (ZIP, "zip", zip_archive)):
        if prefers(accept, mime_type):
            headers = {"Content-Disposition": f'attachment; filename="{id}.{ending}"'}
            pieces = iterate_in_thread(made(app_state.jobs, app_state.store, LOCAL_OWNER, job))
            return StreamingResponse(pieces, media_type=mime_type, headers=headers)
    found, results = await app_state.jobs.items(id, None, page, limit)
    if job.kind == "batch":
        bodies = [item_body(item, results.get(item.id)) for item in found.items]
        return page_response(bodies, found.total, page, limit)
    if job.state != "succeeded":
        error = job.error or {"code": job.state, "message": f"the job was {job.state}"}
        raise Conflict(error["message"], code=error["code"])
    stored = results.get(found.items[0].id) if found.items else None
    if stored is None:
        raise NotFound("the answer of this job was deleted")
    return json_response(stored)


@router.get(
    "/v1/jobs/{id}/events",
    summary="What happens to a job, as server-sent events",
    response_model=None,
    responses={
        200: {
            "description": "Events `state`, `progress` and `worker_lost`; of imports `import`; of trainings `plan`, "
            "`step`, `epoch` and `preview`; each with its number as id. The stream ends with the job; Last-Event-ID "
            "goes on after that number.",
            "content": {EVENTS: {"schema": {"type": "string"}}},
        },
        204: {"description": "The job is over, and there is nothing after Last-Event-ID."},
    },
)
async def events(
    request: Request,
    id: str,
    after: Annotated[int | None, Query(ge=0, description="As the header Last-Event-ID.")] = None,
) -> Response:
    app_state: AppState = request.app.state.app_state
    last = _last_event(request) if after is None else after
    found, ended = await app_state.jobs.events(id, last)
    if ended and not found:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(app_state, id, last), media_type=EVENTS, headers=headers)


@router.post(
    "/v1/jobs/{id}/cancel",
    summary="Stop a job; what has ended stays",
    response_model=None,
    responses={200: {"model": JobBody}, 409: {"description": "The job is over."}},
)
async def cancel(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return json_response(job_body(await app_state.jobs.cancel(id), 0))


@router.post(
    "/v1/jobs/{id}/retry",
    summary="Do again what did not succeed",
    status_code=202,
    response_model=None,
    responses={202: {"model": JobBody}, 409: {"description": "The job is not over, or all of it succeeded."}},
)
async def retry(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return json_response(job_body(await app_state.jobs.retry(id), 0), 202, {"Location": f"/v1/jobs/{id}"})


@router.delete(
    "/v1/jobs/{id}",
    summary="Remove a job with its results and files",
    status_code=204,
    response_model=None,
    responses={409: {"description": "The job is not over: cancel it first."}},
)
async def remove(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    await app_state.jobs.delete(id)
    return Response(status_code=204)


def _last_event(request: Request) -> int:
    text = request.headers.get("last-event-id", "0")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadInput("Last-Event-ID is the number of an event")
    return int(text)


async def _stream(app_state: AppState, id: str, last: int) -> AsyncIterator[bytes]:
    yield b"retry: 2000\n\n"
    silent_s = 0.0
    with contextlib.suppress(Refusal):  # the caller connects again, and gets the refusal
        async for found in follow(app_state.jobs, id, last):
            for event in found:
                yield event_text(event, _data(event.data))
            silent_s = 0.0 if found else silent_s + LOOK_S
            if silent_s >= _PING_S:
                yield b": still here\n\n"
                silent_s = 0.0


def _data(data: dict[str, Any]) -> bytes:
    return orjson.dumps(data)
