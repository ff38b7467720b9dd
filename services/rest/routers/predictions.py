"""/v1/predictions: stored results of inference requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from db.tables import Artifact, Image, Prediction
from ekiben.errors import NotFound
from ekiben.ids import LOCAL_OWNER
from services.app_state import AppState
from services.inference.operations import operation
from services.rest.pagination import Limit, Page
from services.rest.responses import json_response, page_response
from services.schemas.body import ImageRef, ModelRef, PageBody, TimingBody
from services.schemas.inference import OperationName
from services.schemas.records import ArtifactBody, ArtifactKind, PredictionBody

router = APIRouter(tags=["predictions"])


@router.get(
    "/v1/predictions",
    summary="Answers, newest first",
    response_model=None,
    responses={200: {"model": PageBody[PredictionBody]}},
)
async def find(
    request: Request,
    task: Annotated[OperationName | None, Query(description="Only of this task.")] = None,
    model: Annotated[str | None, Query(description="Only of this model.")] = None,
    job_id: Annotated[str | None, Query(description="Only of this job.", max_length=36)] = None,
    page: Page = 1,
    limit: Limit = 50,
) -> Response:
    app_state: AppState = request.app.state.app_state
    if task is not None:
        operation(task)  # BadInput for an unknown name

    def read() -> tuple[list[PredictionBody], int]:
        found = app_state.records.predictions(LOCAL_OWNER, task, model, page, limit, job_id=job_id)
        parts = app_state.records.parts_of(found.items)
        return [prediction_body(row, *parts[row.id]) for row in found.items if row.id in parts], found.total

    items, total = await asyncio.to_thread(read)
    return page_response(items, total, page, limit)


@router.get(
    "/v1/predictions/{id}", summary="One answer", response_model=None, responses={200: {"model": PredictionBody}}
)
async def show(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state

    def read() -> PredictionBody:
        row = app_state.records.prediction(LOCAL_OWNER, id)
        parts = app_state.records.parts_of([row])
        if row.id not in parts:
            raise NotFound(f"there is no prediction {id}")
        return prediction_body(row, *parts[row.id])

    return json_response(await asyncio.to_thread(read))


@router.delete(
    "/v1/predictions/{id}",
    summary="Remove an answer, its files and, unless kept otherwise, its image",
    status_code=204,
    response_model=None,
)
async def remove(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    keys = await asyncio.to_thread(app_state.records.delete_prediction, LOCAL_OWNER, id)
    await app_state.recorder.delete(keys)
    return Response(status_code=204)


def prediction_body(row: Prediction, image: Image, artifacts: Sequence[Artifact]) -> PredictionBody:
    """A stored prediction as responses show it."""
    return PredictionBody(
        id=row.id,
        task=row.task,
        status="succeeded",
        model=ModelRef(name=row.model_name, version=row.model_version),
        image=ImageRef(id=image.id, width=image.width, height=image.height, range=row.value_range or []),
        job_id=row.job_id,
        parameters=row.parameters,
        result=row.result,
        top_class=row.top_class,
        top_confidence=row.top_confidence,
        timing=TimingBody(queue_ms=row.queue_ms, inference_ms=row.inference_ms, batch_size=row.batch_size),
        artifacts=[_artifact_body(artifact) for artifact in artifacts],
        created_at=row.created_at,
    )


def _artifact_body(artifact: Artifact) -> ArtifactBody:
    return ArtifactBody(
        id=artifact.id,
        kind=cast(ArtifactKind, artifact.kind),
        url=f"/v1/artifacts/{artifact.id}",
        mime_type=artifact.mime_type,
        bytes=artifact.bytes,
        sha256=artifact.sha256,
    )
