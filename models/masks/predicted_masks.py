"""Masks that Segment Anything predicts: of prompts, and automatic ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.masks.rle import Rle


@dataclass(frozen=True, slots=True)
class PromptMask:
    """One mask of a prompt, at the size of the image.

    ``predicted_iou``: the network's estimate, not bounded by 1. ``stability_score``: 0-1; None for a mask without a
    logit above threshold - offset. ``logits``: float32 [256, 256] that a later prompt can refine, if requested.
    """

    rle: Rle
    predicted_iou: float
    stability_score: float | None
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class MaskUpdate:
    """Progress of automatic masks, as a share 0-1 and provisional masks.

    ``found``: new masks, each with a number; ``dropped``: numbers of earlier ones that a better mask suppressed.
    """

    found: tuple[tuple[int, AutoMask], ...]
    dropped: tuple[int, ...]
    progress: float


@dataclass(frozen=True, slots=True)
class AutoMask:
    """One automatic mask. ``point``: x, y of its grid point; ``crop_box``: x, y, width, height of its crop; both in
    pixels of the image. ``stability_score``: see PromptMask; never None where the request has a threshold for it."""

    rle: Rle
    predicted_iou: float
    stability_score: float | None
    point: tuple[float, float]
    crop_box: tuple[int, int, int, int]
