"""Volumes: the interface that NIfTI and DICOM files share, and the mapping of values to 8-bit levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadImage, TooLarge, UnsupportedImage
from models.limits import MAX_PIXELS, MAX_VOLUME_BYTES

PERCENTILES: Final = (0.5, 99.5)
"""Percentiles of the values that become black and white where a file does not define these."""

_BAND_PIXELS = 1 << 20  # computed at a time

Values = NDArray[np.number[Any]]


class Volume(ABC):
    """An image of ``depth`` slices of ``height`` x ``width`` pixels; a single image has one slice.

    ``affine``: float64 [4, 4], from array indices to millimetres, as NIfTI has it; None where the file has none.
    ``pixel_spacing``: millimetres from row to row and from column to column. ``slice_axis``: the axis of the file's
    own array that counts slices. Slices are read from the file on request; it stays open until ``close()``, and one
    thread may read at a time.
    """

    depth: int
    height: int
    width: int
    affine: NDArray[np.float64] | None
    pixel_spacing: tuple[float, float] | None
    slice_axis: int

    @abstractmethod
    def slice(self, index: int) -> Image.Image:
        """Slice ``index`` as 8-bit RGB. IndexError outside 0 to depth - 1; BadImage where the file is damaged."""

    @abstractmethod
    def values(self, index: int) -> NDArray[np.integer[Any]]:
        """The values of a slice, such as the labels of a mask: integers [height, width].

        IndexError; BadImage where a value is not a whole number.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def checked(self, index: int) -> int:
        """``index`` itself. IndexError outside 0 to depth - 1."""
        if not 0 <= index < self.depth:
            raise IndexError(f"slice {index} of {self.depth}")
        return index


def check_size(kind: str, depth: int, height: int, width: int, pixel_bytes: int) -> None:
    """BadImage for no pixels, TooLarge beyond models/limits.py. ``pixel_bytes``: of one unpacked pixel."""
    if min(depth, height, width) < 1:
        raise BadImage(f"the {kind} has no pixels ({depth} slices of {width} x {height})")
    if height * width > MAX_PIXELS:
        raise TooLarge(f"a slice of the {kind} is {width} x {height}; at most {MAX_PIXELS} pixels are accepted")
    if (size := depth * height * width * pixel_bytes) > MAX_VOLUME_BYTES:
        raise TooLarge(f"the {kind} unpacks to {size} bytes; at most {MAX_VOLUME_BYTES} are accepted")


def levels(values: Values, low: float, high: float) -> NDArray[np.uint8]:
    """uint8 in the shape of ``values``: up to ``low`` 0, from ``high`` on 255, linear between; NaN is 0."""
    out = np.empty(values.shape, np.uint8)
    # Half of the range of a double, so that high - low is finite too.
    low, high = float(np.clip(low, -8e307, 8e307)), float(np.clip(high, -8e307, 8e307))
    for band in bands(values):
        part = np.nan_to_num(values[band].astype(np.float64), nan=low, posinf=high, neginf=low)
        part = np.clip(part, low, high)
        share = (part - low) / (high - low) if high > low else np.zeros_like(part)
        out[band] = np.rint(share * 255)
    return out


def bands(values: Values) -> list[slice]:
    """Slices of rows to compute one after the other: a large slice in doubles would take many times its size."""
    rows = max(1, _BAND_PIXELS // max(1, values[:1].size))
    return [slice(top, top + rows) for top in range(0, len(values), rows)]


def spread(values: Values) -> tuple[float, float]:
    """The PERCENTILES of the finite ``values``, or their extremes if these are equal; (0, 0) where none is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, PERCENTILES)
    if low == high:  # a few bright pixels on a uniform background
        low, high = finite.min(), finite.max()
    return float(low), float(high)


def whole(values: Values, kind: str) -> NDArray[np.integer[Any]]:
    """``values`` as integers. BadImage where one is not a whole number; ``kind``: the file, for the message."""
    if values.dtype.kind in "iu":
        return values  # type: ignore[return-value]
    if values.dtype.kind != "f":
        raise UnsupportedImage(f"a mask of {values.dtype} values is not read")
    finite = np.isfinite(values)
    if not finite.all() or (np.abs(values) > 2**31).any() or (values != np.rint(values)).any():
        wrong = values[~finite | (values != np.rint(values))]
        example = f" (it has {float(wrong.flat[0]):g})" if wrong.size else ""
        raise BadImage(f"the {kind} is no mask: its values are not whole numbers{example}")
    return values.astype(np.int64)


def grey(plane: NDArray[np.uint8]) -> Image.Image:
    """The RGB image of grey levels uint8 [height, width]."""
    return Image.fromarray(np.ascontiguousarray(plane)).convert("RGB")
