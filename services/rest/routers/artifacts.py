"""/v1/artifacts/{id}: files made by requests and jobs, such as masks and overlays."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from ekiben.ids import LOCAL_OWNER
from services.app_state import AppState
from services.rest.file_response import file_response

router = APIRouter(tags=["artifacts"])


@router.get(
    "/v1/artifacts/{id}",
    summary="The bytes of a mask, overlay or other file",
    response_model=None,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        302: {"description": "A presigned URL of the store, where it has them."},
        304: {"description": "The caller's copy (If-None-Match) is current."},
    },
)
async def show(request: Request, id: str) -> Response:
    app_state: AppState = request.app.state.app_state
    artifact = await asyncio.to_thread(app_state.records.artifact, LOCAL_OWNER, id)
    return await file_response(
        request, app_state.store, artifact.storage_key, artifact.mime_type, artifact.sha256, artifact.bytes
    )
