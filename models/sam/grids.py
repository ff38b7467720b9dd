"""Where automatic masks are asked for: point grids, crops, and frames between which coordinates are moved.

The numbers are those of segment_anything (``utils/amg.py``, ``utils/transforms.py``), integer truncations included.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ekiben.errors import BadInput

Box = tuple[int, int, int, int]


def point_grid(n: int) -> NDArray[np.float64]:
    """[n * n, 2]: x, y in 0-1, the centres of n x n equal cells; x runs fastest."""
    offset = 1 / (2 * n)
    side = np.linspace(offset, 1 - offset, n)
    return np.stack([np.tile(side, n), np.repeat(side, n)], axis=-1)


def layer_grids(points_per_side: int, layers: int, downscale: int) -> list[NDArray[np.float64]]:
    """A grid for the whole image and one for the crops of each layer, each ``downscale`` times coarser.

    BadInput where a layer would be left without points.
    """
    sides = [int(points_per_side / downscale**layer) for layer in range(layers + 1)]
    if min(sides) < 1:
        raise BadInput(f"{points_per_side} points a side leave none in layer {sides.index(0)} of the crops")
    return [point_grid(side) for side in sides]


def crop_boxes(height: int, width: int, layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """Box (left, top, right, bottom; the last two exclusive) and layer of each crop; the whole image is layer 0.

    Layer i has 2^i x 2^i crops, downwards first. Neighbours overlap by ``overlap_ratio`` of the image's shorter
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
    """[N]: which masks the crop seems to cut: a side within ``atol`` of the crop's, but not of the image's own.

    ``boxes`` [N, 4] xyxy in the crop; ``crop_box`` in the image; ``frame``: the image's width and height.
    """
    left, top = crop_box[:2]
    moved = (np.asarray(boxes).reshape(-1, 4) + np.array([left, top, left, top])).astype(np.float32)
    near_crop = np.abs(moved - np.array(crop_box, np.float32)) <= atol
    near_image_edge = np.abs(moved - np.array([0, 0, *size], np.float32)) <= atol
    return np.asarray((near_crop & ~near_image_edge).any(axis=1))


def longest_side_shape(height: int, width: int, target: int = 1024) -> tuple[int, int]:
    """Height and width with the longer side ``target``, halves rounded up. At least 1: the reference fails there."""
    scale = target * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def to_input_coordinates(points: ArrayLike, original: tuple[int, int], resized: tuple[int, int]) -> NDArray[np.float64]:
    """``points`` [..., 2] (x, y) of an image of ``original`` (height, width) in one of ``resized`` (height, width).

    Each axis by its own ratio, as the sides were rounded.
    """
    ratios = np.array([resized[1] / original[1], resized[0] / original[0]])
    return np.asarray(np.asarray(points, np.float64) * ratios)
