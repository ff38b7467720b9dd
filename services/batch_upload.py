"""Reading a batch: a form of many files, one ZIP or JSON, taken in piece by piece."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from ekiben.errors import BadInput, CallerLeft, Refusal, TooLarge, TooSlow
from models.images import MAX_BYTES
from services.archives import open_archive, too_large
from services.front import release
from services.upload import PATIENCE_S, SLOWEST_BYTES_PER_S, clean_name

FILES, ARCHIVE = "files", "archive"
ZIP_TYPES = (b"application/zip", b"application/x-zip-compressed")
MAX_FIELD = 4_000_000
"""Of all fields of a form together that are no files."""

MAX_JSON = 16_000_000
_PIECE = 1 << 20

Take = Callable[[bytes | Refusal, str | None], Awaitable[None]]
"""Gets each picture as soon as it is there: its bytes, or why it cannot be one; and its file name."""


@dataclass(slots=True)
class BatchForm:
    """``fields``: what else was in the form or the JSON."""

    fields: dict[str, Any] = field(default_factory=dict)


async def read_batch(request: Request, limit: int, take: Take, folder: Path) -> BatchForm:
    """Give every picture of a request to ``take``, in order; the rest is the answer.

    An archive lies in ``folder`` meanwhile, without a name.
    BadInput, TooLarge past ``limit`` bytes (of a ZIP's contents too), TooSlow, CallerLeft.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the request has {declared} bytes; at most {limit} are accepted (EKIBEN_BATCH_MB)")
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"application/json":
        return BatchForm(_json(b"".join([chunk async for chunk in _chunks(request, min(limit, MAX_JSON))])))
    if kind in ZIP_TYPES:
        with tempfile.TemporaryFile(dir=folder) as archive:
            async for chunk in _chunks(request, limit):
                await asyncio.to_thread(archive.write, chunk)
                release(request.scope, len(chunk))
            await _take_archive(archive, limit, take)
        return BatchForm()
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise BadInput("send a multipart form with files, a ZIP, or JSON with image_ids")
    form = _Form(options[b"boundary"], folder)
    try:
        async for chunk in _chunks(request, limit):
            before = form.held
            await asyncio.to_thread(form.feed, chunk)
            for data, filename in form.taken():
                await take(data, filename)
            # What of it is neither stored nor on disk is still in memory.
            release(request.scope, len(chunk) - (form.held - before))
        form.end()
        if form.archive is not None:
            await _take_archive(form.archive, limit, take)
        return BatchForm(dict(form.fields))
    finally:
        if form.archive is not None:
            form.archive.close()


async def _chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body, as it comes. Whoever takes it over tells the front what is in memory no more (``release``)."""
    total = 0
    loop = asyncio.get_running_loop()
    begun = loop.time()
    stream = request.stream().__aiter__()
    worked = 0.0  # the time in which it was not the caller who was waited for
    while True:
        try:
            async with asyncio.timeout_at(begun + worked + PATIENCE_S + total / SLOWEST_BYTES_PER_S):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TooSlow(f"the body came too slowly: {total} bytes in {loop.time() - begun:.0f} s") from None
        except ClientDisconnect:
            raise CallerLeft("the caller left while sending") from None
        total += len(chunk)
        if total > limit:
            raise TooLarge(f"the request has more than {limit} bytes (EKIBEN_BATCH_MB)")
        given = loop.time()
        if chunk:
            yield chunk
        worked += loop.time() - given


async def _take_archive(file: IO[bytes], limit: int, take: Take) -> None:
    entries = await asyncio.to_thread(open_archive, file)
    left = limit
    while (entry := await asyncio.to_thread(next, entries, None)) is not None:
        data, filename = entry
        # One that is too large was unpacked as far as that.
        left -= MAX_BYTES if isinstance(data, TooLarge) else len(data) if isinstance(data, bytes) else 0
        if left < 0:
            raise TooLarge(f"the archive holds more than {limit} bytes (EKIBEN_BATCH_MB)")
        await take(data, filename)


def _json(body: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(given, dict):
        raise BadInput("the body is not a JSON object")
    return given


class _Form:
    """A multipart form that is read as it comes: files leave it, an archive goes to disk, fields stay."""

    def __init__(self, boundary: bytes, folder: Path) -> None:
        self._folder = folder
        self.fields: dict[str, str] = {}
        self.archive: IO[bytes] | None = None
        self._ready: list[tuple[bytes | Refusal, str | None]] = []
        self._headers: dict[str, bytes] = {}
        self._name, self._value = b"", b""
        self._part = ""
        self._filename: str | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._field_bytes = 0
        self._ended = False
        callbacks: Any = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)

    @property
    def held(self) -> int:
        """Bytes of the form that are in memory."""
        return self._field_bytes + (sum(map(len, self._chunks)) if self._part == FILES else 0)

    def feed(self, chunk: bytes) -> None:
        try:
            for start in range(0, len(chunk), _PIECE):
                self._parser.write(chunk[start : start + _PIECE])
        except FormParserError as error:
            raise BadInput(f"the multipart body is malformed: {error}") from None

    def taken(self) -> list[tuple[bytes | Refusal, str | None]]:
        taken, self._ready = self._ready, []
        return taken

    def end(self) -> None:
        if not self._ended:
            raise BadInput("the multipart form is cut off: its closing boundary is missing")

    def _part_begin(self) -> None:
        self._headers, self._chunks, self._size = {}, [], 0
        self._name = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        kind, parameters = parse_options_header(self._headers.get("content-disposition", b""))
        if kind != b"form-data" or b"name" not in parameters:
            raise BadInput("a part of the form has no name")
        self._part = parameters[b"name"].decode(errors="replace")
        name = parameters.get(b"filename")
        self._filename = None if name is None else clean_name(name.decode(errors="replace"))
        if self._part == ARCHIVE:
            if self.archive is not None:
                raise BadInput(f"the form has more than one '{ARCHIVE}'")
            self.archive = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (read_batch closes it)
        elif self._part != FILES and name is not None:
            raise BadInput(f"the form has a file '{self._part[:80]}'; the files' field is '{FILES}'")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._part == ARCHIVE and self.archive is not None:
            self.archive.write(data[start:end])
        elif self._part == FILES:
            if self._size <= MAX_BYTES:
                self._chunks.append(data[start:end])
            else:
                self._chunks.clear()
        else:
            self._field_bytes += end - start
            if self._field_bytes > MAX_FIELD:
                raise TooLarge(f"the form's fields have more than {MAX_FIELD} bytes, with '{self._part[:80]}'")
            self._chunks.append(data[start:end])

    def _part_end(self) -> None:
        if self._part == ARCHIVE:
            return
        if self._part == FILES:
            data = b"".join(self._chunks)
            self._ready.append((data if self._size <= MAX_BYTES else too_large(), self._filename))
        elif self._part in self.fields:
            raise BadInput(f"the form has '{self._part[:80]}' twice")
        else:
            try:
                self.fields[self._part] = b"".join(self._chunks).decode()
            except UnicodeDecodeError:
                raise BadInput(f"the form's field '{self._part[:80]}' is not UTF-8 text") from None
        self._chunks = []

    def _end(self) -> None:
        self._ended = True
