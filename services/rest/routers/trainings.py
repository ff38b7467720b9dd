"""/v1/trainings: from a dataset to a version of a model of one's own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict
from starlette.responses import Response

from db.tables import Artifact, JobEvent
from services.app_state import AppState
from services.rest.async_requests import AsyncRequestOptions, accepted
from services.rest.openapi import IDEMPOTENCY
from services.rest.pagination import Limit, Page
from services.rest.responses import json_response, page_response
from services.rest.uploads.request_body import read_json_body
from services.schemas.body import ModelRef, PageBody
from services.schemas.jobs import AcceptedBody, job_body
from services.schemas.trainings import ComparedRow, ComparisonBody, CurvePoint, TrainingBody, TrainingRequest
from services.schemas.validation import check
from services.trainings.comparison import Comparison
from services.trainings.service import Training

router = APIRouter(tags=["trainings"])


class TrainingBodyOptions(AsyncRequestOptions, TrainingRequest):
    """The options of a training and of its job."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@router.post(
    "/v1/trainings",
    summary="Train a U-Net on a dataset",
    description="It is a job of kind training: follow it with /v1/jobs/{id}/events. Its model can be used with "
    "/v1/segment?model=name as soon as it is published.",
    status_code=202,
    response_model=None,
    responses={202: {"model": AcceptedBody}, 409: {"description": "The dataset is not ready."}},
    openapi_extra={
        "parameters": [IDEMPOTENCY],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": TrainingBodyOptions.model_json_schema()}},
        },
    },
)
async def submit(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    options = check(TrainingBodyOptions, await read_json_body(request))
    given = {name: getattr(options, name) for name in TrainingRequest.model_fields if name in options.model_fields_set}
    job, created = await app_state.trainings.submit(check(TrainingRequest, given), options.terms(request))
    return accepted(job, created)


@router.get(
    "/v1/trainings",
    summary="Trainings, newest first",
    description="Without their curves: those have /v1/trainings/{id}.",
    response_model=None,
    responses={200: {"model": PageBody[TrainingBody]}},
)
async def find(request: Request, page: Page = 1, limit: Limit = 50) -> Response:
    app_state: AppState = request.app.state.app_state
    found = await app_state.trainings.trainings(page, limit)
    return page_response([training_body(each) for each in found.items], found.total, page, limit)


@router.get(
    "/v1/trainings/compare",
    summary="Trainings side by side: metrics, parameters, size, speed",
    response_model=None,
    responses={200: {"model": ComparisonBody}},
)
async def compare(
    request: Request,
    ids: Annotated[str, Query(description="Of 2 to 20 trainings, separated by commas.", max_length=2000)],
) -> Response:
    app_state: AppState = request.app.state.app_state
    wanted = [id.strip() for id in ids.split(",") if id.strip()]
    return json_response(comparison_body(await app_state.trainings.compare(wanted)))


@router.get(
    "/v1/trainings/{id}",
    summary="A training: its curve so far, and what came out",
    response_model=None,
    responses={200: {"model": TrainingBody}},
)
async def show(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return json_response(training_body(await app_state.trainings.training(id)))


def training_body(training: Training) -> TrainingBody:
    """A training as responses show it.

    Epochs and result are stored JSON: they are not validated again, as an earlier version may have written them.
    """
    job, result = training.job, training.result or {}
    step, model = training.last.get("step"), result.get("model")
    return TrainingBody(
        id=job.id,
        job=job_body(job, 1 if job.state == "running" else 0),
        dataset_id=job.parameters["dataset_id"],
        name=job.parameters["name"],
        options=job.parameters["options"],
        epochs=[CurvePoint.model_construct(**event.data) for event in _once(training.epochs)],
        now=step.data if step is not None else None,
        previews=[_url(file) for file in training.files if file.kind == "preview"],
        model=ModelRef.model_construct(**model) if model is not None else None,
        metrics=result.get("metrics"),
        training=result.get("training"),
        artifacts={file.kind: _url(file) for file in training.files if file.kind in ("evaluation", "tensorboard")},
    )


def comparison_body(compared: Comparison) -> ComparisonBody:
    """A comparison as responses show it; its rows are made of stored results."""
    return ComparisonBody(
        same_split=compared.same_split,
        common_images=compared.common_images,
        items=[ComparedRow.model_construct(**row) for row in compared.rows],
    )


def _once(events: list[JobEvent]) -> list[JobEvent]:
    """Each epoch of each fold once: an epoch that was interrupted has two events, of which the later counts."""
    return list({(event.data.get("fold"), event.data.get("epoch")): event for event in events}.values())


def _url(file: Artifact) -> str:
    return f"/v1/artifacts/{file.id}"
