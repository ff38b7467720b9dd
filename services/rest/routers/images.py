"""/v1/images: images that are stored for themselves or came with a prediction."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from db.tables import Image
from ekiben.ids import LOCAL_OWNER
from services.app_state import AppState
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.inference.stored_images import store_image
from services.rest.file_response import file_response
from services.rest.openapi import openapi
from services.rest.pagination import Limit, Page
from services.rest.responses import json_response, page_response
from services.rest.uploads.image_upload import read_upload
from services.schemas.body import PageBody
from services.schemas.records import ImageBody

router = APIRouter(tags=["images"])


class _NoOptions(BaseModel):
    pass


@router.post(
    "/v1/images",
    summary="Store an image",
    status_code=201,
    response_model=None,
    responses={201: {"model": ImageBody}},
    openapi_extra=openapi(_NoOptions),
)
async def store(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    upload = await read_upload(request, limit=app_state.inference.pipeline.limits.max_bytes)
    image = await store_image(RequestContext(app_state.inference), ImageSource(upload.data, upload.filename))
    return json_response(image_body(image), 201, {"Location": f"/v1/images/{image.id}"})


@router.get(
    "/v1/images",
    summary="Stored images, newest first",
    response_model=None,
    responses={200: {"model": PageBody[ImageBody]}},
)
async def find(request: Request, page: Page = 1, limit: Limit = 50) -> Response:
    app_state: AppState = request.app.state.app_state
    found = await asyncio.to_thread(app_state.records.images, LOCAL_OWNER, page, limit)
    return page_response([image_body(row) for row in found.items], found.total, page, limit)


@router.get("/v1/images/{id}", summary="Facts of an image", response_model=None, responses={200: {"model": ImageBody}})
async def show(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    return json_response(image_body(await asyncio.to_thread(app_state.records.image, LOCAL_OWNER, id)))


@router.get(
    "/v1/images/{id}/content",
    summary="The bytes as they were uploaded",
    response_model=None,
    responses={200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def content(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    image = await asyncio.to_thread(app_state.records.image, LOCAL_OWNER, id)
    return await file_response(request, app_state.store, image.storage_key, image.mime_type, image.sha256, image.bytes)


@router.delete("/v1/images/{id}", summary="Remove an image", status_code=204, response_model=None)
async def remove(
    request: Request,
    id: str,
    cascade: bool = Query(False, description="Remove the predictions that refer to it too; 409 otherwise."),
) -> Response:
    app_state: AppState = request.app.state.app_state
    keys = await asyncio.to_thread(app_state.records.delete_image, LOCAL_OWNER, id, cascade)
    await app_state.recorder.delete(keys)
    return Response(status_code=204)


def image_body(image: Image) -> ImageBody:
    """A stored image as responses show it."""
    return ImageBody(
        id=image.id,
        filename=image.filename,
        mime_type=image.mime_type,
        bytes=image.bytes,
        width=image.width,
        height=image.height,
        sha256=image.sha256,
        url=f"/v1/images/{image.id}/content",
        created_at=image.created_at,
    )
