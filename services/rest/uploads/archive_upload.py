"""Reading an archive: a form with one large file, a ZIP or JSON; nothing of a large file is held in memory."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastapi import Request
from python_multipart.multipart import parse_options_header

from ekiben.errors import BadInput
from services.rest.middleware import release
from services.rest.uploads.multipart import MAX_FIELD, DiskSink, FormReader
from services.rest.uploads.request_body import chunks, read_json_body

ZIP_TYPES = (b"application/zip", b"application/x-zip-compressed")


@dataclass(slots=True)
class ArchiveForm:
    """An upload of one archive. ``archive``: on disk, without a name; the reader of the form closes it."""

    archive: IO[bytes] | None = None
    filename: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


async def read_archive(request: Request, limit: int, folder: Path, setting: str) -> ArchiveForm:
    """The archive of a request, which lies in ``folder``: multipart field ``file``, or the raw body; or JSON alone.

    BadInput, TooLarge past ``limit`` bytes (``setting`` is what sets it), TooSlow, CallerLeft.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"application/json":
        return ArchiveForm(fields=await read_json_body(request))
    if kind in ZIP_TYPES:
        archive = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (see ArchiveForm)
        try:
            async for chunk in chunks(request, limit, setting):
                await asyncio.to_thread(archive.write, chunk)
                release(request.scope, len(chunk))
        except BaseException:
            archive.close()
            raise
        return ArchiveForm(archive)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise BadInput("send a multipart form with file and name, a ZIP, or JSON")
    archive_sink = DiskSink("file", folder)
    form = FormReader(options[b"boundary"], {"file": archive_sink}, bound_fields=True)
    try:
        async for chunk in chunks(request, limit, setting, MAX_FIELD):
            before = form.held
            await asyncio.to_thread(form.feed, chunk)
            release(request.scope, len(chunk) - (form.held - before))
        form.end()
    except BaseException:
        archive_sink.close()
        raise
    return ArchiveForm(archive_sink.file, archive_sink.filename, dict(form.fields))
