"""POST /v1/batches: one operation on many images, as one job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from ekiben.errors import BadInput, Refusal
from services.app_state import AppState
from services.inference import operations
from services.inference.context import RequestContext
from services.jobs.submission import MAX_ITEMS, JobTerms, NewItem, failed_item
from services.rest.async_requests import AsyncRequestOptions, accepted, idempotency_key
from services.rest.openapi import IDEMPOTENCY
from services.rest.query_options import gather
from services.rest.uploads.batch_upload import read_batch
from services.schemas.inference import OperationName
from services.schemas.jobs import AcceptedBody
from services.schemas.validation import check, parse_json

router = APIRouter(tags=["jobs"])


class BatchOptions(AsyncRequestOptions):
    """The options of a batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operation: OperationName = Field(description="The operation that is run on every image.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="JSON: the options of the operation, as its own route takes them; prompts as a list.",
        examples=[{"top_k": 3}],
    )
    store: bool = Field(
        default=True, description="false: no predictions and no files; the results are in the job until it is removed."
    )
    items_at_once: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Images of this batch that are worked on at once, on all machines.",
    )
    image_ids: list[str] = Field(
        default_factory=list, description="JSON: stored images instead of files.", max_length=MAX_ITEMS
    )

    def terms(self, request: Request) -> JobTerms:
        """The terms of the job, with ``items_at_once``."""
        return replace(super().terms(request), items_at_once=self.items_at_once)


_FORM = {
    "type": "object",
    "required": ["operation"],
    "properties": {
        "files": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "The images: the field is repeated.",
        },
        "archive": {"type": "string", "format": "binary", "description": "Or one ZIP of them."},
        **{
            name: {"type": "string", "description": info.get("description", "")}
            for name, info in BatchOptions.model_json_schema()["properties"].items()
        },
    },
}


@router.post(
    "/v1/batches",
    summary="Ask the same of many images, as one job",
    status_code=202,
    response_model=None,
    responses={202: {"model": AcceptedBody}},
    openapi_extra={
        "parameters": [IDEMPOTENCY],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _FORM},
                "application/json": {"schema": BatchOptions.model_json_schema()},
                "application/zip": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    },
)
async def submit(request: Request) -> Response:
    app_state: AppState = request.app.state.app_state
    jobs = app_state.jobs
    items: list[NewItem] = []
    idempotency_key(request)  # a wrong one is refused before anything is stored

    async def take(data: bytes | Refusal, filename: str | None) -> None:
        if len(items) >= MAX_ITEMS:
            raise BadInput(f"a batch has at most {MAX_ITEMS} images")
        items.append(failed_item(filename, data) if isinstance(data, Refusal) else await jobs.new_item(data, filename))

    try:
        form = await read_batch(request, app_state.settings.batch_mb * 1_000_000, take, app_state.settings.home)
        options = check(BatchOptions, _given(gather(request.query_params), form.fields))
        if items and options.image_ids:
            raise BadInput("send files or image_ids, not both")
        operation = operations.operation(options.operation)
        requested = operations.read_parameters(operation, options.parameters)
        if {"image_id", "store"} & requested.model_fields_set:
            raise BadInput("image_ids and store belong to the batch, not into its parameters")
        if options.image_ids:
            items = await jobs.stored_items(options.image_ids)
    except BaseException:
        await jobs.discard(items)
        raise
    job, created = await jobs.submit(
        RequestContext(app_state.inference),
        "batch",
        options.operation,
        requested,
        items,
        options.terms(request),
        store=options.store,
    )
    return accepted(job, created)


def _given(query: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Query and form fields, JSON fields parsed. BadInput for a name given twice."""
    for name in query:
        if name in fields:
            raise BadInput(f"{name[:80]} is given twice")
    given = {**query, **fields}
    for name in ("parameters", "image_ids"):
        if isinstance(given.get(name), str):
            given[name] = parse_json(name, given[name])
    return given
