"""TIFF and BigTIFF files by their directories: which page is the image, and what its samples mean. TIFF 6.0."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadImage, TooLarge, UnsupportedImage
from models.image_formats.value_range import BITS
from models.results import ValueRange

MAGIC: Final = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""The first bytes of TIFF and BigTIFF, little- and big-endian."""

MAX_PAGES: Final = 10_000

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE = 0, 1, 3
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_ALPHA: Final = (1, 2)  # of ExtraSamples
_MAX_TILE: Final = 1 << 20
_MAX_TILE_SHARE: Final = 4
"""Pixels of a tile: at most _MAX_TILE, or so many times those of the image. A decoder makes room for a whole tile."""
_ASPECT: Final = 0.02  # by which the sides' ratio of a pyramid's levels may differ, besides rounding

_TYPES: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_MAX_ENTRIES: Final = 50_000  # of all directories together; a page has about twenty
_READ: Final = frozenset({254, 255, 256, 257, 258, 262, 277, 281, 322, 323, 338, 339, 341})
_MAX_VALUES: Final = 64  # of a tag that is looked at; BitsPerSample has one per sample


@dataclass(frozen=True, slots=True)
class TiffPage:
    """What one directory says. ``tile``: width and height, where the page is tiled. ``declared``: values in use."""

    width: int
    height: int
    subfile: int
    photometric: int
    samples: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    extra: tuple[int, ...]
    tile: tuple[int, int] | None
    declared: ValueRange | None

    @property
    def signed(self) -> bool:
        """Whether samples are signed integers."""
        return self.formats[0] == _SIGNED

    @property
    def inverted(self) -> bool:
        """Whether 0 is white."""
        return self.photometric == _WHITE_IS_ZERO

    def check(self) -> None:
        """UnsupportedImage where it is not clear which samples are the image; TooLarge for a tile beyond bounds."""
        if self.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE):
            alpha = self.samples == 2 and self.extra[:1] and self.extra[0] in _ALPHA
            if self.samples != 1 and not alpha:
                raise UnsupportedImage(
                    f"the TIFF has {self.samples} channels and does not say that they are colours; send RGB, or the "
                    "channel that is meant as a grey image"
                )
        if len(set(self.formats)) > 1 or self.formats[0] not in (_UNSIGNED, _SIGNED, _FLOAT, 4):
            raise UnsupportedImage("TIFF images of complex or mixed number types are not read")
        if self.tile is not None:
            pixels = self.tile[0] * self.tile[1]
            if pixels > max(_MAX_TILE, _MAX_TILE_SHARE * self.width * self.height):
                raise TooLarge(
                    f"the TIFF has tiles of {self.tile[0]} x {self.tile[1]} for an image of "
                    f"{self.width} x {self.height}"
                )

    def words(self) -> str:
        """The kind of pixels, for messages."""
        number = {_SIGNED: "signed ", _FLOAT: "floating-point "}.get(self.formats[0], "")
        return f"{self.samples} x {self.bits[0]} {number}bits, photometric interpretation {self.photometric}"


def pages(
    data: bytes | mmap, limit: int = MAX_PAGES, max_entries: int = _MAX_ENTRIES, *, whole: bool = False
) -> list[TiffPage]:
    """The directories of the file in order, ``limit`` at most; fewer where the chain turns back or is too long.

    BadImage for a directory that is cut off. One that would begin behind the end of the file is passed over, since some
    programs write no end of the chain; with ``whole`` that is BadImage, too: the file may have lost pages.
    """
    reader = _Reader(data, max_entries)
    found: list[TiffPage] = []
    seen: set[int] = set()
    position = reader.first()
    while position and position not in seen and len(found) < limit and reader.entries <= max_entries:
        seen.add(position)
        try:
            tags, position = reader.directory(position)
        except struct.error:
            if reader.entries > max_entries or (found and position >= len(data) and not whole):
                break
            cut = f"page {len(found) + 1} of the TIFF is cut off or damaged" if found else "the image/tiff is damaged"
            raise BadImage(cut) from None
        found.append(_page(tags))
    return found


