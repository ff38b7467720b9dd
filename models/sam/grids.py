"""Geometry of automatic masks: point grids, crops, and coordinates in the image and in the encoder's input.

The numbers are those of segment_anything (``utils/amg.py``, ``utils/transforms.py``), with its integer truncations.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ekiben.errors import BadInput

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the last two are exclusive."""


def point_grid(n: int) -> NDArray[np.float64]:
    """float64 [n * n, 2]: x, y in 0-1, the centres of n x n equal cells; x varies fastest."""
    offset = 1 / (2 * n)
    side = np.linspace(offset, 1 - offset, n)
    return np.stack([np.tile(side, n), np.repeat(side, n)], axis=-1)


def layer_grids(points_per_side: int, layers: int, downscale: int) -> list[NDArray[np.float64]]:
    """Grids [N, 2] for the whole image and for the crops of each layer, each ``downscale`` times coarser than the last.

    BadInput where a layer would have no points.
    """
    sides = [int(points_per_side / downscale**layer) for layer in range(layers + 1)]
    if min(sides) < 1:
        raise BadInput(f"{points_per_side} points a side leave none in layer {sides.index(0)} of the crops")
    return [point_grid(side) for side in sides]


def crop_boxes(height: int, width: int, layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """Box and layer of each crop; the whole image is layer 0.

    Layer i has 2^i x 2^i crops, column by column. Neighbours overlap by ``overlap_ratio`` of the image's shorter
    side in layer 1, by half of that in layer 2, and so on.
    """
    crops: list[tuple[Box, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / n))
        crop_width, crop_height = (math.ceil((overlap * (n - 1) + side) / n) for side in (width, height))
        lefts = [(crop_width - overlap) * i for i in range(n)]
        tops = [(crop_height - overlap) * i for i in range(n)]
        crops += [
            ((left, top, min(left + crop_width, width), min(top + crop_height, height)), layer)
            for left, top in product(lefts, tops)
        ]
    return crops


def near_crop_edge(boxes: ArrayLike, crop_box: Box, size: tuple[int, int], atol: float = 20.0) -> NDArray[np.bool_]:
    """bool [N]: masks that the crop seems to cut: a side is within ``atol`` pixels of the crop's, not of the image's.

    ``boxes`` [N, 4] xyxy in pixels of the crop; ``crop_box`` in the image; ``size``: width and height of the image.
    """
    left, top = crop_box[:2]
    moved = (np.asarray(boxes).reshape(-1, 4) + np.array([left, top, left, top])).astype(np.float32)
    near_crop = np.abs(moved - np.array(crop_box, np.float32)) <= atol
    near_image_edge = np.abs(moved - np.array([0, 0, *size], np.float32)) <= atol
    return np.asarray((near_crop & ~near_image_edge).any(axis=1))


def longest_side_shape(height: int, width: int, target: int = 1024) -> tuple[int, int]:
    """Height and width with the longer side ``target``, halves rounded up. At least 1, where the reference fails."""
    scale = target * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def to_input_coordinates(points: ArrayLike, original: tuple[int, int], resized: tuple[int, int]) -> NDArray[np.float64]:
    """Scale ``points`` [..., 2] (x, y) of an image of ``original`` (height, width) to ``resized`` (height, width).

    float64 [..., 2]; each axis by its own ratio, because the sides were rounded separately.
    """
    ratios = np.array([resized[1] / original[1], resized[0] / original[0]])
    return np.asarray(np.asarray(points, np.float64) * ratios)
