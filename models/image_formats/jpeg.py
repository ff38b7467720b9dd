"""JPEG files by their markers: scans are counted where scans are, and a missing end is told from missing pixels."""

from __future__ import annotations

import io
import re
from typing import Final

from PIL import Image

from ekiben.errors import BadImage, TooLarge
from models.limits import MAX_JPEG_SCANS, MAX_PIXELS

_START_OF_IMAGE: Final = b"\xff\xd8"
END_OF_IMAGE: Final = b"\xff\xd9"
_START_OF_SCAN: Final = 0xDA
PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
ALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM and restart markers: no length follows
# In entropy-coded data 0xff is followed by 0x00, a restart marker or a fill byte; any other byte begins a marker.
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

_NEXT: Final = re.compile(rb"\xff[^\x00\xff]")  # a marker, after any number of fill bytes (0xff)
_MAX_SEGMENTS: Final = 10_000  # and fill bytes: Pillow needs a second for a million
_APP1: Final = 0xE1
_MAX_EXIF_BYTES: Final = 4 << 20  # one segment has 64 kB; Pillow copies all earlier ones for each

_PADDINGS: Final = (b"", b"\xaa" * 64, bytes(range(1, 255, 3)))  # a decoder that misses data goes on with zeros


def whole(data: bytes) -> bytes:
    """``data`` with an end-of-image marker: as it came, or with one added where all pixels are there without it.

    What follows the end (a video, a second image, a camera's blocks) is not looked at, nor what segments hold.
    BadImage for more than MAX_JPEG_SCANS scans or very many segments, and where pixels are missing. ITU-T T.81.
    """
    position, scans, segments, exif, progressive = len(_START_OF_IMAGE), 0, 0, 0, False
    while True:
        before = position
        marker, position = next_marker(data, before)
        if marker is None:
            break
        segments += position - before - 1
        if segments > _MAX_SEGMENTS:
            raise BadImage(f"the JPEG has more than {_MAX_SEGMENTS} segments or bytes between them")
        if marker == END_OF_IMAGE[1]:
            return data
        if marker in ALONE:
            continue
        progressive |= marker in PROGRESSIVE
        length = int.from_bytes(data[position : position + 2], "big")
        if length < 2:
            return data  # damaged: the decoder says how
        if marker == _APP1 and data[position + 2 : position + 8] == b"Exif\0\0":
            exif += length
            if exif > _MAX_EXIF_BYTES:
                raise BadImage(f"the JPEG has more than {_MAX_EXIF_BYTES >> 20} MB of EXIF")
        position += length
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > MAX_JPEG_SCANS:
                raise BadImage(f"the JPEG has more than {MAX_JPEG_SCANS} scans")
            found = _MARKER.search(data, position)
            if found is None:
                break
            position = found.start()
    # Of a progressive file later scans may be missing, which no decoder can tell from a file that never had them.
    data = data.rstrip(b"\xff")  # the first byte of a marker that is cut off
    if scans == 0 or progressive or not _has_all_pixels(data):
        raise BadImage("the image/jpeg is truncated")
    return data + END_OF_IMAGE


def next_marker(data: bytes, position: int) -> tuple[int | None, int]:
    """The code of the first marker from ``position`` on, and where its segment begins.

    None at the end of ``data``, and where none is near: so many bytes between segments are refused (``whole``).
    """
    found = _NEXT.search(data, position, position + 2 * _MAX_SEGMENTS)
    return (None, len(data)) if found is None else (data[found.end() - 1], found.end())


def _has_all_pixels(data: bytes) -> bool:
    """Whether the pixels are the same whatever follows ``data``: then the decoder needed none of it."""
    seen: set[bytes] = set()
    for padding in _PADDINGS:
        try:
            with Image.open(io.BytesIO(data + padding + END_OF_IMAGE), formats=("JPEG",)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise TooLarge(
                        f"the image is {image.width} x {image.height}; at most {MAX_PIXELS} pixels are accepted"
                    )
                seen.add(image.tobytes())
        except (TooLarge, MemoryError):
            raise
        except Exception:  # Pillow raises whatever its parser runs into
            return False
    return len(seen) == 1
