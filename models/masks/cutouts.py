"""Cut-outs: an object of an image as RGBA with a transparent background."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from models.masks.cut_style import CutStyle
from models.masks.rle import Rle, from_edges


def place(rle: Rle, style: CutStyle) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the cut-out in pixels of the image; x1 and y1 are exclusive."""
    if style.frame == "full":
        return 0, 0, rle.width, rle.height
    x0, y0, x1, y1 = rle.box_xyxy
    pad = style.padding_px
    return max(0, x0 - pad), max(0, y0 - pad), min(rle.width, x1 + 1 + pad), min(rle.height, y1 + 1 + pad)


def cut(rgb: Image.Image, rle: Rle, style: CutStyle) -> Image.Image:
    """An RGBA image: the colours of ``rgb``, alpha 255 inside the mask and 0 outside, between them where feathered.

    Under alpha 0 the colours are black, so that what was cut away is not in the file.
    """
    box = place(rle, style)
    x0, y0, x1, y1 = box
    # The blur needs pixels beyond the box, up to 3 deviations as in Pillow: the border of the box is not an edge.
    reach = math.ceil(3 * style.feather_px) + 3 if style.feather_px > 0 else 0
    left, top = max(0, x0 - reach), max(0, y0 - reach)
    near = part_of(rle, left, top, min(rle.width, x1 + reach), min(rle.height, y1 + reach))
    alpha = Image.fromarray(near.view(np.uint8) * np.uint8(255))
    if style.feather_px > 0:
        alpha = alpha.filter(ImageFilter.GaussianBlur(style.feather_px))
    alpha = alpha.crop((x0 - left, y0 - top, x1 - left, y1 - top))
    colour = rgb.crop(box)
    inside = alpha.point(lambda level: 255 if level else 0)
    result = Image.composite(colour, Image.new("RGB", colour.size), inside)
    result.putalpha(alpha)
    return result


def part_of(rle: Rle, left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    """bool [bottom - top, right - left]: this part of a mask, without decoding the rest."""
    columns, firsts, ends = rle.column_runs()
    firsts, ends = np.clip(firsts, top, bottom) - top, np.clip(ends, top, bottom) - top
    inside = (columns >= left) & (columns < right) & (firsts < ends)
    heads = (columns[inside] - left) * (bottom - top)
    edges = np.stack([heads + firsts[inside], heads + ends[inside]], axis=1).ravel()
    return from_edges(edges, bottom - top, right - left).decode()
