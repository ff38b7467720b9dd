"""PNG files by their chunks: metadata never decides over pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from ekiben.errors import BadImage

GREY_WITH_ALPHA: Final = 4
"""A colour type of ``header``."""

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PIXELS: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"})
_ORIENTATION: Final = b"eXIf"
_SIGNIFICANT_BITS: Final = b"sBIT"
_MAX_CHUNKS: Final = 10_000
_CHUNK_BYTES: Final = 1024  # besides, a chunk for so many bytes of the file: writers put 8 kB of pixels into one


def without_metadata(data: bytes) -> bytes:
    """The chunks that pixels are made of, and a sound eXIf chunk, which says how the image is turned.

    Text, XMP, colour profiles and unknown ancillary chunks are left out, whatever their size and checksum.
    """
    kept = [SIGNATURE]
    for kind, start, end in _chunks(data):
        if kind in _PIXELS or (kind == _ORIENTATION and _sound(data, start, end)):
            kept.append(data[start:end])
        if kind == b"IEND":
            break
    return b"".join(kept)


def check(data: bytes) -> None:
    """BadImage for a file that does not begin with its one header, or of very many chunks.

    Pillow takes the last header, wherever it stands, and needs seconds for a million empty chunks.
    """
    most = _MAX_CHUNKS + len(data) // _CHUNK_BYTES
    for number, (kind, _, _) in enumerate(_chunks(data)):
        if (kind == b"IHDR") != (number == 0):
            raise BadImage("the image/png is damaged: it does not begin with its header, or has several")
        if number > most:
            raise BadImage(f"the PNG has more than {most} chunks")
        if kind == b"IEND":
            return


def significant_bits(data: bytes) -> int | None:
    """The largest of the significant bits of the channels that sBIT names before the pixels; None without the chunk."""
    for kind, start, end in _chunks(data):
        if kind == b"IDAT":
            return None
        if kind == _SIGNIFICANT_BITS and _sound(data, start, end) and end - start > 12:
            return max(data[start + 8 : end - 4])
    return None


def header(data: bytes) -> tuple[int, int]:
    """Bits of a channel and colour type (0 grey, 2 RGB, 3 palette, GREY_WITH_ALPHA, 6 RGB with alpha)."""
    return data[24], data[25]


def as_rgba(data: bytes) -> bytes:
    """The file of 16-bit grey with alpha as one of 8-bit RGBA: both have four bytes a pixel, filtered alike. Red and
    green are then the high and low byte of grey, blue and alpha those of alpha."""
    kept = [SIGNATURE]
    for kind, start, end in _chunks(data):
        if kind == b"IHDR":
            body = b"IHDR" + data[start + 8 : start + 16] + b"\x08\x06" + data[start + 18 : end - 4]
            kept.append(data[start : start + 4] + body + struct.pack(">I", zlib.crc32(body)))
        elif kind in (b"IDAT", b"IEND"):
            kept.append(data[start:end])
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, first byte and end of each chunk, as far as ``data`` reaches."""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        yield data[position + 4 : position + 8], position, min(end, len(data))
        position = end


def _sound(data: bytes, start: int, end: int) -> bool:
    return zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
