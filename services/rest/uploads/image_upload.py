"""Reading a request's body: a raw image or a multipart form, bounded, kept in memory once."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from ekiben.errors import BadInput, TooLarge
from models.image_formats.sniffing import sniff
from models.limits import MAX_IMAGE_BYTES
from services.rest.uploads.multipart import MAX_FIELD, MAX_PARTS, Upload, parse_form
from services.rest.uploads.request_body import read_body

FORM_OVERHEAD = 64 * 1024
"""Bytes that boundaries, part headers and text fields of a form may add to the file."""


_PARSE_IN_THREAD = 256 * 1024
_FIELDS_IN_THREAD = 64_000


async def read_upload(
    request: Request,
    *,
    file_field: str = "file",
    limit: int = MAX_IMAGE_BYTES,
    text_files: frozenset[str] = frozenset(),
) -> Upload:
    """The file of a request: multipart field ``file_field``, else the raw body; None where there is neither.

    ``text_files``: fields that may come as files too (``-F labels=@labels.txt``) and are read as text.
    """
    content_type = request.headers.get("content-type", "")
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary")
        if not boundary:
            raise BadInput("multipart/form-data without a boundary")
        body = await read_body(request, limit, FORM_OVERHEAD)
        if len(body) < _PARSE_IN_THREAD:
            return parse_form(body, boundary, file_field, text_files)
        # The parser is Python and linear in boundaries: a hostile body would hold up the loop for seconds.
        return await asyncio.to_thread(parse_form, body, boundary, file_field, text_files)
    data = await read_body(request, limit)
    if kind == b"application/x-www-form-urlencoded" and not _looks_like_an_image(data):
        # An image may come under this type too: curl's --data-binary sends it when no other is given.
        if len(data) > MAX_FIELD:
            raise TooLarge(f"the form has more than {MAX_FIELD} bytes, and no file")
        return Upload(
            fields=await asyncio.to_thread(_urlencoded, data) if len(data) > _FIELDS_IN_THREAD else _urlencoded(data)
        )
    return Upload(data=data or None)


def _looks_like_an_image(data: bytes) -> bool:
    try:
        sniff(data)
    except BadInput:
        return False
    return True


def _urlencoded(data: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            data.decode("ascii"), keep_blank_values=True, strict_parsing=bool(data), max_num_fields=MAX_PARTS
        )
    except ValueError:
        raise BadInput("the body is neither an image nor a form") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadInput("the form has a field twice")
    return fields
