"""/livez, /readyz, /healthz and /metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from ekiben import __version__
from ekiben.errors import Refusal
from services import metrics
from services.app_state import AppState
from services.jobs.dbos_queue import QUEUES
from services.rest.responses import json_response
from services.schemas.health import HealthBody, HealthPart

router = APIRouter(tags=["health"])


@router.get("/livez", summary="The process answers", response_class=PlainTextResponse)
async def livez() -> str:
    return "ok"


@router.get(
    "/readyz",
    summary="Requests can be served",
    response_model=None,
    responses={200: {"model": HealthBody}, 503: {"model": HealthBody}},
)
async def readyz(request: Request) -> Response:
    return await _verdict(request, with_models=False)


@router.get(
    "/healthz",
    summary="Every part, each with its verdict",
    response_model=None,
    responses={200: {"model": HealthBody}, 503: {"model": HealthBody}},
)
async def healthz(request: Request) -> Response:
    return await _verdict(request, with_models=True)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def show_metrics(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    others = await app_state.runner.metrics_text()
    await asyncio.to_thread(_observe, app_state)
    text, content_type = await asyncio.to_thread(metrics.render)
    return Response(text + metrics.other_families(others, text), media_type=content_type)


async def _verdict(request: Request, *, with_models: bool) -> Response:
    app_state: AppState = request.app.state.app_state
    parts = dict(await app_state.health.parts())
    ok = all(part.ok for part in parts.values())
    if with_models:
        parts["models"] = _models(app_state)
        parts["disk"] = await asyncio.to_thread(_disk, app_state)
        parts["workers"] = await asyncio.to_thread(_workers, app_state)
    return json_response(HealthBody(ok=ok, version=__version__, parts=parts), 200 if ok else 503)


def _models(app_state: AppState) -> HealthPart:
    """The part on models: those without one that may run are named, but do not make the server unhealthy."""
    listed = app_state.index.listed()
    versions = [model.active for model in listed if model.active is not None]
    missing = [model.model.name for model in listed if model.active is None]
    missing += [f"{row.name} (disabled: {row.disabled_reason})" for row in versions if row.disabled_reason]
    present = sum(1 for row in versions if not row.disabled_reason)
    detail = f"{present} available" + (f"; unavailable: {', '.join(missing)}" if missing else "")
    return HealthPart(ok=not missing, detail=detail)


def _workers(app_state: AppState) -> HealthPart:
    """The part on workers: without one requests are still served, but jobs wait."""
    try:
        alive = app_state.jobs.check_workers()
    except Refusal as error:
        return HealthPart(ok=False, detail=error.message)
    return HealthPart(ok=alive > 0, detail=f"{alive} alive" if alive else "none alive: jobs wait")


def _disk(app_state: AppState) -> HealthPart:
    """The part on free space: little of it is said, before writes fail and with them ``database`` and ``store``."""
    warning = app_state.disk_space.warning()
    return HealthPart(ok=warning is None, detail=warning or app_state.disk_space.summary())


def _observe(app_state: AppState) -> None:
    """Set the gauges of jobs, workers and disks, which are the database's and the machine's, when they are scraped."""
    for name, free in app_state.disk_space.free_bytes().items():
        metrics.disk_free_bytes.labels(name).set(free)
    try:
        counts = app_state.jobs.counts()
        metrics.workers.set(app_state.jobs.check_workers())
    except Refusal:
        return
    for kind in QUEUES:
        for state in ("queued", "running"):
            metrics.jobs.labels(kind, state).set(counts.get((kind, state), 0))
