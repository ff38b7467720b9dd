"""POST /classify and /segment: the Bento endpoints, as BentoML's clients send them (a form with the file ``image``).

BentoML's own handlers would fetch an address that stands in place of the file, have no limit on a body, word errors as
lists and go on computing for callers who left. So the requests of its clients are answered here; the gateway's
``@bentoml.api`` methods are what /schema.json describes and what a program in the same process calls.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ekiben.errors import BadInput
from services.app_state import AppState
from services.inference.pipeline import ImageSource
from services.rest.disconnect import cancel_on_disconnect
from services.rest.openapi import openapi
from services.rest.query_options import parse
from services.rest.responses import json_response
from services.rest.routers.masks import ask_auto_masks, ask_cutouts, ask_masks
from services.rest.uploads.image_upload import read_upload
from services.rest.uploads.multipart import Upload
from services.schemas.inference import ClassifyBody, ClassifyOptions, SegmentBody, SegmentOptions
from services.schemas.masks import AutoMasksBody, AutoMasksOptions, CutoutsBody, CutoutsOptions, MasksBody, MasksOptions

router = APIRouter(tags=["bento"])

_FIELD = "image"


@router.post(
    "/classify",
    summary="Bento endpoint: as /v1/classify",
    response_model=None,
    responses={200: {"model": ClassifyBody}},
    openapi_extra=openapi(ClassifyOptions, file_field=_FIELD, raw=()),
)
async def classify(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    upload = await _form(request)
    options = parse(ClassifyOptions, request.query_params, upload.fields)
    requested = app_state.vision.classify(
        ImageSource(upload.data, upload.filename),
        model=options.model,
        version=options.version,
        top_k=options.top_k,
        store=options.store,
    )
    return json_response((await cancel_on_disconnect(request.receive, requested)).body)


@router.post(
    "/segment",
    summary="Bento endpoint: as /v1/segment",
    response_model=None,
    responses={200: {"model": SegmentBody}},
    openapi_extra=openapi(SegmentOptions, file_field=_FIELD, raw=()),
)
async def segment(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    upload = await _form(request)
    options = parse(SegmentOptions, request.query_params, upload.fields)
    requested = app_state.vision.segment(
        ImageSource(upload.data, upload.filename),
        model=options.model,
        version=options.version,
        flips=options.flips,
        probability=options.wants_probability,
        store=options.store,
    )
    return json_response((await cancel_on_disconnect(request.receive, requested)).body)


@router.post(
    "/masks",
    summary="Bento endpoint: as /v1/masks",
    response_model=None,
    responses={200: {"model": MasksBody}},
    openapi_extra=openapi(MasksOptions, file_field=_FIELD, raw=()),
)
async def masks(request: Request) -> Response:
    return await ask_masks(request, await _form(request, texts=("prompts",)))


@router.post(
    "/auto_masks",
    summary="Bento endpoint: as /v1/masks/auto",
    response_model=None,
    responses={200: {"model": AutoMasksBody}},
    openapi_extra=openapi(AutoMasksOptions, file_field=_FIELD, raw=()),
)
async def auto_masks(request: Request) -> Response:
    return await ask_auto_masks(request, await _form(request))


@router.post(
    "/cutouts",
    summary="Bento endpoint: as /v1/cutouts",
    response_model=None,
    responses={200: {"model": CutoutsBody}},
    openapi_extra=openapi(CutoutsOptions, file_field=_FIELD, raw=()),
)
async def cutouts(request: Request) -> Response:
    upload = await _form(request, texts=("prompts",))
    body, _ = await ask_cutouts(request, upload, parse(CutoutsOptions, request.query_params, upload.fields))
    return json_response(body)


async def _form(request: Request, texts: tuple[str, ...] = ()) -> Upload:
    """``texts``: fields that hold JSON."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise BadInput(f"send a multipart form with the image as file '{_FIELD}'")
    upload = await read_upload(request, file_field=_FIELD)
    if upload.data is None:
        raise BadInput(f"the form has no '{_FIELD}'")
    if not upload.is_file:
        raise BadInput(f"'{_FIELD}' must be a file, not text or an address")
    # BentoML's client sends a parameter that was not given as JSON's null.
    upload.fields = {
        name: text if name in texts else text.strip('"') for name, text in upload.fields.items() if text != "null"
    }
    return upload
