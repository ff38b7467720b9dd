"""Results of models: frozen values that responses are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # schemas import this module, and BentoML's supervising process the schemas: it needs no NumPy
    import numpy as np
    from numpy.typing import NDArray

ValueRange = tuple[float, float]
"""The pixel values that become black and white, 0 and 255."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class of a classification; ``confidence`` 0-1."""

    class_index: int
    class_name: str
    confidence: float


@dataclass(frozen=True, slots=True)
class ClassArea:
    """One class that occurs in a segmentation. ``color``: RGB 0-255; ``share``: of all pixels, 0-1."""

    class_index: int
    class_name: str
    color: tuple[int, int, int]
    pixels: int
    share: float


@dataclass(frozen=True, slots=True)
class Segmentation:
    """``class_map``: uint8 [height, width], the class index of each pixel of the image.

    ``classes``: those that occur, most pixels first. ``palette``: uint8 [classes, 3], RGB.
    """

    class_map: NDArray[np.uint8]
    classes: tuple[ClassArea, ...]
    palette: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An array that a response can hold: ``shape`` for one image, -1 where the size depends on the image.

    ``usual``: it is returned where a request names no outputs.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    usual: bool = True


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of the steps of one request.

    ``queue_ms``: from arrival at the runner until a thread took it. ``inference_ms``: the run of the network, for the
    whole batch of ``batch_size`` images. ``prepare_ms``, ``finish_ms``: from bytes to the network's input, and from its
    output to the result; 0 where not measured.
    """

    queue_ms: float
    inference_ms: float
    batch_size: int
    prepare_ms: float = 0.0
    finish_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Size in pixels of the image after its EXIF orientation was applied, and the MIME type of its bytes.

    ``value_range``: the pixel values that became black and white; None where more than a range decides, as in DICOM.
    """

    width: int
    height: int
    mime_type: str
    value_range: tuple[float, float] | None = None
