"""Images of many masks, each in a colour of its own, alone or over the photo."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.masks.rle import Rle

Painted = NDArray[np.unsignedinteger[Any]]
"""[height, width]: 1 + the index of the topmost mask of each pixel, 0 where there is none."""

_BAND_PIXELS = 1 << 21
# Steps of the golden ratio around the hue circle: neighbouring masks differ, however many there are.
_GOLDEN = 0.618033988749895


def colours(count: int) -> NDArray[np.uint8]:
    """uint8 [count + 1, 3], RGB: black for no mask, then one colour per mask."""
    rows = [(0.0, 0.0, 0.0)]
    for index in range(count):
        rows.append(colorsys.hsv_to_rgb((0.05 + index * _GOLDEN) % 1.0, 0.55 + 0.4 * (index % 3) / 2, 0.95))
    return np.round(np.array(rows) * 255).astype(np.uint8)


def paint(masks: Sequence[Rle], height: int, width: int, check: Callable[[], None] = lambda: None) -> Painted:
    """uint16 (uint32 from 65,536 masks on) [height, width]: 1 + the index of the topmost mask, 0 where there is none.

    Later masks lie over earlier ones: with the largest first, parts show on top of their wholes. ``check`` is called
    before each mask and may raise to stop.
    """
    # Column by column, as runs are.
    flat: Painted = np.zeros(height * width, np.uint16 if len(masks) < 1 << 16 else np.uint32)
    for number, rle in enumerate(masks, 1):
        check()
        starts, ends = rle.runs()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            flat[start:end] = number
    painted: Painted = flat.reshape(width, height).T
    return painted


def color_image(painted: Painted, count: int) -> Image.Image:
    """An RGB image of ``count`` masks in their colours, black where there is no mask."""
    palette = colours(count)
    result = Image.new("RGB", painted.shape[::-1])
    for top, band in _bands(painted):
        result.paste(Image.fromarray(palette[band]), (0, top))
    return result


def overlay_image(painted: Painted, color: Image.Image, rgb: Image.Image, opacity: float = 0.5) -> Image.Image:
    """``rgb`` tinted with the ``color`` image where there are masks, with a light line along their borders."""
    result = rgb.copy()
    for top, band in _bands(painted):
        box = (0, top, rgb.width, top + len(band))
        tinted = Image.blend(rgb.crop(box), color.crop(box), opacity)
        result.paste(tinted, box, Image.fromarray((band > 0) * np.uint8(255)))
        line = np.zeros(band.shape, np.bool_)
        line[:, 1:] |= band[:, 1:] != band[:, :-1]
        above = painted[max(top - 1, 0) : top + len(band) - 1] if top else band[:-1]
        line[0 if top else 1 :] |= band[0 if top else 1 :] != above
        result.paste((255, 255, 255), box, Image.fromarray(line * np.uint8(190)))
    return result


def _bands(painted: Painted) -> Iterator[tuple[int, Painted]]:
    """Slices of a few megapixels, each with the index of its first row."""
    rows = max(1, _BAND_PIXELS // painted.shape[1])
    for top in range(0, len(painted), rows):
        yield top, np.ascontiguousarray(painted[top : top + rows])
