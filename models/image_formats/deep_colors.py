"""Colours of 16 bits, of which Pillow reads the high bytes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.image_formats import png

_ALL_IN_USE: Final = 64  # a high byte from which on the value is 2 ** 14 or more


def deep_colors(
    image: Image.Image, data: bytes, reopen: Callable[[], Image.Image], *, all: bool = False
) -> NDArray[np.uint16] | None:
    """The values [height, width, 3] of RGB, [height, width] of grey with alpha; None where the high bytes, which are
    the loaded ``image``, say enough: all 16 bits are in use. ``all``: never None for that. ``reopen``: the image before
    its pixels are read."""
    if image.format == "PNG" and png.header(data)[1] == png.GREY_WITH_ALPHA:
        channels = 1  # Pillow reads it as RGBA
    else:
        channels = 3 if image.getbands()[:3] == ("R", "G", "B") else 0
    high = np.asarray(image)[:, :, :channels] if channels else None
    if high is None or not high.size or (not all and int(high.max()) >= _ALL_IN_USE):
        return None
    if channels == 1:  # a PNG of grey with alpha: 32 bits a pixel, as 8-bit RGB with alpha has
        low = np.asarray(Image.open(io.BytesIO(png.as_rgba(data)), formats=("PNG",)))[:, :, 1:2]
    else:
        again: Any = reopen()
        again.tile = [tile._replace(args=_other_byte(tile.args)) for tile in again.tile]
        low = np.asarray(again)[:, :, :channels]
    values: NDArray[np.uint16] = high.astype(np.uint16) << 8 | low
    return values[:, :, 0] if channels == 1 else values


def _other_byte(arguments: Any) -> Any:
    """The arguments of Pillow's decoder, for the other byte of 16 bits."""
    if isinstance(arguments, tuple):
        return (_other_byte(arguments[0]), *arguments[1:])
    native = ";16L" if sys.byteorder == "little" else ";16B"
    mode = arguments.replace(";16N", native)
    return mode.replace(";16L", ";16B") if ";16L" in mode else mode.replace(";16B", ";16L")
