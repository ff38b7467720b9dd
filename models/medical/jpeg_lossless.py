"""JPEG Lossless, Huffman-coded: ITU-T T.81, process 14, as DICOM files carry it (1.2.840.10008.1.2.4.57 and .70)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadImage

_SOF3, _DHT, _EOI, _SOS, _DRI = 0xC3, 0xC4, 0xD9, 0xDA, 0xDD
_OTHER_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {_SOF3, _DHT, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
_CHUNK_BYTES = 1 << 16  # of entropy-coded data looked at together: its bit positions take eight times as many
_LONGEST = 32  # bits of a code and the bits that follow it: 16 + 15
_INVALID = 255

_Differences = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Codes:
    """A Huffman table, indexed by the next 16 bits: bits of the code, its category (T.81, H.1.2.2), and bits in all."""

    lengths: NDArray[np.uint8]
    categories: NDArray[np.uint8]
    steps: NDArray[np.uint8]


@dataclass(slots=True)
class _State:
    """What the marker segments said so far. ``samples``: uint16 [components, height, width]."""

    tables: dict[int, bytes] = field(default_factory=dict)
    restart: int = 0
    precision: int = 0
    components: bytes = b""
    samples: NDArray[np.uint16] | None = None


def decode_lossless(data: bytes, height: int, width: int, components: int) -> NDArray[np.uint16]:
    """The samples uint16 [height, width, components] of a JPEG Lossless image, as they are stored in it.

    BadImage where the data are damaged or truncated, of another size or of another process of JPEG.
    """
    state, place, left = _State(), 2, components
    while left and data[:2] == b"\xff\xd8":
        found = _MARKER.match(data, place)
        if found is None or len(data) < found.end() + 2:
            raise BadImage("the JPEG Lossless frame is truncated")
        marker, start = found[1][0], found.end()
        if marker == _EOI:
            raise BadImage("the JPEG Lossless frame has fewer components than the DICOM file says")
        place = start + struct.unpack_from(">H", data, start)[0]
        body = data[start + 2 : place]
        if marker == _DHT:
            _read_tables(body, state.tables)
        elif marker == _DRI and len(body) >= 2:
            state.restart = struct.unpack_from(">H", body)[0]
        elif marker == _SOF3:
            _read_frame(body, state, (height, width, components), len(data))
        elif marker in _OTHER_FRAMES:
            raise BadImage("the compressed frame is of another process of JPEG than JPEG Lossless")
        elif marker == _SOS:
            read, place = _read_scan(data, body, place, state)
            left -= read
    if state.samples is None:
        raise BadImage("the compressed frame is no JPEG")
    return np.ascontiguousarray(state.samples.transpose(1, 2, 0))


def _read_tables(body: bytes, tables: dict[int, bytes]) -> None:
    while len(body) >= 17:
        size = 17 + sum(body[1:17])
        tables[body[0]] = body[1:size]
        body = body[size:]


def _read_frame(body: bytes, state: _State, wanted: tuple[int, int, int], held: int) -> None:
    if len(body) < 9 or state.samples is not None:
        raise BadImage("the JPEG Lossless frame is damaged: its frame header")
    state.precision, rows, columns, count = struct.unpack_from(">BHHB", body)
    state.components, factors = body[6::3][:count], body[7::3][:count]
    if (rows, columns, count) != wanted or len(set(state.components)) != count:
        says = f"{columns} x {rows} pixels of {count} samples"
        raise BadImage(f"the compressed frame has {says}, the DICOM file says {wanted[1]} x {wanted[0]} of {wanted[2]}")
    if not 2 <= state.precision <= 16 or (count > 1 and set(factors) != {0x11}):
        raise BadImage("the JPEG Lossless frame has components of different sizes, or not 2 to 16 bits")
    if held * 8 < rows * columns * count:  # a sample takes a bit at least
        raise BadImage("the JPEG Lossless frame is truncated")
    state.samples = np.zeros((count, rows, columns), np.uint16)


def _read_scan(data: bytes, body: bytes, place: int, state: _State) -> tuple[int, int]:
    """Decodes the components of a scan; how many, and where its data end."""
    count = body[0] if body else 0
    if state.samples is None or not 1 <= count <= len(state.components) or len(body) < 4 + 2 * count:
        raise BadImage("the JPEG Lossless frame is damaged: a scan header")
    ids, predictor, transform = body[1 : 1 + 2 * count : 2], body[1 + 2 * count], body[3 + 2 * count] & 15
    if not 1 <= predictor <= 7 or transform >= state.precision or not set(ids) <= set(state.components):
        raise BadImage("the JPEG Lossless frame is damaged: a scan header")
    built: dict[int, _Codes] = {}
    for number in {each >> 4 for each in body[2 : 2 + 2 * count : 2]}:
        built[number] = _codes(state.tables.get(number, b""))
    codes = [built[each >> 4] for each in body[2 : 2 + 2 * count : 2]]
    rows, columns = state.samples.shape[1:]
    if state.restart % columns:
        raise BadImage("the JPEG Lossless frame is damaged: its restart interval is not of whole lines")
    lines = state.restart // columns or rows
    parts, place = _entropy_coded(data, place, -(-rows // lines))
    for part, top in zip(parts, range(0, rows, lines), strict=True):
        high = min(lines, rows - top)
        differences = _differences(part, codes, high * columns)
        for which, component in enumerate(ids):
            plane = _predicted(
                differences[:, which].reshape(high, columns), predictor, 1 << (state.precision - transform - 1)
            )
            state.samples[state.components.index(component), top : top + high] = plane << transform
    return count, place


def _codes(table: bytes) -> _Codes:
    lengths, categories = np.ones(1 << 16, np.uint8), np.full(1 << 16, _INVALID, np.uint8)
    place, symbols = 0, iter(table[16:])
    for length, count in enumerate(table[:16], start=1):
        span = 1 << (16 - length)
        for _, symbol in zip(range(count), symbols, strict=False):
            if place + span > 1 << 16 or symbol > 16:
                raise BadImage("the JPEG Lossless frame is damaged: a Huffman table")
            lengths[place : place + span], categories[place : place + span] = length, symbol
            place += span
    if not place:
        raise BadImage("the JPEG Lossless frame is damaged: a Huffman table is missing")
    return _Codes(lengths, categories, lengths + np.where(categories < 16, categories, 0).astype(np.uint8))


def _entropy_coded(data: bytes, place: int, intervals: int) -> tuple[list[bytes], int]:
    """The restart intervals of a scan without stuffed bytes, and where the next marker segment begins."""
    parts: list[bytes] = []
    for found in _MARKER.finditer(data, place):
        parts.append(data[place : found.start()].replace(b"\xff\0", b"\xff"))
        place = found.end()
        if not 0xD0 <= found[1][0] <= 0xD7 or len(parts) > intervals:
            place = found.start()
            break
    else:
        parts.append(data[place:].replace(b"\xff\0", b"\xff"))
        place = len(data)
    if len(parts) != intervals:
        raise BadImage("the JPEG Lossless frame is damaged: its restart intervals")
    return parts, place


def _differences(part: bytes, codes: list[_Codes], count: int) -> _Differences:
    """int32 [count, components]: the differences from the prediction, interleaved in ``part``. T.81, H.1.2.2.

    For every bit position it is looked up how far the next code would be; only then the codes are followed.
    """
    total, each = len(part) * 8, len(codes)
    if total < count * each:
        raise BadImage("the JPEG Lossless frame is truncated")
    padded = np.frombuffer(part + bytes(8 + _LONGEST * each // 8), np.uint8)
    out = np.empty((count, each), np.int32)
    done = position = 0
    while done < count:
        base = position >> 3
        piece = padded[base : base + _CHUNK_BYTES].astype(np.int64)
        words = piece[:-2] << 16 | piece[1:-1] << 8 | piece[2:]
        following = ((words[:, np.newaxis] >> np.arange(8, 0, -1)) & 0xFFFF).ravel()
        by_table = {id(table): table.steps[following].tobytes() for table in codes}
        places, position = _followed([by_table[id(table)] for table in codes], position - base * 8, count - done)
        if not places or position + base * 8 > total:
            raise BadImage("the JPEG Lossless frame is truncated")
        position += base * 8
        at = np.array(places, np.int64).reshape(-1, each)
        for which, table in enumerate(codes):
            out[done : done + len(at), which] = _values(piece, following[at[:, which]], at[:, which], table)
        done += len(at)
    return out


def _followed(steps: list[bytes], position: int, count: int) -> tuple[list[int], int]:
    """Positions of the codes of up to ``count`` pixels, as many as ``steps`` holds, and the position after them."""
    places: list[int] = []
    append, limit = places.append, len(steps[0]) - _LONGEST * (len(steps) + 1)
    for _ in range(count):
        if position >= limit:
            break
        for table in steps:
            append(position)
            position += table[position]
    return places, position


def _values(piece: NDArray[np.int64], codes: NDArray[np.int64], at: NDArray[np.int64], table: _Codes) -> _Differences:
    category = table.categories[codes].astype(np.int64)
    if (category == _INVALID).any():
        raise BadImage("the JPEG Lossless frame is damaged: a code is in no Huffman table")
    start = at >> 3
    word = np.zeros_like(start)
    for offset in range(5):
        word = word << 8 | piece[start + offset]
    extra = word >> (40 - (at & 7) - table.steps[codes]) & ((1 << category) - 1)
    extra -= np.where(extra << 1 < 1 << category, (1 << category) - 1, 0)
    return np.where(category == 16, 32768, extra).astype(np.int32)


def _predicted(differences: _Differences, predictor: int, start: int) -> NDArray[np.uint16]:
    """Samples from differences [lines, columns] modulo 65536: T.81, H.1.2.1. ``start`` predicts the first sample."""
    line: _Differences
    out = differences.copy()
    out[0, 0] += start
    # A sum that overflows 32 bits is right modulo 65536.
    if predictor == 1:
        out[:, 0] = np.cumsum(out[:, 0], dtype=np.int32)
        return np.cumsum(out, axis=1, dtype=np.int32).astype(np.uint16)
    if predictor in (2, 4):
        out[0 if predictor == 2 else slice(None)] = np.cumsum(
            out[0 if predictor == 2 else slice(None)], axis=-1, dtype=np.int32
        )
        return np.cumsum(out, axis=0, dtype=np.int32).astype(np.uint16)
    line = np.cumsum(out[0], dtype=np.int32) & 0xFFFF
    out[0] = line
    for row in out[1:]:
        row[0] += line[0]
        if predictor == 3:
            row[1:] += line[:-1]
        elif predictor == 5:
            row[1:] += (line[1:] - line[:-1]) >> 1
            np.cumsum(row, out=row)
        else:
            row[:] = _following_left(row.tolist(), line.tolist(), predictor)
        row &= 0xFFFF
        line = row
    return out.astype(np.uint16)


def _following_left(differences: list[int], above: list[int], predictor: int) -> list[int]:
    left = differences[0] & 0xFFFF
    out = [left]
    for difference, over, corner in zip(differences[1:], above[1:], above, strict=False):
        if predictor == 6:
            left = (over + ((left - corner) >> 1) + difference) & 0xFFFF
        else:
            left = (((left + over) >> 1) + difference) & 0xFFFF
        out.append(left)
    return out
