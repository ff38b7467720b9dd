"""An encoder of JPEG Lossless, sample by sample as ITU-T T.81 words it (annexes C, F and H)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHORT_FIRST = [0, 1, 5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0], list(range(17))
LONG = [0, 0, 0, 0, 17, *[0] * 11], list(range(16, -1, -1))
Table = tuple[list[int], list[int]]


def codes(table: Table) -> dict[int, str]:
    """The code of each category. Annex C: codes of one length count upwards, and a bit is added for the next length."""
    found: dict[int, str] = {}
    code, symbols = 0, iter(table[1])
    for length, count in enumerate(table[0], start=1):
        for _ in range(count):
            found[next(symbols)] = format(code, f"0{length}b")
            code += 1
        code *= 2
    return found


def prediction(plane: Any, row: int, column: int, top: int, predictor: int, start: int) -> int:
    """H.1.2.1; ``top``: the first row of the restart interval."""
    if row == top:
        return start if column == 0 else plane[row][column - 1]
    if column == 0:
        return int(plane[row - 1][0])
    a, b, c = plane[row][column - 1], plane[row - 1][column], plane[row - 1][column - 1]
    return int((0, a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1)[predictor])


def coded(difference: int, words: dict[int, str]) -> str:
    """H.1.2.2: the category, and which of its differences it is."""
    difference = (difference + 32767) % 65536 - 32767  # -32767 to 32768
    category = abs(difference).bit_length()
    if category in (0, 16):
        return words[category]
    return words[category] + format(difference if difference > 0 else difference + 2**category - 1, f"0{category}b")


def packed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits or "0", 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def encode(
    pixels: NDArray[Any],
    *,
    predictor: int = 1,
    precision: int = 16,
    transform: int = 0,
    restart_lines: int = 0,
    tables: tuple[Table, ...] = (SHORT_FIRST,),
    interleaved: bool = True,
) -> bytes:
    """The frame of ``pixels`` [height, width] or [height, width, components]; lower ``transform`` bits are lost."""
    planes = [(p >> transform).astype(int).tolist() for p in np.atleast_3d(pixels).transpose(2, 0, 1)]
    height, width, count = len(planes[0]), len(planes[0][0]), len(planes)
    tables = tuple(tables[i % len(tables)] for i in range(count))
    out = b"\xff\xd8"
    for number, table in enumerate(tables):
        out += segment(0xC4, bytes([number, *table[0], *table[1]]))
    components = b"".join(bytes([i + 1, 0x11, 0]) for i in range(count))
    out += segment(0xC3, struct.pack(">BHHB", precision, height, width, count) + components)
    if restart_lines:
        out += segment(0xDD, struct.pack(">H", restart_lines * width))
    for scan in [range(count)] if interleaved else [[i] for i in range(count)]:
        chosen = b"".join(bytes([i + 1, i << 4]) for i in scan)
        out += segment(0xDA, bytes([len(scan)]) + chosen + bytes([predictor, 0, transform]))
        step = restart_lines or height
        for number, top in enumerate(range(0, height, step)):
            if number:
                out += bytes([0xFF, 0xD0 + (number - 1) % 8])
            bits = []
            for row in range(top, min(top + step, height)):
                for column in range(width):
                    for i in scan:
                        start = 1 << (precision - transform - 1)
                        guess = prediction(planes[i], row, column, top, predictor, start)
                        bits.append(coded(planes[i][row][column] - guess, codes_of(tables[i])))
            out += packed("".join(bits))
    return out + b"\xff\xd9"


def codes_of(table: Table) -> dict[int, str]:
    key = (tuple(table[0]), tuple(table[1]))
    if key not in _BUILT:
        _BUILT[key] = codes(table)
    return _BUILT[key]


_BUILT: dict[Any, dict[int, str]] = {}
