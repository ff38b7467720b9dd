"""Outlines of masks: polygons along pixel edges, with holes; filling them gives exactly the mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.masks.regions import components
from models.masks.rle import Rle

Ints = NDArray[np.int64]
Ring = list[tuple[int, int]]
"""Corners (x, y) in order; the last is joined to the first. Pixel (x, y) covers x to x+1 and y to y+1."""


@dataclass(slots=True)
class Polygon:
    """One connected part of a mask (pixels share edges, not only corners) and its holes.

    The outer ring is clockwise on an image with y down, which in numbers is the counter-clockwise outer ring of
    RFC 7946; holes run the other way. A ring meets no corner twice; holes may touch rings at corners.
    """

    outer: Ring = field(default_factory=list)
    holes: list[Ring] = field(default_factory=list)


def polygons(rle: Rle) -> list[Polygon]:
    """The parts of a mask, in the order of their first pixel down the columns."""
    columns, tops, bottoms = rle.column_runs()
    if not len(columns):
        return []
    heads = columns * rle.height
    labels = components(heads + tops, heads + bottoms, rle.height, diagonal=False)
    ys = np.concatenate([tops, bottoms])
    ends_at = np.concatenate([columns + 1, columns])
    successors = _successors(columns, tops, bottoms, labels, rle.height)
    order, firsts = _cycles(successors)

    from_y, to_y = ys[order], ys[successors[order]]
    turns = from_y != to_y  # at each, the outline goes from one corner up or down to another
    x = ends_at[order][turns]
    corners = np.stack([x, from_y[turns], x, to_y[turns]], axis=1).reshape(-1, 2)
    # Each ring begins with the last corner written for it: the one at the left of its first edge.
    lasts = 2 * np.add.reduceat(turns, firsts, dtype=np.int64).cumsum()
    pairs = list(zip(*corners.T.tolist(), strict=True))
    # The area under the bottom edges minus that under the top edges is negative for a hole.
    outer = np.add.reduceat(np.where(order < len(columns), -from_y, from_y), firsts) > 0

    parts: dict[int, Polygon] = {}
    begin = 0
    for label, last, is_outer in zip(labels[order[firsts]].tolist(), lasts.tolist(), outer.tolist(), strict=True):
        ring = [pairs[last - 1], *pairs[begin : last - 1]]
        begin = last
        part = parts.setdefault(label, Polygon())
        if is_outer:
            part.outer = ring
        else:
            part.holes.append(ring)
    return list(parts.values())


def to_polygons(rle: Rle) -> list[dict[str, Any]]:
    """``[{"outer": [x0, y0, x1, y1, ...], "holes": [[...], ...]}]``: flat lists that are not closed, as in COCO."""
    return [{"outer": _flat(part.outer), "holes": [_flat(hole) for hole in part.holes]} for part in polygons(rle)]


def to_geojson(rle: Rle) -> dict[str, Any]:
    """A GeoJSON geometry in pixels, y down: MultiPolygon, or Polygon where there is one part. Rings are closed."""
    parts = [[_closed(part.outer), *map(_closed, part.holes)] for part in polygons(rle)]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _successors(columns: Ints, tops: Ints, bottoms: Ints, labels: Ints, height: int) -> Ints:
    """[2n]: the edge that follows each edge along the outlines, with the mask on the right side.

    Edge i, for n runs, is the top of run i, one pixel long, from left to right; edge n + i its bottom, to the left.
    """
    n = len(columns)
    # Turned by half a circle, bottoms are tops; run i is run n - 1 - i then.
    turned = _after_tops(
        -columns[::-1] + columns[-1], height - bottoms[::-1], height - tops[::-1], labels[::-1], height
    )
    after_bottoms = (n - 1 - turned[::-1] % n) + np.where(turned[::-1] < n, n, 0)
    return np.concatenate([_after_tops(columns, tops, bottoms, labels, height), after_bottoms])


def _after_tops(columns: Ints, tops: Ints, bottoms: Ints, labels: Ints, height: int) -> Ints:
    """[n]: the edge after the top of each run. Runs that touch at a corner are joined there if they are one part."""
    n = len(columns)
    own = np.arange(n)
    stride = height + 2
    # The first run of the next column that ends at or below the corner, with two more behind the last column's.
    beside = np.searchsorted(columns * stride + bottoms, (columns + 1) * stride + tops)
    padded = [np.concatenate([values, [-9, -9]]) for values in (columns, tops, bottoms, labels)]
    next_column, next_top, next_bottom, next_label = (values[beside] for values in padded)
    there = next_column == columns + 1
    level = there & (next_top == tops)
    meets = there & (next_bottom == tops)  # at the corner, from above
    up = there & np.where(meets, next_label == labels, next_top < tops)

    # Upwards, until the run beside begins or the run above in this column ends.
    above = own - 1  # for the first run the last padding, in no column
    roof = (padded[0][above] == columns) & (
        (padded[2][above] > next_top) | ((padded[2][above] == next_top) & (padded[3][above] == next_label))
    )
    # Downwards, until this run ends or the next run beside begins.
    below = beside + meets
    begins = padded[0][below] == columns + 1
    floor = begins & ((padded[1][below] < bottoms) | ((padded[1][below] == bottoms) & (padded[3][below] == labels)))
    upwards = np.where(roof, n + above, beside)
    downwards = np.where(floor, below, n + own)
    return np.where(level, beside, np.where(up, upwards, downwards))


def _cycles(successors: Ints) -> tuple[Ints, Ints]:
    """The edges ring after ring, each ring from its leftmost top, and the index at which each ring begins."""
    following = successors.tolist()
    order: list[int] = []
    firsts: list[int] = []
    for start in range(len(following) // 2):  # every ring has a top
        edge = following[start]
        if edge < 0:
            continue
        firsts.append(len(order))
        edge = start
        while (after := following[edge]) >= 0:
            order.append(edge)
            following[edge] = -1
            edge = after
    return np.array(order), np.array(firsts)


def _flat(ring: Ring) -> list[int]:
    return [value for corner in ring for value in corner]


def _closed(ring: Ring) -> list[list[int]]:
    return [list(corner) for corner in (*ring, ring[0])]
