"""/v1/trainings: from a dataset to a version of a model of one's own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict
from starlette.responses import Response

from services.dataset_wire import ComparisonBody, TrainingBody, comparison_body, training_body
from services.job_wire import AcceptedBody
from services.options import check
from services.platform import Platform
from services.routes.paging import Limit, Page
from services.routes.submitting import IDEMPOTENCY, JobOptions, accepted
from services.streamed_form import read_json_body
from services.training_requests import TrainingRequest
from services.wire import PageBody, json_response

router = APIRouter(tags=["trainings"])


class TrainingBodyOptions(JobOptions, TrainingRequest):
    model_config = ConfigDict(extra="forbid", frozen=True)


@router.post(
    "/v1/trainings",
    summary="Train a U-Net on a dataset",
    description="It is a job of kind training: follow it with /v1/jobs/{id}/events. Its model is asked with "
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
    platform: Platform = request.app.state.platform
    options = check(TrainingBodyOptions, await read_json_body(request))
    given = {name: getattr(options, name) for name in TrainingRequest.model_fields if name in options.model_fields_set}
    job, created = await platform.trainings.submit(check(TrainingRequest, given), options.asking(request))
    return accepted(job, created)


@router.get(
    "/v1/trainings",
    summary="Trainings, newest first",
    description="Without their curves: those have /v1/trainings/{id}.",
    response_model=None,
    responses={200: {"model": PageBody[TrainingBody]}},
)
async def find(request: Request, page: Page = 1, limit: Limit = 50) -> Response:
    platform: Platform = request.app.state.platform
    found = await platform.trainings.trainings(page, limit)
    items = [training_body(each) for each in found.items]
    return json_response({"items": items, "total": found.total, "page": page, "limit": limit})


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
    platform: Platform = request.app.state.platform
    wanted = [id.strip() for id in ids.split(",") if id.strip()]
    return json_response(comparison_body(await platform.trainings.compare(wanted)))


@router.get(
    "/v1/trainings/{id}",
    summary="A training: its curve so far, and what came out",
    response_model=None,
    responses={200: {"model": TrainingBody}},
)
async def show(request: Request, id: str) -> Response:
    platform: Platform = request.app.state.platform
    return json_response(training_body(await platform.trainings.training(id)))
