"""Reading a request's body: a raw image or a multipart form, bounded, kept in memory once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ekiben.errors import BadInput, CallerLeft, TooLarge, TooSlow
from models.images import sniff
from models.limits import MAX_IMAGE_BYTES

FORM_OVERHEAD = 64 * 1024
"""Bytes that boundaries, part headers and text fields of a form may add to the file."""
_MAX_PARTS = 100
PATIENCE_S = 30.0
SLOWEST_BYTES_PER_S = 65_536
"""A body has PATIENCE_S, and a second more for each so many bytes that came: memory is not held for those who stall."""
_PARSE_IN_THREAD = 256 * 1024


@dataclass(slots=True)
class Upload:
    """``data``: the file's bytes, or None when the request carries none. ``fields``: the form's text fields.

    ``is_file``: the form said a file name, as browsers and clients do for files and not for text.
    """

    data: bytes | None = None
    filename: str | None = None
    is_file: bool = False
    fields: dict[str, str] = field(default_factory=dict)


async def read_body(request: Request, limit: int, overhead: int = 0) -> bytes:
    """The whole body, of at most ``limit`` bytes and ``overhead`` around them.

    TooLarge as soon as it is known to pass them, TooSlow for a body that stalls or drips, CallerLeft for a caller who
    goes.
    """
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit + overhead:
        raise TooLarge(f"the request has {declared} bytes; at most {limit} are accepted")
    chunks: list[bytes] = []
    total = 0
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with asyncio.timeout_at(begun + PATIENCE_S) as patience:
            async for chunk in request.stream():
                total += len(chunk)
                if total > limit + overhead:
                    raise TooLarge(f"the request has more than {limit} bytes")
                chunks.append(chunk)
                patience.reschedule(begun + PATIENCE_S + total / SLOWEST_BYTES_PER_S)
    except TimeoutError:
        raise TooSlow(f"the body came too slowly: {total} bytes in {loop.time() - begun:.0f} s") from None
    except ClientDisconnect:
        raise CallerLeft("the caller left while sending") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


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
        return Upload(fields=_urlencoded(data))
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
            data.decode("ascii"), keep_blank_values=True, strict_parsing=bool(data), max_num_fields=_MAX_PARTS
        )
    except ValueError:
        raise BadInput("the body is neither an image nor a form") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadInput("the form has a field twice")
    return fields


def parse_form(body: bytes, boundary: bytes, file_field: str, text_files: frozenset[str] = frozenset()) -> Upload:
    """The file and the text fields of a multipart body. BadInput names what does not fit."""
    parts: list[tuple[dict[str, bytes], bytes]] = []
    headers: dict[str, bytes] = {}
    name: list[bytes] = []
    value: list[bytes] = []
    chunks: list[bytes] = []
    ended: list[bool] = []

    def begin() -> None:
        headers.clear()
        chunks.clear()
        if len(parts) >= _MAX_PARTS:
            raise BadInput(f"the form has more than {_MAX_PARTS} parts")

    def header_end() -> None:
        headers[b"".join(name).decode("latin-1").lower()] = b"".join(value)
        name.clear()
        value.clear()

    callbacks: Any = {
        "on_part_begin": begin,
        "on_header_field": lambda data, start, end: name.append(data[start:end]),
        "on_header_value": lambda data, start, end: value.append(data[start:end]),
        "on_header_end": header_end,
        "on_part_data": lambda data, start, end: chunks.append(data[start:end]),
        "on_part_end": lambda: parts.append((dict(headers), b"".join(chunks))),
        "on_end": lambda: ended.append(True),
    }
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BadInput(f"the multipart body is malformed: {error}") from None
    if not ended:
        raise BadInput("the multipart form is cut off: its closing boundary is missing")
    return _gather(parts, file_field, text_files)


def clean_name(filename: str | None) -> str | None:
    """The last part of a file name, printable characters only, at most 255; None when nothing is left."""
    if filename is None:
        return None
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:255] or None


def _gather(parts: list[tuple[dict[str, bytes], bytes]], file_field: str, text_files: frozenset[str]) -> Upload:
    upload = Upload()
    for headers, data in parts:
        kind, parameters = parse_options_header(headers.get("content-disposition", b""))
        if kind != b"form-data" or b"name" not in parameters:
            raise BadInput("a part of the form has no name")
        try:
            name = parameters[b"name"].decode()
            filename = parameters[b"filename"].decode() if b"filename" in parameters else None
        except UnicodeDecodeError:
            raise BadInput("a name in the form is not UTF-8 text") from None
        if name == file_field:
            if upload.data is not None:
                raise BadInput(f"the form has more than one '{file_field}'")
            upload.data, upload.filename, upload.is_file = data, clean_name(filename), filename is not None
        elif filename is not None and name not in text_files:
            raise BadInput(f"the form has a file '{name}'; the file's field is '{file_field}'")
        else:
            if name in upload.fields:
                raise BadInput(f"the form has '{name[:80]}' twice")
            try:
                upload.fields[name] = data.decode()
            except UnicodeDecodeError:
                raise BadInput(f"the form's field '{name}' is not UTF-8 text") from None
    return upload
