"""How an object is cut out; apart from the cutting, so that schemas need not import NumPy and Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CutoutExtent = Literal["box", "full"]


@dataclass(frozen=True, slots=True)
class CutStyle:
    """How an object is cut out.

    ``frame``: crop to the object's box, or keep the whole image. ``padding_px``: transparent pixels around the box,
    within the image. ``feather_px``: standard deviation of the edge's blur in pixels; 0 is a hard edge.
    """

    frame: CutoutExtent = "box"
    padding_px: int = 0
    feather_px: float = 0.0
