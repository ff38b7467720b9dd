"""Compressed DICOM frames: where they are, their checks before decoding, and JPEG Lossless."""

from __future__ import annotations

import io
import struct
from array import array
from dataclasses import dataclass
from typing import IO, Final

from PIL import Image

from ekiben.errors import BadImage
from models.limits import MAX_JPEG_SCANS
from models.medical.jpeg_lossless import decode_lossless

_RLE: Final = "1.2.840.10008.1.2.5"
_JPEG_LS: Final = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_PILLOW: Final = (  # JPEG and JPEG 2000
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
)
DECODED: Final = frozenset((_RLE, *_JPEG_LS, *_PILLOW))
"""UIDs of the compressed transfer syntaxes that pydicom reads, where a decoder is installed."""

JPEG_LOSSLESS: Final = frozenset(("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"))
"""UIDs of the transfer syntaxes of JPEG Lossless; the second has predictor 1 only."""

_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD

MAX_FRAGMENTS: Final = 1_000_000
_END_OF_IMAGE: Final = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000
_TAIL: Final = 10  # last bytes of a fragment in which it is looked for, since there may be padding

# A run of two bytes unpacks to 128: a frame below this many bytes unpacks to at most 256 MB.
_RLE_HARMLESS = 4 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape of each frame by the attributes of the file: pixels, samples per pixel, and bits per sample."""

    height: int
    width: int
    samples: int
    bits_allocated: int


def find_fragments(file: IO[bytes], start: int, most: int) -> array[int]:
    """Offsets of the first ``most`` fragments of the encapsulated pixel data at ``start``. PS3.5, A.4.

    BadImage where one is longer than the file.
    """
    found = array("Q")
    end = file.seek(0, io.SEEK_END)
    place, table = start, True  # the first item is the offset table
    while len(found) < most and place + 8 <= end:
        file.seek(place)
        group, element, length = struct.unpack("<HHL", file.read(8))
        if (tag := group << 16 | element) == _DELIMITER:
            break
        if tag != _ITEM or length > end - place - 8:
            raise BadImage("the pixel data of the DICOM file are truncated or damaged")
        if not table:
            found.append(place)
        place, table = place + 8 + length, False
    return found


def find_frames(file: IO[bytes], start: int, depth: int) -> array[int] | None:
    """Offsets of the first fragments of ``depth`` frames that have several, and where the last one ends.

    Without an offset table a frame ends with the fragment that has the end of its image, as pydicom has it; all are
    found in one pass. None where there is a table. BadImage where there are fewer frames, or more than MAX_FRAGMENTS.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(start)
    place = start + 8 + struct.unpack("<4xL", file.read(8))[0]
    if place > start + 8:
        return None
    found, count = array("Q", [place]), 0
    while len(found) <= depth and place + 8 <= end:
        file.seek(place)
        group, element, length = struct.unpack("<HHL", file.read(8))
        if (tag := group << 16 | element) == _DELIMITER:
            break
        if tag != _ITEM or length > end - place - 8:
            raise BadImage("the pixel data of the DICOM file are truncated or damaged")
        if (count := count + 1) > MAX_FRAGMENTS:
            raise BadImage(f"the pixel data of the DICOM file are in more than {MAX_FRAGMENTS} fragments")
        place += 8 + length
        file.seek(place - min(length, _TAIL))
        if _END_OF_IMAGE in file.read(min(length, _TAIL)):
            found.append(place)
    if len(found) == depth and place > found[-1]:  # the last one may lack its end
        found.append(place)
    if len(found) <= depth:
        raise BadImage(f"the DICOM file says {depth} frames, but holds {len(found) - 1}")
    return found


def read_fragments(file: IO[bytes], place: int, end: int) -> bytes:
    """The bytes of the fragments from ``place`` to ``end``, joined."""
    parts = []
    while place < end:
        parts.append(read_fragment(file, place))
        place += 8 + len(parts[-1])
    return b"".join(parts)


def read_fragment(file: IO[bytes], place: int) -> bytes:
    """The bytes of the fragment at ``place``."""
    file.seek(place + 4)
    return file.read(*struct.unpack("<L", file.read(4)))


def native_frame(frame: bytes, layout: Layout) -> bytes:
    """The pixels of a frame of JPEG Lossless as an uncompressed little endian file has them, colours by pixel.

    BadImage where it is damaged, or of another size than ``layout``.
    """
    pixels = decode_lossless(frame, layout.height, layout.width, layout.samples)
    if layout.bits_allocated == 8 and pixels.max() > 255:
        raise BadImage("the compressed frame has more than the 8 bits that the DICOM file says")
    return pixels.astype(f"<u{layout.bits_allocated // 8}").tobytes()


def check_frame(frame: bytes, syntax: str, layout: Layout) -> None:
    """BadImage where the compressed ``frame`` has another size than ``layout``, or more than MAX_JPEG_SCANS scans."""
    if syntax == _RLE:
        if len(frame) > _RLE_HARMLESS:
            _check_runs(frame, layout)
        return
    size = _jpeg_ls_size(frame) if syntax in _JPEG_LS else _pillow_size(frame)
    if size != (layout.width, layout.height):
        says = f"the compressed frame is {size[0]} x {size[1]}" if size else "the compressed frame is damaged"
        raise BadImage(f"{says}, the DICOM file says {layout.width} x {layout.height}")
    if frame.count(b"\xff\xda") > MAX_JPEG_SCANS and frame.startswith(b"\xff\xd8"):
        raise BadImage(f"the compressed frame has more than {MAX_JPEG_SCANS} scans")


def _pillow_size(frame: bytes) -> tuple[int, int] | None:
    try:
        return Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")).size
    except Exception:  # Pillow's readers raise whatever their parsers run into
        return None


def _jpeg_ls_size(frame: bytes) -> tuple[int, int] | None:
    """Width and height in the frame header, which follows marker 0xFFF7. ISO/IEC 14495-1, C.2.2."""
    place = 2
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = struct.unpack_from(">BH", frame, place + 1)
        if marker == 0xF7:
            height, width = struct.unpack_from(">HH", frame, place + 5)
            return width, height
        place += 2 + length
    return None


def _check_runs(frame: bytes, layout: Layout) -> None:
    """BadImage unless each of up to 15 segments holds one byte plane of the frame in runs. PS3.5, annex G."""
    if len(frame) < 64:
        raise BadImage("the compressed frame is truncated")
    count, *starts = struct.unpack_from("<16L", frame)
    if count != layout.samples * layout.bits_allocated // 8 or count > 15:
        raise BadImage("the compressed frame has not as many planes as the DICOM file says")
    ends = [*starts[1:count], len(frame)]
    for start, end in zip(starts[:count], ends, strict=True):
        # One pad byte is allowed; a decoder would also unpack everything after the last pixel.
        if _unpacked(frame[start:end], limit := layout.height * layout.width + 1) > limit:
            raise BadImage("the compressed frame unpacks to more than the DICOM file says")


def _unpacked(segment: bytes, limit: int) -> int:
    """Bytes that a segment unpacks to, counted until they pass ``limit``."""
    place = total = 0
    while place < len(segment) and total <= limit:
        head = segment[place]
        if head < 128:
            total += head + 1
            place += head + 2
        else:
            total += 257 - head if head > 128 else 0
            place += 2 if head > 128 else 1
    return total
