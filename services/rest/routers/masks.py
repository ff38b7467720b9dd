"""POST /v1/masks, /v1/masks/auto and /v1/cutouts."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from services.app_state import AppState
from services.inference.mask_encoding import CutOut
from services.inference.pipeline import ImageSource
from services.rest.async_requests import split, submit
from services.rest.content_negotiation import prefers
from services.rest.disconnect import cancel_on_disconnect
from services.rest.openapi import openapi, openapi_job
from services.rest.responses import json_response
from services.rest.uploads.image_upload import read_upload
from services.rest.uploads.multipart import Upload
from services.schemas.jobs import AcceptedBody
from services.schemas.masks import AutoMasksBody, AutoMasksOptions, CutoutsBody, CutoutsOptions, MasksBody, MasksOptions
from services.schemas.validation import read_json

router = APIRouter(tags=["masks"])

ZIP = "application/zip"


@router.post(
    "/v1/masks",
    summary="Segment Anything: masks of points and boxes",
    response_model=None,
    responses={200: {"model": MasksBody}, 202: {"model": AcceptedBody}},
    openapi_extra=openapi_job(openapi(MasksOptions)),
)
async def masks(request: Request) -> Response:
    return await ask_masks(request, await read_upload(request))


@router.post(
    "/v1/masks/auto",
    summary="Segment Anything: masks of everything in the image",
    response_model=None,
    responses={200: {"model": AutoMasksBody}, 202: {"model": AcceptedBody}},
    openapi_extra=openapi_job(openapi(AutoMasksOptions)),
)
async def auto_masks(request: Request) -> Response:
    return await ask_auto_masks(request, await read_upload(request))


@router.post(
    "/v1/cutouts",
    summary="Segment Anything: objects with a transparent background",
    response_model=None,
    responses={
        200: {"model": CutoutsBody, "content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}},
        202: {"model": AcceptedBody},
    },
    openapi_extra=openapi_job(openapi(CutoutsOptions)),
)
async def cutouts(request: Request) -> Response:
    upload = await read_upload(request)
    options, job = split(request, CutoutsOptions, upload.fields)
    if job is not None:
        return await submit(request, "cutouts", options, job, upload)
    body, cuts = await ask_cutouts(request, upload, options)
    if not prefers(request.headers.get("accept", ""), ZIP):
        return json_response(body)
    headers = {"Content-Disposition": 'attachment; filename="cutouts.zip"'}
    if body["id"]:
        headers["X-Prediction-ID"] = body["id"]
    return Response(await asyncio.to_thread(_archive, body, cuts), headers=headers, media_type=ZIP)


async def ask_masks(request: Request, upload: Upload) -> Response:
    """The answer to a request for prompted masks, whichever door it came through."""
    app_state: AppState = request.app.state.app_state
    options, job = split(request, MasksOptions, upload.fields)
    if job is not None:
        return await submit(request, "masks", options, job, upload)
    requested = app_state.masks.prompted(
        ImageSource(upload.data, upload.filename, options.image_id),
        await read_json("prompts", options.prompts),
        model=options.model,
        version=options.version,
        multimask=options.multimask,
        format=options.format,
        logits=options.logits,
        store=options.store,
    )
    return json_response(await cancel_on_disconnect(request.receive, requested))


async def ask_auto_masks(request: Request, upload: Upload) -> Response:
    """Likewise for automatic masks."""
    app_state: AppState = request.app.state.app_state
    options, job = split(request, AutoMasksOptions, upload.fields)
    if job is not None:
        return await submit(request, "auto_masks", options, job, upload)
    requested = app_state.masks.automatic(
        ImageSource(upload.data, upload.filename, options.image_id),
        options.auto,
        model=options.model,
        version=options.version,
        format=options.format,
        store=options.store,
    )
    return json_response(await cancel_on_disconnect(request.receive, requested))


async def ask_cutouts(request: Request, upload: Upload, options: CutoutsOptions) -> tuple[dict[str, Any], list[CutOut]]:
    """Likewise for cut-outs: what the answer says, and the PNGs."""
    app_state: AppState = request.app.state.app_state
    requested = app_state.masks.cutouts(
        ImageSource(upload.data, upload.filename, options.image_id),
        await read_json("prompts", options.prompts),
        options.auto,
        style=options.style,
        min_pixels=options.min_pixels,
        limit=options.limit,
        multimask=options.multimask,
        model=options.model,
        version=options.version,
        store=options.store,
    )
    answer: tuple[dict[str, Any], list[CutOut]] = await cancel_on_disconnect(request.receive, requested)
    return answer


def _archive(body: object, cuts: Sequence[CutOut]) -> bytes:
    """A ZIP of ``cutout-000.png`` and so on, in the answer's order, and the answer itself as ``cutouts.json``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for number, one in enumerate(cuts):
            archive.writestr(f"cutout-{number:03d}.png", one.png)
        archive.writestr("cutouts.json", orjson.dumps(body, option=orjson.OPT_INDENT_2))
    return out.getvalue()
