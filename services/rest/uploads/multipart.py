"""multipart/form-data (RFC 7578): one parser, for forms read whole and for those read as they arrive."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ekiben.errors import BadInput, Refusal, TooLarge
from models.limits import MAX_IMAGE_BYTES
from services.archives.filenames import clean_filename
from services.archives.zip_reader import too_large
from services.rest.uploads.request_body import refuse_encoded

MAX_PARTS = 100
"""Of a form that is read whole."""

MAX_FIELD = 4_000_000
"""Bytes of all text fields together, of a form that is read as it arrives."""

_PIECE = 1 << 20
"""The parser gets so many bytes at a time: between two pieces an error of its callbacks ends it."""


class FileSink(Protocol):
    """Takes the files of one form field."""

    def begin(self, filename: str | None) -> None:
        """A file begins. BadInput where one more is not taken."""
        ...

    def write(self, data: bytes) -> None:
        """Bytes of the file that has begun."""
        ...

    def end(self) -> None:
        """The file is complete."""
        ...

    @property
    def held(self) -> int:
        """Bytes in memory that nobody has taken yet."""
        ...


class FormReader:
    """Reads a form: files go to the sink of their field, text fields to ``fields``.

    ``text_files``: fields that may come as files and are read as text. ``max_parts``: None for no bound of its own.
    ``bound_fields``: refuse text fields of more than MAX_FIELD bytes together. ``strict_filenames``: refuse file names
    that are not UTF-8, instead of repairing them.
    """

    def __init__(
        self,
        boundary: bytes,
        sinks: Mapping[str, FileSink],
        *,
        text_files: frozenset[str] = frozenset(),
        max_parts: int | None = None,
        bound_fields: bool = False,
        strict_filenames: bool = False,
    ) -> None:
        self.fields: dict[str, str] = {}
        self._sinks = sinks
        self._text_files = text_files
        self._max_parts = max_parts
        self._bound_fields = bound_fields
        self._strict_filenames = strict_filenames
        self._parts = 0
        self._headers: dict[str, bytes] = {}
        self._header_name, self._header_value = b"", b""
        self._name = ""
        self._sink: FileSink | None = None
        self._text: list[bytes] = []
        self._field_bytes = 0
        self._ended = False
        callbacks: Any = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._on_header_name,
            "on_header_value": self._on_header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:  # a boundary is too long
            raise BadInput(f"the multipart body is malformed: {error}") from None

    @property
    def held(self) -> int:
        """Bytes of the form that are in memory."""
        return self._field_bytes + sum(sink.held for sink in self._sinks.values())

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body. BadInput names what does not fit, TooLarge for too many text fields."""
        try:
            for start in range(0, len(chunk), _PIECE):
                self._parser.write(chunk[start : start + _PIECE])
        except FormParserError as error:
            raise BadInput(f"the multipart body is malformed: {error}") from None

    def end(self) -> None:
        """The body is complete. BadInput where the form is not."""
        if not self._ended:
            raise BadInput("the multipart form is cut off: its closing boundary is missing")

    def _part_begin(self) -> None:
        self._parts += 1
        if self._max_parts is not None and self._parts > self._max_parts:
            raise BadInput(f"the form has more than {self._max_parts} parts")
        self._headers, self._text, self._sink = {}, [], None

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        for header in ("content-encoding", "content-transfer-encoding"):
            refuse_encoded(self._headers.get(header, b"").decode("latin-1"), "a part of a form")
        kind, parameters = parse_options_header(self._headers.get("content-disposition", b""))
        if kind != b"form-data" or b"name" not in parameters:
            raise BadInput("a part of the form has no name")
        name = parameters.get(b"filename")
        try:
            self._name = parameters[b"name"].decode()
            errors = "strict" if self._strict_filenames else "replace"
            filename = name.decode(errors=errors) if name is not None else None
        except UnicodeDecodeError:
            raise BadInput("a name in the form is not UTF-8 text") from None
        self._sink = self._sinks.get(self._name)
        if self._sink is not None:
            self._sink.begin(clean_filename(filename) if filename is not None else None)
        elif filename is not None and self._name not in self._text_files:
            known = " or ".join(f"'{field}'" for field in self._sinks)
            raise BadInput(f"the form has a file '{self._name[:80]}'; the file's field is {known}")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(data[start:end])
            return
        self._field_bytes += end - start
        if self._bound_fields and self._field_bytes > MAX_FIELD:
            raise TooLarge(f"the form's fields have more than {MAX_FIELD} bytes, with '{self._name[:80]}'")
        self._text.append(data[start:end])

    def _part_end(self) -> None:
        if self._sink is not None:
            self._sink.end()
        elif self._name in self.fields:
            raise BadInput(f"the form has '{self._name[:80]}' twice")
        else:
            try:
                self.fields[self._name] = b"".join(self._text).decode()
            except UnicodeDecodeError:
                raise BadInput(f"the form's field '{self._name[:80]}' is not UTF-8 text") from None
        self._text = []

    def _end(self) -> None:
        self._ended = True