def image_page(found: Sequence[TiffPage]) -> int:
    """The number of the page that is the image: the only one of full size, or the largest of a pyramid.

    UnsupportedImage where there are several.
    """
    full = [n for n, page in enumerate(found) if not page.subfile & (_REDUCED | _MASK)] or list(range(len(found)))
    largest = max(full, key=lambda n: found[n].width * found[n].height)
    page = found[largest]
    for number in full:
        if number != largest and not _is_level(found[number], page):
            raise UnsupportedImage(
                f"the TIFF has {len(full)} pages; send the page that is meant, or the pages of a stack one by one"
            )
    return largest


def sample_values(image: Image.Image, page: TiffPage) -> NDArray[np.number[Any]] | None:
    """The samples of a loaded grey page where Pillow's 8-bit reading is not what the file says; else None.

    [height, width], integers or floating-point numbers. They are not inverted where 0 is white.
    """
    if image.mode == "L" and page.signed and page.bits[0] == 8:
        return np.asarray(image).view(np.int8)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if page.bits[0] == 32 and not page.signed:
            return values.view(np.uint32)
        return values
    return np.asarray(image) if image.mode == "F" else None


def _is_level(page: TiffPage, full: TiffPage) -> bool:
    """Whether a page is a smaller level of the pyramid of ``full``, by size and aspect."""
    if page.width >= full.width or page.height >= full.height or not page.width or not page.height:
        return False
    scale = full.width / page.width
    return abs(full.height / scale - page.height) <= 1 + _ASPECT * page.height


def _page(tags: dict[int, tuple[int, ...]]) -> TiffPage:
    def one(tag: int, default: int) -> int:
        return tags[tag][0] if tags.get(tag) else default

    samples = one(277, 1)
    formats = tags.get(339) or (_UNSIGNED,)
    tile = (one(322, 0), one(323, 0))
    highest = one(341 if formats[0] == _SIGNED else 281, -1)
    declared = None
    if highest > 0 and formats[0] in (_UNSIGNED, 4):
        declared = (0.0, float(next((2**bits for bits in BITS if highest < 2**bits), 2**32) - 1))
    return TiffPage(
        width=one(256, 0),
        height=one(257, 0),
        subfile=one(254, 0) | (_REDUCED if one(255, 0) == 2 else 0),
        photometric=one(262, _WHITE_IS_ZERO),
        samples=samples,
        bits=tags.get(258) or (1,),
        formats=formats,
        extra=tags.get(338) or (),
        tile=tile if all(tile) else None,
        declared=declared,
    )


class _Reader:
    """Reads directories of small integers; other tags are skipped. struct.error past the end of the data."""

    def __init__(self, data: bytes | mmap, max_entries: int) -> None:
        self._data, self._max_entries = data, max_entries
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = data[2:4] in (b"+\x00", b"\x00+")
        self.entries = 0

    def first(self) -> int:
        """The position of the first directory; 0 where there is none."""
        try:
            return int(self._unpack("Q", 8)[0] if self._big else self._unpack("I", 4)[0])
        except struct.error:
            return 0

    def directory(self, position: int) -> tuple[dict[int, tuple[int, ...]], int]:
        """The tags of the directory at ``position``, and the position of the next one."""
        count_type, entry_bytes, offset_type = ("Q", 20, "Q") if self._big else ("H", 12, "I")
        (count,) = self._unpack(count_type, position)
        position += struct.calcsize("<" + count_type)
        tags: dict[int, tuple[int, ...]] = {}
        self.entries += count
        if self.entries > self._max_entries:
            raise struct.error("more entries than any file needs")
        for entry in range(count):
            self._entry(position + entry * entry_bytes, tags)
        (following,) = self._unpack(offset_type, position + count * entry_bytes)
        return tags, following

    def _entry(self, position: int, tags: dict[int, tuple[int, ...]]) -> None:
        tag, kind = self._unpack("HH", position)
        (count,) = self._unpack("Q" if self._big else "I", position + 4)
        letter = _TYPES.get(kind)
        if letter is None or not count:
            return
        count = min(count, _MAX_VALUES)
        place = position + (12 if self._big else 8)
        if count * struct.calcsize("<" + letter) > (8 if self._big else 4):
            (place,) = self._unpack("Q" if self._big else "I", place)
        if tag in _READ:
            tags.setdefault(tag, self._unpack(f"{count}{letter}", place))

    def _unpack(self, letters: str, position: int) -> tuple[Any, ...]:
        if position > len(self._data):  # unpack_from has its own error for offsets beyond 64 bits
            raise struct.error("past the end of the file")
        return struct.unpack_from(self._order + letters, self._data, position)
