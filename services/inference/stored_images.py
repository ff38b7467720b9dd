"""Images that are stored for themselves, without an operation."""

from __future__ import annotations

import asyncio

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
    limits = context.core.pipeline.limits
    mime_type = await limits.checked(data)
    image = await asyncio.to_thread(decode, data)
    limits.check_size(image.width, image.height)
    recorder, records = context.core.pipeline.recorder, context.core.pipeline.records
    record = recorder.begin(data, mime_type, source.filename, context.owner)
    ids = await recorder.finish(record, image.info, [], None, kept=True)
    return await asyncio.to_thread(records.image, context.owner, str(ids.image))