@dataclass(slots=True)
class Upload:
    """``data``: the file's bytes, or None when the request carries none. ``fields``: the form's text fields.

    ``is_file``: the form gave a file name, as browsers and clients do for files and not for text.
    """

    data: bytes | None = None
    filename: str | None = None
    is_file: bool = False
    fields: dict[str, str] = field(default_factory=dict)


class MemorySink:
    """One file, kept in memory."""

    def __init__(self, field_name: str) -> None:
        self._field_name = field_name
        self._chunks: list[bytes] | None = None
        self.held = 0
        self.filename: str | None = None
        self.is_file = False

    def begin(self, filename: str | None) -> None:
        """BadInput for a second file."""
        if self._chunks is not None:
            raise BadInput(f"the form has more than one '{self._field_name}'")
        self._chunks, self.filename, self.is_file = [], filename, filename is not None

    def write(self, data: bytes) -> None:
        """Append to the file."""
        if self._chunks is not None:
            self._chunks.append(data)
            self.held += len(data)

    def end(self) -> None:
        """The file is complete; nothing is left to do."""

    @property
    def data(self) -> bytes | None:
        """The file; None where there was none."""
        return None if self._chunks is None else b"".join(self._chunks)


class ImagesSink:
    """Many images, each of which leaves by ``taken`` when it is complete; one that is too large is a refusal."""

    def __init__(self) -> None:
        self._ready: list[tuple[bytes | Refusal, str | None]] = []
        self._filename: str | None = None
        self._chunks: list[bytes] = []
        self._size = 0

    def begin(self, filename: str | None) -> None:
        """One more image begins."""
        self._filename, self._chunks, self._size = filename, [], 0

    def write(self, data: bytes) -> None:
        """Append to the image; what is too large is not kept."""
        self._size += len(data)
        if self._size <= MAX_IMAGE_BYTES:
            self._chunks.append(data)
        else:
            self._chunks.clear()

    def end(self) -> None:
        """The image is complete."""
        data = b"".join(self._chunks)
        self._ready.append((data if self._size <= MAX_IMAGE_BYTES else too_large(), self._filename))
        self._chunks = []

    @property
    def held(self) -> int:
        """Of the image that is not complete yet."""
        return self._size if self._chunks else 0

    def taken(self) -> list[tuple[bytes | Refusal, str | None]]:
        """The images that are complete and were not taken before: bytes or refusal, and file name."""
        taken, self._ready = self._ready, []
        return taken


class DiskSink:
    """One file, on disk without a name in ``folder``. ``close`` removes it."""

    def __init__(self, field_name: str, folder: Path) -> None:
        self._field_name = field_name
        self._folder = folder
        self.file: IO[bytes] | None = None
        self.filename: str | None = None

    def begin(self, filename: str | None) -> None:
        """BadInput for a second file."""
        if self.file is not None:
            raise BadInput(f"the form has more than one '{self._field_name}'")
        self.filename = filename
        self.file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (the reader of the form closes it)

    def write(self, data: bytes) -> None:
        """Append to the file."""
        if self.file is not None:
            self.file.write(data)

    def end(self) -> None:
        """The file is complete; nothing is left to do."""

    @property
    def held(self) -> int:
        """Nothing: it is on disk."""
        return 0

    def close(self) -> None:
        """Remove the file, where there is one."""
        if self.file is not None:
            self.file.close()


def parse_form(body: bytes, boundary: bytes, file_field: str, text_files: frozenset[str] = frozenset()) -> Upload:
    """The file and the text fields of a multipart body. BadInput names what does not fit."""
    file = MemorySink(file_field)
    form = FormReader(boundary, {file_field: file}, text_files=text_files, max_parts=MAX_PARTS, strict_filenames=True)
    form.feed(body)
    form.end()
    return Upload(file.data, file.filename, file.is_file, form.fields)
