"""What decoding an image takes, by its header: memory, and whether it takes long. Nothing is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import Refusal
from models.image_formats import tiff
from models.image_formats.jpeg import ALONE, END_OF_IMAGE, PROGRESSIVE, next_marker
from models.image_formats.sniffing import sniff
from models.inference_requests import PreparedTensor
from models.limits import MAX_PIXELS

RGB_BYTES: Final = 4
"""Of a pixel in an image of mode RGB, as Pillow holds it."""
_BYTES_PER_PIXEL: Final = 12
"""Of the highest peak from the encoded image to its answer: 10 measured (progressive JPEG), and the class map."""
_WEBP_BYTES_PER_PIXEL: Final = 20
"""18 measured: libwebp gives the whole image as RGBA beside its own planes."""
_DEEP_BYTES_PER_PIXEL: Final = 24
"""Of more than 8 bits a sample: 17 measured for a 16-bit grey PNG. And of TIFF and DICOM, which may be deep."""

_QUICK_PIXELS: Final = 1 << 20
"""A JPEG of so many pixels is decoded in 10 ms, a PNG in 30 ms."""
_QUICK_BYTES: Final = 3
"""Of the memory to decode a pixel, for a byte of a file without metadata: 4 bytes a pixel of 8 bits."""
_METADATA_BYTES: Final = 1 << 20
_SCANS_PER_DECODING: Final = 8
"""Scans of a progressive JPEG that take about as long as decoding a file of one scan."""
_MAX_SEGMENTS: Final = 1000  # and fill bytes, before the frame header of a JPEG

_SHORT_HEADERS: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM")

_FRAME_HEADERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15


@dataclass(frozen=True, slots=True)
class ImageCost:
    """``bytes``: memory at most, from the encoded image to its answer. ``slow``: others must not wait for it."""

    bytes: int
    slow: bool


NOTHING: Final = ImageCost(0, slow=False)


def image_cost(image: bytes | NDArray[np.uint8] | PreparedTensor) -> ImageCost:
    """The cost of encoded bytes, pixels or a tensor. What ``models.images.decode`` refuses costs nothing.

    Takes 10 us for most files, and milliseconds for DICOM and TIFF (``needs_thread``).
    """
    if isinstance(image, PreparedTensor):
        return NOTHING
    if not isinstance(image, bytes):
        height, width = image.shape[:2]
        return _cost(width * height, _BYTES_PER_PIXEL)
    try:
        mime_type = sniff(image)
    except Refusal:
        return NOTHING
    cost = _by_format(image, mime_type)
    # Metadata takes time, too: a megabyte of it about as long as the pixels of a quick image.
    is_long = len(image) > cost.bytes // _QUICK_BYTES + _METADATA_BYTES
    return replace(cost, slow=True) if is_long and not cost.slow else cost


def _by_format(image: bytes, mime_type: str) -> ImageCost:
    try:
        match mime_type:
            case "image/jpeg":
                return _jpeg(image)
            case "image/png":
                if image[12:16] != b"IHDR":
                    return NOTHING
                width, height, bits = struct.unpack_from(">IIB", image, 16)
                return _cost(width * height, _DEEP_BYTES_PER_PIXEL if bits > 8 else _BYTES_PER_PIXEL)
            case "image/webp":
                return _cost(_webp_pixels(image), _WEBP_BYTES_PER_PIXEL)
            case "image/bmp":
                return _cost(_bmp_pixels(image), _BYTES_PER_PIXEL)
            case "image/tiff":
                return _tiff(image)
        return _dicom(image)
    except (struct.error, Refusal):  # cut off within its header
        return NOTHING


def needs_thread(image: bytes | NDArray[np.uint8] | PreparedTensor) -> bool:
    """Whether ``image_cost`` takes too long for an event loop."""
    return isinstance(image, bytes) and (
        image[:4] in tiff.MAGIC or not image.startswith((b"\xff\xd8", b"\x89P", b"RI", b"BM"))
    )


def _cost(pixels: int, bytes_per_pixel: int, repeats: float = 1.0) -> ImageCost:
    if pixels > MAX_PIXELS:
        return NOTHING  # refused before it is decoded
    return ImageCost(pixels * bytes_per_pixel, slow=pixels * repeats > _QUICK_PIXELS)


def _jpeg(data: bytes) -> ImageCost:
    position, left = 2, _MAX_SEGMENTS
    while left > 0:
        before = position
        marker, position = next_marker(data, before)
        left -= position - before - 1
        if marker is None:
            return NOTHING
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", data, position + 3)
            scans = data.count(b"\xff\xda", position) if marker in PROGRESSIVE else 1
            return _cost(width * height, _BYTES_PER_PIXEL, max(1.0, scans / _SCANS_PER_DECODING))
        if marker in ALONE or marker == END_OF_IMAGE[1]:
            continue
        position += struct.unpack_from(">H", data, position)[0]
    return ImageCost(MAX_PIXELS * _BYTES_PER_PIXEL, slow=True)


def _webp_pixels(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8X":  # the canvas: 24 bits each, less 1
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        packed = struct.unpack_from("<I", data, 21)[0]
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return int(width * height)


def _bmp_pixels(data: bytes) -> int:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # OS/2
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return int(abs(width * height))


def _tiff(data: bytes) -> ImageCost:
    pixels = max((page.width * page.height for page in tiff.pages(data)), default=0)
    return ImageCost(min(pixels, MAX_PIXELS) * _DEEP_BYTES_PER_PIXEL, slow=True)


def _dicom(data: bytes) -> ImageCost:
    from models.medical.dicom import stated_pixels  # late: its libraries take half a second to import

    pixels = stated_pixels(data)
    return ImageCost(min(pixels or MAX_PIXELS, MAX_PIXELS) * _DEEP_BYTES_PER_PIXEL, slow=True)
