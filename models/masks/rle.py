"""Run-length encoding (RLE) of masks, column by column, as COCO and Segment Anything define it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ekiben.errors import BadInput, TooLarge
from models.images import encode_png
from models.limits import MAX_PIXELS

Positions = NDArray[np.int64]
"""Positions of pixels: column * height + row."""

# 7 groups of 5 bits hold every count of 64 megapixels, and the signed difference of two counts.
_MAX_GROUPS = 7
_PIECE = 1 << 16  # counts that are read at a time


@dataclass(frozen=True, slots=True, eq=False)
class Rle:
    """A mask of ``height`` x ``width``. ``counts``: uint32, lengths of runs down the columns, from left to right.

    The first run is of zeros (0 long where the first pixel is set); no other is empty, so equal masks have equal
    counts. A position is ``column * height + row``, int64.
    """

    height: int
    width: int
    counts: NDArray[np.uint32]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rle):
            return NotImplemented
        return (self.height, self.width) == (other.height, other.width) and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash((self.height, self.width, self.counts.tobytes()))

    @property
    def area(self) -> int:
        """Number of set pixels."""
        return int(self.counts[1::2].sum(dtype=np.int64))

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the set pixels, INCLUSIVE as in segment_anything; zeros when empty."""
        starts, stops = self.runs()
        if not len(starts):
            return (0, 0, 0, 0)
        first, last = starts // self.height, (stops - 1) // self.height
        inside = first == last  # a run that goes on in the next column covers the last row and the first
        top = np.where(inside, starts - first * self.height, 0).min()
        bottom = np.where(inside, stops - 1 - last * self.height, self.height - 1).max()
        return (int(first[0]), int(top), int(last[-1]), int(bottom))

    @property
    def bbox_xywh(self) -> tuple[int, int, int, int]:
        """``box_xyxy`` as x, y, width, height as in segment_anything: width is right - left, without adding 1."""
        left, top, right, bottom = self.box_xyxy
        return (left, top, right - left, bottom - top)

    def edges(self) -> Positions:
        """Positions where runs of set pixels begin and end, alternating: an even number, strictly ascending."""
        ends = np.cumsum(self.counts, dtype=np.int64)
        # The last count ends the mask; it is an edge only where the last pixel is set.
        return ends if len(ends) % 2 == 0 else ends[:-1]

    def runs(self) -> tuple[Positions, Positions]:
        """Positions of the first pixel of each run of set pixels, and of the first pixel after it."""
        edges = self.edges()
        return edges[::2], edges[1::2]

    def column_runs(self) -> tuple[Positions, Positions, Positions]:
        """Column, first row and row after the last of each run, split at the ends of columns; columns ascending."""
        starts, stops = self.runs()
        first, last = starts // self.height, (stops - 1) // self.height
        pieces = last - first + 1
        if len(pieces) == pieces.sum():
            return first, starts - first * self.height, stops - first * self.height
        owner = np.repeat(np.arange(len(starts)), pieces)
        columns = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces - first, pieces)
        tops = np.maximum(starts[owner] - columns * self.height, 0)
        return columns, tops, np.minimum(stops[owner] - columns * self.height, self.height)

    def decode(self) -> NDArray[np.bool_]:
        """bool [height, width], C order."""
        edges = self.edges()
        columns = edges // self.height
        # An edge after the last pixel would be in a column that does not exist.
        inside = slice(None) if not len(edges) or columns[-1] < self.width else slice(-1)
        toggles = np.zeros((self.height, self.width), np.uint8)
        toggles[(edges - columns * self.height)[inside], columns[inside]] = 1
        heads = np.arange(self.width, dtype=np.int64) * self.height
        toggles[0] = np.searchsorted(edges, heads, side="right") & 1
        # Down the rows, so that each step is one pass over contiguous memory; ufunc.accumulate takes 5 times as long.
        for row in range(1, self.height):
            np.bitwise_xor(toggles[row], toggles[row - 1], out=toggles[row])
        return toggles.view(np.bool_)

    def shifted(self, top: int, left: int, height: int, width: int) -> Rle:
        """This mask placed in one of ``height`` x ``width``, its first pixel at row ``top``, column ``left``.

        ValueError where it does not fit.
        """
        _require_inside(self.height, self.width, top, left, height, width)
        if (height, width) == (self.height, self.width):
            return self
        columns, tops, bottoms = self.column_runs()
        heads = (columns + left) * height + top
        return from_edges(np.stack([heads + tops, heads + bottoms], axis=1).ravel(), height, width)

    def inverse(self) -> Rle:
        """The mask that is set where this one is not."""
        counts = self.counts[1:] if self.counts[0] == 0 else np.concatenate([np.zeros(1, np.uint32), self.counts])
        return Rle(self.height, self.width, counts)


