"""A request that becomes a job: one image, an operation and its options, whichever door it came through."""

from __future__ import annotations

from db.tables import Job
from ekiben.errors import BadInput
from services.app_state import AppState
from services.inference.pipeline import ImageSource
from services.jobs.service import JobTerms
from services.schemas.inference import InferenceOptions


async def submit_request(
    app_state: AppState, operation: str, options: InferenceOptions, source: ImageSource, terms: JobTerms
) -> tuple[Job, bool]:
    """(The job, True), or the first with this idempotency key: (it, False). BadInput for what is no image."""
    if source.data is not None and source.image_id is not None:
        raise BadInput("send a file or image_id, not both")
    if source.image_id is not None:
        items = await app_state.jobs.stored_items([source.image_id])
    elif source.data is not None:
        app_state.jobs.check_image(source.data, operation)
        items = [await app_state.jobs.new_item(source.data, source.filename)]
    else:
        raise BadInput("send an image: a multipart field 'file', the raw bytes as body, or image_id")
    return await app_state.jobs.submit(app_state, "request", operation, options, items, terms, store=options.store)
