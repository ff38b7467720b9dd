"""The range of pixel values that becomes black to white, where a pixel has more than 8 bits."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.results import ValueRange

BITS: Final = (8, 10, 12, 14, 16, 20, 24, 32)
"""Bits in use that are looked for: those of cameras, scanners and detectors."""

_SIGNED_BITS: Final = (7, 8, 10, 12, 14, 15, 20, 24, 31)  # besides the sign

BYTE: Final = (0.0, 255.0)
"""The range of 8-bit pixels."""

_BAND_PIXELS: Final = 1 << 20  # computed at a time


def range_of(values: NDArray[np.integer[Any]], declared: ValueRange | None = None) -> ValueRange:
    """The range of integer pixels: as ``declared`` by the file where that holds all values; else that of the fewest
    BITS that hold them.

    A 16-bit file of 12-bit values is shown from 0 to 4095. With negative values there is a sign besides: -1024 to 3071
    of a CT are shown from -4096 to 4095.
    """
    if values.size == 0:
        return BYTE
    low, high = int(values.min()), int(values.max())
    if declared is not None and declared[0] <= low and high <= declared[1] and declared[0] < declared[1]:
        return declared
    if low >= 0:
        return 0.0, float(next(2**bits for bits in BITS if high < 2**bits) - 1)
    half = next(2**bits for bits in _SIGNED_BITS if -(2**bits) <= low and high < 2**bits)
    return float(-half), float(half - 1)


def to_levels(values: NDArray[np.number[Any]], value_range: ValueRange) -> NDArray[np.uint8]:
    """uint8 in the shape of ``values``: 256 equal steps from low to high for integers, so that 12 bits lose their last
    four; linear and rounded for floating-point numbers. Outside the range 0 or 255; NaN is 0.
    """
    low, high = value_range
    whole = values.dtype.kind in "iub" and low == int(low) and high == int(high)
    out = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND_PIXELS // max(1, values[:1].size))
    for top in range(0, len(values), rows):
        band = values[top : top + rows]
        if whole:
            part = np.clip(band.astype(np.int64), int(low), int(high)) - int(low)
            out[top : top + rows] = part * 256 // (int(high) - int(low) + 1)
        else:
            share = (np.clip(np.nan_to_num(band.astype(np.float64), nan=low), low, high) - low) / (high - low)
            out[top : top + rows] = np.rint(share * 255)
    return out
