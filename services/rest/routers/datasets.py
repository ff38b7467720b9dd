"""/v1/datasets: images with masks to train on."""

from __future__ import annotations

from typing import IO, Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict
from starlette.responses import Response

from db.datasets import DatasetView, file_key
from ekiben.errors import BadInput
from models.image_formats.sniffing import sniff
from services.app_state import AppState
from services.rest.async_requests import AsyncRequestOptions, idempotency_key
from services.rest.openapi import IDEMPOTENCY
from services.rest.pagination import Limit, Page
from services.rest.query_options import gather
from services.rest.responses import json_response, page_response
from services.rest.uploads.archive_upload import read_archive
from services.schemas.body import PageBody
from services.schemas.datasets import (
    CreatedDatasetBody,
    DatasetBody,
    DatasetClass,
    DatasetOptions,
    ReportBody,
    SampleBody,
    SampleOptions,
)
from services.schemas.jobs import error_body
from services.schemas.validation import check, read_json

router = APIRouter(tags=["datasets"])


class DatasetUploadOptions(AsyncRequestOptions, DatasetOptions):
    """The options of a dataset and of the job that imports it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _described() -> dict[str, Any]:
    """The schema of the options without ``$defs``, whose references do not resolve within the OpenAPI document."""
    schema = DatasetUploadOptions.model_json_schema()
    schema.pop("$defs")
    schema["properties"]["samples"]["anyOf"][0]["items"] = SampleOptions.model_json_schema()
    return schema


_JSON_FIELDS = ("classes", "background", "samples")
_FORM = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "A ZIP with images/ and masks/ of equal file names: PNG, JPEG, TIFF, BMP, DICOM, NIfTI.",
        },
        **{
            name: {"type": "string", "description": info.get("description", "")}
            for name, info in DatasetUploadOptions.model_json_schema()["properties"].items()
        },
    },
}


@router.post(
    "/v1/datasets",
    summary="Bring a dataset: a ZIP, a URL, or corrected masks",
    status_code=202,
    response_model=None,
    responses={202: {"model": CreatedDatasetBody}},
    openapi_extra={
        "parameters": [IDEMPOTENCY],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _FORM},
                "application/json": {"schema": _described()},
                "application/zip": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    },
)
async def create(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    idempotency_key(request)  # a wrong one is refused before anything is stored
    limit = app_state.settings.dataset_mb * 1_000_000
    form = await read_archive(request, limit, app_state.settings.home, "EKIBEN_DATASET_MB")
    try:
        options = check(DatasetUploadOptions, await _given(request, form.fields))
        own = DatasetOptions(**{name: getattr(options, name) for name in DatasetOptions.model_fields})
        archive: IO[bytes] | None = form.archive
        terms = options.terms(request)
        dataset_id, job, created = await app_state.datasets.create(own, archive, form.filename, terms)
    finally:
        if form.archive is not None:
            form.archive.close()
    headers = {"Location": f"/v1/datasets/{dataset_id}"} | ({} if created else {"Idempotency-Replayed": "true"})
    return json_response(CreatedDatasetBody(dataset_id=dataset_id, job_id=job.id), 202, headers)


@router.get(
    "/v1/datasets",
    summary="Datasets, newest first",
    response_model=None,
    responses={200: {"model": PageBody[DatasetBody]}},
)
async def find(request: Request, page: Page = 1, limit: Limit = 50) -> Response:
    app_state: AppState = request.app.state.app_state
    found, shown = await app_state.datasets.datasets(page, limit)
    return page_response([dataset_body(each) for each in shown], found.total, page, limit)


@router.get(
    "/v1/datasets/{id}",
    summary="One dataset, with its report",
    response_model=None,
    responses={200: {"model": DatasetBody}},
)
async def show(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return json_response(dataset_body(await app_state.datasets.dataset(id)))


@router.get(
    "/v1/datasets/{id}/preview",
    summary="Some samples as one image",
    response_model=None,
    responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def preview(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return _image(await app_state.datasets.preview(id), "image/png")


@router.get(
    "/v1/datasets/{id}/samples",
    summary="Its samples",
    response_model=None,
    responses={200: {"model": PageBody[SampleBody]}, 409: {"description": "The dataset is not ready."}},
)
async def samples(request: Request, id: str, page: Page = 1, limit: Limit = 50) -> Response:
    app_state: AppState = request.app.state.app_state
    prepared = await app_state.datasets.prepared(id)
    first = (page - 1) * limit
    items = [
        SampleBody(
            position=position,
            name=sample.name,
            group=sample.group,
            width=sample.width,
            height=sample.height,
            class_pixels=list(sample.class_pixels),
            image=f"/v1/datasets/{id}/samples/{position}/image",
            mask=f"/v1/datasets/{id}/samples/{position}/mask",
        )
        for position, sample in enumerate(prepared.samples[first : first + limit], first)
    ]
    return page_response(items, len(prepared.samples), page, limit)


_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get(
    "/v1/datasets/{id}/samples/{position}/image",
    summary="The image of a sample",
    response_model=None,
    responses=_BYTES,
)
async def sample_image(request: Request, id: str, position: int) -> Response:
    app_state: AppState = request.app.state.app_state
    data = await app_state.datasets.sample_image(id, position)
    return _image(data, sniff(data))


@router.get(
    "/v1/datasets/{id}/samples/{position}/mask",
    summary="The mask of a sample: grey level = class index",
    response_model=None,
    responses=_BYTES,
)
async def sample_mask(request: Request, id: str, position: int) -> Response:
    app_state: AppState = request.app.state.app_state
    return _image(await app_state.datasets.sample_mask(id, position), "image/png")


@router.delete(
    "/v1/datasets/{id}",
    summary="Remove a dataset with its files; models that were trained on it stay",
    status_code=204,
    response_model=None,
    responses={409: {"description": "It is being imported, or a training needs it: cancel that first."}},
)
async def remove(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    await app_state.datasets.delete(id)
    return Response(status_code=204)


def _image(data: bytes, mime_type: str) -> Response:
    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return Response(data, headers=headers, media_type=mime_type)


async def _given(request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    """Query and form fields, JSON fields parsed. BadInput for a name given twice."""
    query = gather(request.query_params)
    if twice := sorted(set(query) & set(fields)):
        raise BadInput(f"{twice[0][:80]} is given twice")
    given = {**query, **fields}
    for name in _JSON_FIELDS:
        if isinstance(given.get(name), str):
            given[name] = await read_json(name, given[name])
    return given


def dataset_body(shown: DatasetView) -> DatasetBody:
    """A dataset as responses show it.

    Classes and report are stored JSON: they are not validated again, as an earlier version may have written them.
    """
    dataset = shown.dataset
    return DatasetBody(
        id=dataset.id,
        name=dataset.name,
        state=shown.state,
        error=error_body(shown.error),
        job_id=dataset.job_id,
        source=dataset.source,
        storage=file_key(dataset, "archive"),
        samples=dataset.samples,
        files=dataset.files,
        total_mb=round(dataset.bytes / 1e6, 3),
        classes=[DatasetClass.model_construct(**each) for each in dataset.classes],
        report=ReportBody.model_construct(**dataset.report) if dataset.report is not None else None,
        preview=f"/v1/datasets/{dataset.id}/preview" if shown.state == "ready" else None,
        created_at=dataset.created_at,
    )
