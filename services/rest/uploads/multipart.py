"""multipart/form-data: parsed whole, or while it comes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ekiben.errors import BadInput, Refusal, TooLarge
from models.limits import MAX_IMAGE_BYTES
from services.archives.filenames import clean_filename
from services.archives.zip_reader import too_large

MAX_FIELD = 4_000_000
"""Of all fields of a form together that are no files."""


_PIECE = 1 << 20


class StreamedForm:
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
        self._filename = None if name is None else clean_filename(name.decode(errors="replace"))
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


MAX_PARTS = 100


@dataclass(slots=True)
class Upload:
    """``data``: the file's bytes, or None when the request carries none. ``fields``: the form's text fields.

    ``is_file``: the form said a file name, as browsers and clients do for files and not for text.
    """

    data: bytes | None = None
    filename: str | None = None
    is_file: bool = False
    fields: dict[str, str] = field(default_factory=dict)


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
        if len(parts) >= MAX_PARTS:
            raise BadInput(f"the form has more than {MAX_PARTS} parts")

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
            upload.data, upload.filename, upload.is_file = data, clean_filename(filename), filename is not None
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
