"""Images that are stored for themselves, without an operation."""

from __future__ import annotations

import asyncio
import time

from db.tables import Image
from ekiben.errors import BadInput
from models.images import decode
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource


async def store_image(context: RequestContext, source: ImageSource) -> Image:
    """Store an image; it stays until it is deleted. It is decoded once, to be sure that it can be."""
    if source.data is None:
        raise BadInput("send an image: a multipart field 'file' or the raw bytes as body")
    data = source.data
    pipeline = context.core.pipeline
    mime_type = await pipeline.limits.checked(data)
    limit_s = context.core.timeout_s
    deadline = time.monotonic() + (limit_s if context.timeout_s is None else min(limit_s, context.timeout_s))
    info = await pipeline.decoding.run(lambda: decode(data).info, data, deadline)
    pipeline.limits.check_size(info.width, info.height)
    recorder, records = pipeline.recorder, pipeline.records
    record = recorder.begin(data, mime_type, source.filename, context.owner)
    ids = await recorder.finish(record, info, [], None, kept=True)
    return await asyncio.to_thread(records.image, context.owner, str(ids.image))
