"""Masks as answers: of a prompt, and automatic ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.masks.rle import Rle


@dataclass(frozen=True, slots=True)
class PromptMask:
    """One mask that answers a prompt, at the image's size. ``predicted_iou`` is the network's own guess and not
    bounded by 1. ``stability_score``: None for a mask that is empty at any threshold. ``logits``: float32
    [256, 256] to refine from, where they were asked for."""

    rle: Rle
    predicted_iou: float
    stability_score: float | None
    logits: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class MaskUpdate:
    """While automatic masks are made: those that were ``found``, each with a number; the numbers of those that are
    ``dropped``, because a better one came; how far it is, 0-1."""

    found: tuple[tuple[int, AutoMask], ...]
    dropped: tuple[int, ...]
    progress: float


@dataclass(frozen=True, slots=True)
class AutoMask:
    """One automatic mask. ``point``: x, y of the grid point it answers; ``crop_box``: x, y, width, height of the crop
    it was found in, both in the image. ``stability_score``: as above; None only where no threshold was asked for."""

    rle: Rle
    predicted_iou: float
    stability_score: float | None
    point: tuple[float, float]
    crop_box: tuple[int, int, int, int]
