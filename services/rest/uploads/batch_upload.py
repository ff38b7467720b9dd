"""Reading a batch: a form of many files, one ZIP or JSON, taken in piece by piece."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastapi import Request
from python_multipart.multipart import parse_options_header

from ekiben.errors import BadInput, Refusal, TooLarge
from models.limits import MAX_IMAGE_BYTES
from services.archives.zip_reader import open_archive
from services.rest.middleware import release
from services.rest.uploads.archive_upload import ZIP_TYPES
from services.rest.uploads.multipart import DiskSink, FormReader, ImagesSink
from services.rest.uploads.request_body import MAX_JSON, chunks, parse_json_object, read_body

FILES, ARCHIVE = "files", "archive"
SETTING = "EKIBEN_BATCH_MB"

Take = Callable[[bytes | Refusal, str | None], Awaitable[None]]
"""Gets each image as soon as it is there: its bytes, or why it cannot be one; and its file name."""


@dataclass(slots=True)
class BatchForm:
    """``fields``: what else was in the form or the JSON."""

    fields: dict[str, Any] = field(default_factory=dict)


async def read_batch(request: Request, limit: int, take: Take, folder: Path) -> BatchForm:
    """Give every image of a request to ``take``, in order; the rest is the answer.

    An archive lies in ``folder`` meanwhile, without a name.
    BadInput, TooLarge past ``limit`` bytes (of a ZIP's contents too), TooSlow, CallerLeft.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"application/json":
        return BatchForm(await parse_json_object(await read_body(request, min(limit, MAX_JSON), setting=SETTING)))
    if kind in ZIP_TYPES:
        with tempfile.TemporaryFile(dir=folder) as archive:
            async for chunk in chunks(request, limit, SETTING):
                await asyncio.to_thread(archive.write, chunk)
                release(request.scope, len(chunk))
            await _take_archive(archive, limit, take)
        return BatchForm()
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise BadInput("send a multipart form with files, a ZIP, or JSON with image_ids")
    images, archive_sink = ImagesSink(), DiskSink(ARCHIVE, folder)
    form = FormReader(options[b"boundary"], {FILES: images, ARCHIVE: archive_sink}, bound_fields=True)
    try:
        async for chunk in chunks(request, limit, SETTING):
            before = form.held
            await asyncio.to_thread(form.feed, chunk)
            for data, filename in images.taken():
                await take(data, filename)
            # What of it is neither stored nor on disk is still in memory.
            release(request.scope, len(chunk) - (form.held - before))
        form.end()
        if archive_sink.file is not None:
            await _take_archive(archive_sink.file, limit, take)
        return BatchForm(dict(form.fields))
    finally:
        archive_sink.close()


async def _take_archive(file: IO[bytes], limit: int, take: Take) -> None:
    entries = await asyncio.to_thread(open_archive, file)
    left = limit
    while (entry := await asyncio.to_thread(next, entries, None)) is not None:
        data, filename = entry
        # One that is too large was unpacked as far as that.
        left -= MAX_IMAGE_BYTES if isinstance(data, TooLarge) else len(data) if isinstance(data, bytes) else 0
        if left < 0:
            raise TooLarge(f"the archive holds more than {limit} bytes ({SETTING})")
        await take(data, filename)