def from_edges(edges: Positions, height: int, width: int) -> Rle:
    """The mask of ascending positions where runs begin and end, alternating. Runs that touch are joined."""
    if len(edges):
        apart = edges[1:] != edges[:-1]
        if not apart.all():
            kept = np.ones(len(edges), np.bool_)
            kept[1:] &= apart
            kept[:-1] &= apart
            edges = edges[kept]
    size = height * width
    ends = [] if len(edges) and edges[-1] == size else [size]
    return Rle(height, width, np.diff(edges, prepend=0, append=ends).astype(np.uint32))


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Rle:
    """The RLE of ``mask`` [H, W]; any value but 0 is set."""
    return encode_region(mask, 0, 0, *mask.shape)


def encode_region(region: NDArray[np.bool_] | NDArray[np.uint8], top: int, left: int, height: int, width: int) -> Rle:
    """The RLE of a mask of ``height`` x ``width`` that is ``region`` [h, w] at (top, left) and zero elsewhere."""
    rows, columns = region.shape
    _require_inside(rows, columns, top, left, height, width)
    bits = region if region.dtype == np.bool_ else region != 0
    # Where a pixel differs from the one above it, with a row of zeros above and below: found row by row, which is
    # the order of memory, and sorted afterwards, as they are few. Transposing the region would cost more.
    changes = np.empty((rows + 1, columns), np.bool_)
    changes[0], changes[-1] = bits[0], bits[-1]
    np.not_equal(bits[1:], bits[:-1], out=changes[1:-1])
    places = np.flatnonzero(changes)
    at_row = places // columns
    edges = (places - at_row * columns + left) * height + (at_row + top)
    edges.sort()
    return from_edges(edges, height, width)


def iou(a: Rle, b: Rle) -> float:
    """Intersection over union of two masks of equal size; 0.0 where both are empty. ValueError for other sizes."""
    if (a.height, a.width) != (b.height, b.width):
        raise ValueError(f"masks of different sizes: {a.height} x {a.width} and {b.height} x {b.width}")
    starts, stops = a.runs()
    common = int((_set_before(b, stops) - _set_before(b, starts)).sum())
    union = a.area + b.area - common
    return common / union if union else 0.0


def to_uncompressed(rle: Rle) -> dict[str, Any]:
    """``{"size": [h, w], "counts": [...]}``, for JSON; segment_anything's ``uncompressed_rle``."""
    return {"size": [rle.height, rle.width], "counts": rle.counts.tolist()}


def to_coco(rle: Rle) -> dict[str, Any]:
    """``{"size": [h, w], "counts": str}``, for JSON and pycocotools; segment_anything's ``coco_rle``."""
    uncompressed = {"size": [rle.height, rle.width], "counts": rle.counts}
    compressed = coco_mask.frPyObjects(uncompressed, rle.height, rle.width)
    return {"size": [rle.height, rle.width], "counts": compressed["counts"].decode("ascii")}


def to_png(rle: Rle) -> bytes:
    """PNG of 1 bit a pixel, white where the mask is set. Half the time and two thirds of the size of 8 bits."""
    return encode_png(Image.fromarray(rle.decode()))


def from_uncompressed(value: object) -> Rle:
    """Read what ``to_uncompressed`` writes, from untrusted input.

    BadInput where it is not a mask; TooLarge above MAX_PIXELS.
    """
    height, width, counts = _parts(value)
    if not isinstance(counts, list | tuple):
        raise BadInput("the counts of an uncompressed RLE are a list of whole numbers")
    _require_few(len(counts), height, width)
    numbers = np.empty(len(counts), np.int64)
    # In pieces, between which other threads run: the conversion holds the interpreter.
    for start in range(0, len(counts), _PIECE):
        piece = counts[start : start + _PIECE]
        try:
            numbers[start : start + _PIECE] = array("q", piece)
        except (TypeError, OverflowError):  # no whole number, or beyond 64 bits
            raise BadInput("the counts of an uncompressed RLE are a list of whole numbers") from None
    return _from_counts(numbers, height, width)


