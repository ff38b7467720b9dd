"""Results of the operations: classes and class maps. All are immutable; ``raw`` has the whole response."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Raw = dict[str, Any]


@dataclass(frozen=True)
class ModelRef:
    """The model version that a request used."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class ImageRef:
    """The image of a request. ``id``: None when it was not stored. ``width``, ``height``: of the EXIF-turned image.

    ``range``: the pixel values that became black and white; empty where more than a range decides, as in DICOM.
    """

    id: str | None
    width: int
    height: int
    range: tuple[float, ...] = ()


@dataclass(frozen=True)
class Timing:
    """Times of a request on the server; ``batch_size``: of the inference that included it."""

    queue_ms: float
    inference_ms: float
    batch_size: int


@dataclass(frozen=True)
class Score:
    """A class with its confidence, 0-1."""

    class_index: int
    class_name: str
    confidence: float

    def __str__(self) -> str:
        return f"{self.class_name} {self.confidence:.1%}"


@dataclass(frozen=True)
class Result:
    """What all results have. ``id``: of the stored prediction; None when nothing was stored."""

    id: str | None
    model: ModelRef
    image: ImageRef
    timing: Timing
    raw: Raw = field(repr=False, compare=False, kw_only=True)


@dataclass(frozen=True)
class Classification(Result):
    """The best classes of an image. ``predictions``: highest confidence first."""

    predictions: tuple[Score, ...]

    @property
    def top(self) -> Score:
        """The class with the highest confidence."""
        return self.predictions[0]

    def __str__(self) -> str:
        return ", ".join(map(str, self.predictions))


@dataclass(frozen=True)
class Area:
    """A class in a segmentation. ``color``: RGB, 0-255. ``share``: of all pixels, 0-1."""

    class_index: int
    class_name: str
    color: tuple[int, ...]
    pixels: int
    share: float

    def __str__(self) -> str:
        return f"{self.class_name} {self.share:.1%}"


@dataclass(frozen=True)
class Segmentation(Result):
    """A segmentation. ``classes``: those that occur, most pixels first.

    ``artifacts``: URLs by kind (mask, color, overlay, ...). ``class_map``: uint8 [H, W], the class index of every
    pixel; None for a volume, and when it was not requested.
    """

    classes: tuple[Area, ...]
    artifacts: dict[str, str] | None = field(default=None, repr=False)
    class_map: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    def of(self, class_name: str) -> NDArray[np.bool_]:
        """bool [H, W]: the pixels of a class; none when it does not occur. Raises ValueError without a class map."""
        if self.class_map is None:
            raise ValueError("there is no class map: it was not asked for, or this is a volume")
        index = next((area.class_index for area in self.classes if area.class_name == class_name), -1)
        return np.asarray(self.class_map == index)

    def to_image(self) -> Image.Image:
        """The class map in the colours of the classes, RGB. Raises ValueError without a class map."""
        if self.class_map is None:
            raise ValueError("there is no class map: it was not asked for, or this is a volume")
        palette = np.zeros((256, 3), np.uint8)
        for area in self.classes:
            palette[area.class_index] = area.color
        return Image.fromarray(palette[self.class_map])

    def __str__(self) -> str:
        return ", ".join(map(str, self.classes))

    def _repr_png_(self) -> bytes | None:
        return png_of(self.to_image()) if self.class_map is not None else None


def png_of(image: Image.Image) -> bytes:
    """The image as PNG."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
