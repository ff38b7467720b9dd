"""A form that is read while it comes: nothing of a large upload is held in memory."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from ekiben.errors import BadInput, CallerLeft, Refusal, TooLarge, TooSlow
from models.limits import MAX_IMAGE_BYTES
from services.archives import too_large
from services.front import release
from services.upload import PATIENCE_S, SLOWEST_BYTES_PER_S, clean_name

MAX_FIELD = 4_000_000
"""Of all fields of a form together that are no files."""

MAX_JSON = 16_000_000
ZIP_TYPES = (b"application/zip", b"application/x-zip-compressed")
_PIECE = 1 << 20


async def chunks(request: Request, limit: int, setting: str) -> AsyncIterator[bytes]:
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
            raise TooLarge(f"the request has more than {limit} bytes ({setting})")
        given = loop.time()
        if chunk:
            yield chunk
        worked += loop.time() - given


@dataclass(slots=True)
class ArchiveForm:
    """An upload of one archive. ``archive``: on disk, without a name; whoever read the form closes it."""

    archive: IO[bytes] | None = None
    filename: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


async def read_archive(request: Request, limit: int, folder: Path, setting: str) -> ArchiveForm:
    """The archive of a request, which lies in ``folder``: multipart field ``file``, or the raw body; or JSON alone.

    BadInput, TooLarge past ``limit`` bytes (``setting`` is what sets it), TooSlow, CallerLeft.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit + MAX_FIELD:
        raise TooLarge(f"the request has {declared} bytes; at most {limit} are accepted ({setting})")
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
    form = Form(options[b"boundary"], folder, files="", archive="file")
    try:
        async for chunk in chunks(request, limit, setting):
            before = form.held
            await asyncio.to_thread(form.feed, chunk)
            release(request.scope, len(chunk) - (form.held - before))
        form.end()
    except BaseException:
        if form.archive is not None:
            form.archive.close()
        raise
    return ArchiveForm(form.archive, form.archive_name, dict(form.fields))


async def read_json_body(request: Request, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object that the body is. BadInput, TooLarge."""
    return read_json(b"".join([chunk async for chunk in chunks(request, limit, "a body of JSON")]))


def read_json(body: bytes) -> dict[str, Any]:
    """The object in a body. BadInput."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(given, dict):
        raise BadInput("the body is not a JSON object")
    if b"\\u0000" in body and _holds_nul(given):
        raise BadInput("the body holds a NUL character")
    return given


def _holds_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_nul(each) for pair in value.items() for each in pair)
    if isinstance(value, list):
        return any(_holds_nul(each) for each in value)
    return isinstance(value, str) and "\0" in value


class Form:
    """A multipart form that is read as it comes: files leave it, an archive goes to disk, fields stay.

    ``files`` and ``archive``: the names of their fields; "" where there is none.
    """

    def __init__(self, boundary: bytes, folder: Path, *, files: str, archive: str) -> None:
        self._folder = folder
        self._files_field = files
        self._archive_field = archive
        self.fields: dict[str, str] = {}
        self.archive: IO[bytes] | None = None
        self.archive_name: str | None = None
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
        return self._field_bytes + (sum(map(len, self._chunks)) if self._part == self._files_field else 0)

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
        if self._part == self._archive_field:
            if self.archive is not None:
                raise BadInput(f"the form has more than one '{self._archive_field}'")
            self.archive_name = self._filename
            self.archive = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (whoever reads the form closes it)
        elif self._part != self._files_field and name is not None:
            known = (
                f"the files' field is '{self._files_field}'"
                if self._files_field
                else (f"the file's field is '{self._archive_field}'")
            )
            raise BadInput(f"the form has a file '{self._part[:80]}'; {known}")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._part == self._archive_field and self.archive is not None:
            self.archive.write(data[start:end])
        elif self._part == self._files_field:
            if self._size <= MAX_IMAGE_BYTES:
                self._chunks.append(data[start:end])
            else:
                self._chunks.clear()
        else:
            self._field_bytes += end - start
            if self._field_bytes > MAX_FIELD:
                raise TooLarge(f"the form's fields have more than {MAX_FIELD} bytes, with '{self._part[:80]}'")
            self._chunks.append(data[start:end])

    def _part_end(self) -> None:
        if self._part == self._archive_field:
            return
        if self._part == self._files_field:
            data = b"".join(self._chunks)
            self._ready.append((data if self._size <= MAX_IMAGE_BYTES else too_large(), self._filename))
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
