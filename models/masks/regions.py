"""Small regions of masks: holes are filled and islands removed, on runs instead of pixels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.masks.rle import Rle, from_edges

Runs = NDArray[np.int64]
"""Positions column * height + row of runs, each within one column, ascending."""


def remove_small_regions(rle: Rle, min_area: float, mode: Literal["holes", "islands"]) -> tuple[Rle, bool]:
    """The mask without its holes, or islands, of fewer than ``min_area`` pixels, and whether it changed.

    As in segment_anything (``utils/amg.py::remove_small_regions``): regions are 8-connected, holes are regions of unset
    pixels, and where all islands are small the largest stays.
    """
    starts, ends = columns_of(rle.inverse() if mode == "holes" else rle)
    if not starts.size:
        return rle, False
    labels = components(starts, ends, rle.height)
    areas = np.bincount(labels, weights=(ends - starts).astype(np.float64))
    present = np.unique(labels)
    small = present[areas[present] < min_area]
    if not small.size:
        return rle, False
    if mode == "holes":
        filled = np.isin(labels, small)
        own_starts, own_ends = columns_of(rle)
        starts, ends = np.concatenate((own_starts, starts[filled])), np.concatenate((own_ends, ends[filled]))
        order = np.argsort(starts, kind="stable")
        return from_runs(starts[order], ends[order], rle.height, rle.width), True
    if len(small) == len(present):
        small = small[small != _largest(labels, areas, starts, rle)]
    kept = ~np.isin(labels, small)
    return from_runs(starts[kept], ends[kept], rle.height, rle.width), True


def _largest(labels: NDArray[np.int64], areas: NDArray[Any], starts: Runs, rle: Rle) -> int:
    """The label of the largest region; of equal ones the first in OpenCV's order, which is rows of 2 x 2 blocks."""
    column, row = np.divmod(starts, rle.height)
    place = np.where(areas[labels] == areas.max(), (row // 2) * rle.width + column // 2, rle.height * rle.width)
    return int(labels[np.argmin(place)])


def components(starts: Runs, ends: Runs, height: int, *, diagonal: bool = True) -> NDArray[np.int64]:
    """int64 label of each run: the lowest index of a run in its connected region. ``diagonal``: corners connect too."""
    column, first = np.divmod(starts, height)
    stride = (
        height + 2
    )  # one row more at either end, so that runs of neighbouring columns are never adjacent in position
    begin = column * stride + first
    end = begin + (ends - starts)
    # Neighbours in the next column: those that end below where this run starts and start above its end.
    low = np.searchsorted(end, begin + stride, side="left" if diagonal else "right")
    high = np.searchsorted(begin, end + stride, side="right" if diagonal else "left")
    count = np.maximum(high - low, 0)
    left = np.repeat(np.arange(len(starts)), count)
    right = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    parent = np.arange(len(starts))
    while True:
        a, b = parent[left], parent[right]
        apart = a != b
        if not apart.any():
            return parent
        np.minimum.at(parent, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while True:
            above = parent[parent]
            if np.array_equal(above, parent):
                break
            parent = above
        left, right = left[apart], right[apart]


def columns_of(rle: Rle) -> tuple[Runs, Runs]:
    """Positions of the first pixel of each run and of the pixel after its last, split at the ends of columns."""
    columns, tops, bottoms = rle.column_runs()
    return columns * rle.height + tops, columns * rle.height + bottoms


def from_runs(starts: Runs, ends: Runs, height: int, width: int) -> Rle:
    """The mask of runs in ascending order; runs that touch are joined."""
    return from_edges(np.stack([starts, ends], axis=1).ravel(), height, width)