def from_coco(value: object) -> Rle:
    """Read what ``to_coco`` writes, from untrusted input. BadInput where it is not a mask; TooLarge above MAX_PIXELS.

    Not by pycocotools, which reads past the end of a truncated string.
    """
    height, width, text = _parts(value)
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    if not isinstance(text, bytes):
        raise BadInput("the counts of a compressed RLE are a string")
    _require_few(len(text) // _MAX_GROUPS, height, width)
    groups = np.frombuffer(text, np.uint8) - np.uint8(48)  # less than 0 becomes more than 63
    if not len(groups) or groups.max() > 63:
        raise BadInput("the counts of the RLE are not in COCO's alphabet")
    lasts = np.flatnonzero(groups < 32)  # the last group of each number
    if not len(lasts) or lasts[-1] != len(groups) - 1:
        raise BadInput("the counts of the RLE are cut off")
    _require_few(len(lasts), height, width)
    if np.diff(lasts, prepend=-1).max() > _MAX_GROUPS:
        raise BadInput("the counts of the RLE hold a number that is too large")
    numbers = np.empty(len(lasts), np.int64)
    begin = 0
    for start in range(0, len(lasts), _PIECE):
        ends = lasts[start : start + _PIECE]
        numbers[start : start + _PIECE] = _read_groups(groups[begin : ends[-1] + 1], ends - begin)
        begin = int(ends[-1]) + 1
    # From the fourth on, a number is the difference from the one two before it.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return _from_counts(numbers, height, width)


def _read_groups(groups: NDArray[np.uint8], lasts: Positions) -> NDArray[np.int64]:
    """The numbers that ``groups`` of 5 bits are, the lowest first; ``lasts``: the last group of each number."""
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    lengths = lasts - firsts + 1
    shifts = 5 * (np.arange(len(groups)) - np.repeat(firsts, lengths))
    numbers = np.add.reduceat((groups & 31).astype(np.int64) << shifts, firsts)
    negative = (groups[lasts] & 16) != 0
    numbers[negative] -= np.int64(1) << (5 * lengths[negative])
    return np.asarray(numbers)


def _from_counts(counts: NDArray[Any], height: int, width: int) -> Rle:
    size = height * width
    if not len(counts) or counts.min() < 0 or counts.max() > size or counts.sum(dtype=np.int64) != size:
        raise BadInput(f"the counts of the RLE do not add up to {height} x {width} pixels")
    ends = np.cumsum(counts, dtype=np.int64)
    return from_edges(ends if len(ends) % 2 == 0 else ends[:-1], height, width)


def check_size(value: object) -> tuple[int, int]:
    """Height and width of a mask from untrusted input, whose counts are not looked at.

    BadInput where it is not a mask; TooLarge above MAX_PIXELS.
    """
    if not isinstance(value, dict) or "size" not in value or "counts" not in value:
        raise BadInput('an RLE is {"size": [height, width], "counts": ...}')
    size = value["size"]
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise BadInput("the size of an RLE is [height, width], two whole numbers above 0")
    height, width = size
    if height * width > MAX_PIXELS:
        raise TooLarge(f"the mask has more than {MAX_PIXELS} pixels")
    return height, width


def _parts(value: object) -> tuple[int, int, Any]:
    """Height, width, and the counts unchecked."""
    height, width = check_size(value)
    return height, width, value["counts"]  # type: ignore[index]


def _require_few(counts: int, height: int, width: int) -> None:
    if counts > height * width + 1:
        raise BadInput(f"the RLE has more counts than {height} x {width} pixels")


def _require_inside(rows: int, columns: int, top: int, left: int, height: int, width: int) -> None:
    if rows < 1 or columns < 1 or top < 0 or left < 0 or top + rows > height or left + columns > width:
        raise ValueError(f"a mask of {rows} x {columns} at ({top}, {left}) is not inside {height} x {width}")


def _set_before(rle: Rle, positions: Positions) -> Positions:
    """How many set pixels come before each position."""
    edges = rle.edges()
    if not len(edges):
        return np.zeros(len(positions), np.int64)
    before = np.concatenate([[0], np.cumsum(edges[1::2] - edges[::2])])
    passed = np.searchsorted(edges, positions, side="right")
    begun = np.where(passed % 2 == 1, positions - edges[passed - 1], 0)
    return np.asarray(before[passed // 2] + begun, np.int64)
