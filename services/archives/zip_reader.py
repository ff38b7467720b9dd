"""ZIP archives of images, read entry by entry. Sizes that an archive states are not trusted."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from ekiben.errors import BadInput, Refusal, TooLarge
from models.limits import MAX_IMAGE_BYTES
from services.archives.filenames import clean_filename

MAX_DIRECTORY = 64_000_000
"""Bytes of an archive's list of entries, which is read at once: some 400,000 of them."""

# Only these are read: zipfile cannot bound what the other methods unpack per byte read.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    IndexError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    OSError,
)

Entry = tuple[bytes | Refusal, str | None]
"""An entry's bytes, or why it cannot be read; and its file name."""


def open_archive(file: IO[bytes]) -> Iterator[Entry]:
    """The files of an archive, sorted by name, without hidden ones and folders. BadInput for what is no ZIP."""
    if directory_bytes(file) > MAX_DIRECTORY:
        raise BadInput("the archive has too many entries")
    file.seek(0)
    try:
        archive = zipfile.ZipFile(file)
        entries = sorted(archive.infolist(), key=lambda info: info.filename)
    except DAMAGED:
        raise BadInput("the archive is no ZIP file, or a damaged one") from None
    return _read(archive, entries)


def _read(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> Iterator[Entry]:
    for info in entries:
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if not info.filename or info.is_dir() or path.name.startswith(".") or "__MACOSX" in path.parts:
            continue
        name = clean_filename(info.filename)
        if info.compress_type not in METHODS:
            yield BadInput("this entry of the archive is neither stored nor deflated"), name
            continue
        try:
            with archive.open(info) as entry:
                # Bounded by what comes out, not by the size that the archive states.
                data = entry.read(MAX_IMAGE_BYTES + 1)
        except DAMAGED as error:
            yield BadInput(f"this entry of the archive cannot be read: {error}"[:200]), name
            continue
        yield (data if len(data) <= MAX_IMAGE_BYTES else too_large(), name)


def too_large() -> TooLarge:
    """The refusal of one image among many."""
    return TooLarge(f"the image has more than {MAX_IMAGE_BYTES} bytes")


def directory_bytes(file: IO[bytes]) -> int:
    """The size in bytes of the list of entries, as the end of the archive states it; 0 where there is no such record.

    PKWARE's APPNOTE.TXT, 4.3.16 (end of central directory), 4.3.14 and 4.3.15 (ZIP64).
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 65_557 - 20))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return 0
    (listed,) = struct.unpack_from("<L", tail, end + 12)
    locator = tail[end - 20 : end] if end >= 20 else b""
    if listed != 0xFFFF_FFFF or not locator.startswith(b"PK\x06\x07"):
        return int(listed)
    (position,) = struct.unpack_from("<Q", locator, 8)
    if position + 56 > size:
        return 0
    file.seek(position)
    return int(struct.unpack_from("<Q", file.read(56), 40)[0])
