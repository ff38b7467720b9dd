"""Answers: frozen values, as a family gives them and every door words them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassScore:
    class_index: int
    class_name: str
    confidence: float


@dataclass(frozen=True, slots=True)
class ClassArea:
    """One class that occurs in a segmentation. ``share`` is of all pixels, 0-1."""

    class_index: int
    class_name: str
    color: tuple[int, int, int]
    pixels: int
    share: float


@dataclass(frozen=True, slots=True)
class Segmentation:
    """``class_map``: uint8 [height, width] of the image, the class index per pixel.

    ``classes`` holds the classes that occur, most pixels first. ``palette``: uint8 [classes, 3], RGB.
    """

    class_map: NDArray[np.uint8]
    classes: tuple[ClassArea, ...]
    palette: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An array that can be answered: ``shape`` of one image, -1 where it follows the image. ``usual``: it is
    answered where nothing is said of outputs."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    usual: bool = True


@dataclass(frozen=True, slots=True)
class Timing:
    """``queue_ms``: from arrival at the runner until a slot took it. ``inference_ms``: the network's run, of the
    whole batch it was in. ``batch_size``: images in that batch. ``prepare_ms``, ``finish_ms``: from bytes to the
    network's input, from its output to the answer; 0 where nobody took the time."""

    queue_ms: float
    inference_ms: float
    batch_size: int
    prepare_ms: float = 0.0
    finish_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Pixels of the image as the user sees it (EXIF-turned)."""

    width: int
    height: int
    mime_type: str
