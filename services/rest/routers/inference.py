"""POST /v1/classify and /v1/segment."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from models.images import sniff
from services.app_state import AppState
from services.inference.pipeline import ImageSource
from services.inference.volumes import DICOM_SEG, MIME_TYPES, NIFTI, medical_type
from services.rest.async_requests import split, submit
from services.rest.content_negotiation import prefers
from services.rest.disconnect import cancel_on_disconnect
from services.rest.openapi import IMAGE_TYPES, openapi, openapi_job
from services.rest.responses import json_response
from services.rest.uploads.image_upload import read_upload
from services.schemas.inference import ClassifyBody, ClassifyOptions, SegmentBody, SegmentOptions
from services.schemas.jobs import AcceptedBody

router = APIRouter(tags=["vision"])

_BINARY = {"type": "string", "format": "binary"}
_DRAWN = {"image/png": "mask", "application/gzip": NIFTI, "application/dicom": DICOM_SEG}
"""What Accept asks for, and what is answered then unless ``render`` says which image."""


@router.post(
    "/v1/classify",
    summary="The best classes of an image",
    response_model=None,
    responses={200: {"model": ClassifyBody}, 202: {"model": AcceptedBody}},
    openapi_extra=openapi_job(openapi(ClassifyOptions)),
)
async def classify(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    upload = await read_upload(request)
    options, job = split(request, ClassifyOptions, upload.fields)
    if job is not None:
        return await submit(request, "classify", options, job, upload)
    outcome = await cancel_on_disconnect(
        request.receive,
        app_state.vision.classify(
            ImageSource(upload.data, upload.filename, options.image_id),
            model=options.model,
            version=options.version,
            top_k=options.top_k,
            store=options.store,
        ),
    )
    return json_response(outcome.body)


@router.post(
    "/v1/segment",
    summary="The class of every pixel",
    response_model=None,
    responses={
        200: {"model": SegmentBody, "content": {kind: {"schema": _BINARY} for kind in _DRAWN}},
        202: {"model": AcceptedBody},
    },
    openapi_extra=openapi_job(openapi(SegmentOptions, raw=(*IMAGE_TYPES, "application/dicom", "application/x-nifti"))),
)
async def segment(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    upload = await read_upload(request, limit=app_state.settings.volume_mb * 1_000_000)
    if upload.data is not None and medical_type(upload.data) is None:
        sniff(upload.data)  # the larger limit is that of volumes
    options, job = split(request, SegmentOptions, upload.fields)
    if job is not None:
        return await submit(request, "segment", options, job, upload)
    accept = request.headers.get("accept", "")
    wanted = next((mime_type for mime_type in _DRAWN if prefers(accept, mime_type)), None)
    render = options.render or (_DRAWN[wanted] if wanted is not None else None)
    outcome = await cancel_on_disconnect(
        request.receive,
        app_state.vision.segment(
            ImageSource(upload.data, upload.filename, options.image_id),
            model=options.model,
            version=options.version,
            render=render,
            flips=options.flips,
            probability=options.probability,
            store=options.store,
        ),
    )
    if wanted is not None and render is not None:
        headers = {"X-Prediction-ID": outcome.body["id"]} if outcome.body["id"] else None
        return Response(outcome.renders[render], headers=headers, media_type=MIME_TYPES.get(render, "image/png"))
    return json_response(outcome.body)
