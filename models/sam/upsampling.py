"""Upsampling of low-resolution logits to masks at the image's size, by the reference's two bilinear steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.sam.graphs import SIDE, Floats
from models.sam.grids import longest_side_shape

INPUT_SIDE = 1024  # of the encoder's input in pixels
_BAND_PIXELS = 1 << 19  # 2 MB of float32: a band and what is computed from it stay in the cache
_TAPS = 3  # two adjacent values of the 1024 lie between at most three of the 256


@dataclass(frozen=True, slots=True)
class MaskRegion:
    """A mask at full size that is False outside the region: ``mask`` bool [h, w] at row ``top``, column ``left``.

    ``stability``: pixels above threshold + offset as a share of those above threshold - offset; None where there are
    none of the latter (the reference has NaN there).
    """

    mask: NDArray[np.bool_]
    top: int
    left: int
    stability: float | None


_NOTHING = MaskRegion(np.zeros((1, 1), np.bool_), 0, 0, None)


class Upsampler:
    """Enlarges logits to one size of image (or crop). Holds constants only, so it is thread-safe.

    The reference (``modeling/sam.py::postprocess_masks``) enlarges 256 x 256 to 1024 x 1024, cuts the padding off
    and resizes to the image, both bilinearly with ``align_corners=False`` and no antialiasing. Both steps are linear
    and separable, so along each axis they are one sum of three neighbours with fixed weights, and the 1024 x 1024
    array is never made. The numbers agree with the reference to float32 rounding.

    Every output is a weighted mean of logits. Where all of those are at or below ``threshold - offset`` the pixel is
    neither in the mask nor counted for the stability, so only the region around the others is computed.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        resized = longest_side_shape(height, width)
        self._rows = _Axis(height, resized[0])
        self._columns = _Axis(width, resized[1])

    def full(self, logits: Floats) -> Floats:
        """All logits at full size: float32 [height, width]. For tests, and images of logits."""
        return self._enlarge(logits, 0, self.height, 0, self.width)

    def region(self, logits: Floats, *, offset: float = 1.0, threshold: float = 0.0) -> MaskRegion:
        """The mask where ``logits`` float32 [256, 256], enlarged, are above ``threshold``, and its stability."""
        reached = logits > min(threshold - offset, threshold)
        rows, columns = np.flatnonzero(reached.any(axis=1)), np.flatnonzero(reached.any(axis=0))
        if not rows.size:
            return _NOTHING
        top, bottom = self._rows.reach(int(rows[0]), int(rows[-1]))
        left, right = self._columns.reach(int(columns[0]), int(columns[-1]))
        if top >= bottom or left >= right:  # only in the padding, or between the pixels of a small image
            return _NOTHING
        mask = np.empty((bottom - top, right - left), np.bool_)
        inner = outer = 0
        across = self._columns.apply(np.ascontiguousarray(logits.T), left, right).T
        across = np.ascontiguousarray(across)
        step = max(1, _BAND_PIXELS // max(1, right - left))
        for first in range(top, bottom, step):
            last = min(first + step, bottom)
            band = self._rows.apply(across, first, last)
            np.greater(band, threshold, out=mask[first - top : last - top])
            counts = stability_counts(band, threshold, offset)
            inner, outer = inner + counts[0], outer + counts[1]
        return MaskRegion(mask, top, left, inner / outer if outer else None)

    def _enlarge(self, logits: Floats, top: int, bottom: int, left: int, right: int) -> Floats:
        across = np.ascontiguousarray(self._columns.apply(np.ascontiguousarray(logits.T), left, right).T)
        return self._rows.apply(across, top, bottom)


def stability_counts(logits: Floats, threshold: float = 0.0, offset: float = 1.0) -> tuple[int, int]:
    """Logits above ``threshold + offset``, and above ``threshold - offset``: stability is their quotient."""
    return int(np.count_nonzero(logits > threshold + offset)), int(np.count_nonzero(logits > threshold - offset))


class _Axis:
    """One axis of the two steps: output i is ``weights[i] @ logits[base[i] : base[i] + 3]``."""

    def __init__(self, size: int, resized: int) -> None:
        lower, upper, share = _bilinear(size, resized)  # the second step, from the resized image to the image
        first, second, part = _bilinear(INPUT_SIDE, SIDE)  # the first step, from 256 to 1024
        self.base = np.minimum(first[lower], SIDE - _TAPS)
        weights = np.zeros((size, _TAPS), np.float64)
        place = np.arange(size)
        for row, weight in ((lower, 1.0 - share), (upper, share)):
            np.add.at(weights, (place, first[row] - self.base), weight * (1.0 - part[row]))
            np.add.at(weights, (place, second[row] - self.base), weight * part[row])
        self.weights = weights.astype(np.float32)

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """The outputs (half-open) that any of the inputs ``first`` to ``last`` takes part in."""
        start = int(np.searchsorted(self.base, first - _TAPS + 1, side="left"))
        return start, int(np.searchsorted(self.base, last, side="right"))

    def apply(self, rows: Floats, first: int, last: int) -> Floats:
        """float32 [last - first, n]: outputs ``first`` to ``last`` along the first axis of ``rows`` [256, n]."""
        base, weights = self.base[first:last], self.weights[first:last]
        result = rows[base]
        result *= weights[:, :1]
        term = np.empty_like(result)
        for tap in range(1, _TAPS):
            np.take(rows, base + tap, axis=0, out=term, mode="clip")
            term *= weights[:, tap : tap + 1]
            result += term
        return result


def _bilinear(size: int, source: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each of ``size`` outputs the two inputs of ``source`` it lies between, and the second one's share.

    torch's ``interpolate(mode="bilinear", align_corners=False)``, in float32 as there
    (``aten/src/ATen/native/UpSample.h``).
    """
    scale = np.float32(source) / np.float32(size)
    # Rounded once, as the fused multiply-add in torch's kernel rounds: twice is wrong by 1e-4 of a steep logit.
    position = (np.float64(scale) * (np.arange(size) + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0.0))
    lower = np.minimum(position.astype(np.int64), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    share = np.clip(position - lower.astype(np.float32), 0.0, 1.0).astype(np.float32)
    return lower, upper, share
