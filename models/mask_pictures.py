"""Pictures of many masks: each in a colour of its own, alone or over the photo."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.rle import Rle

_GOLDEN = (
    0.618033988749895  # steps of the golden ratio around the hue circle: neighbours differ, however many there are
)


def colours(count: int) -> NDArray[np.uint8]:
    """uint8 [count + 1, 3]: black for no mask, then one colour per mask."""
    rows = [(0.0, 0.0, 0.0)]
    for index in range(count):
        rows.append(colorsys.hsv_to_rgb((0.05 + index * _GOLDEN) % 1.0, 0.55 + 0.4 * (index % 3) / 2, 0.95))
    return np.round(np.array(rows) * 255).astype(np.uint8)


def paint(masks: Sequence[Rle], height: int, width: int) -> NDArray[np.uint32]:
    """uint32 [height, width]: 1 + the index of the mask that is on top, 0 where there is none.

    Later masks lie over earlier ones: with the largest first, parts are seen on their wholes.
    """
    flat = np.zeros(height * width, np.uint32)  # column by column, as runs are
    for number, rle in enumerate(masks, 1):
        ends = np.cumsum(rle.counts, dtype=np.int64)
        for start, end in zip(ends[0::2].tolist(), ends[1::2].tolist(), strict=False):
            flat[start:end] = number
    return flat.reshape(width, height).T


def color_picture(painted: NDArray[np.uint32], count: int) -> Image.Image:
    """RGB, black where there is no mask."""
    return Image.fromarray(colours(count)[painted])


def overlay_picture(painted: NDArray[np.uint32], count: int, rgb: Image.Image, opacity: float = 0.5) -> Image.Image:
    """The photo, tinted where there are masks, with a light line where one ends."""
    tinted = Image.blend(rgb, color_picture(painted, count), opacity)
    result = Image.composite(tinted, rgb, Image.fromarray(((painted > 0) * np.uint8(255)).astype(np.uint8)))
    line = np.zeros(painted.shape, np.bool_)
    line[:, 1:] |= painted[:, 1:] != painted[:, :-1]
    line[1:] |= painted[1:] != painted[:-1]
    result.paste((255, 255, 255), mask=Image.fromarray((line * np.uint8(190)).astype(np.uint8)))
    return result
