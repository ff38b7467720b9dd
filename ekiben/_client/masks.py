"""Results of Segment Anything: masks of prompts, automatic masks, and cut-outs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben._client.image_inputs import open_image
from ekiben._client.results import Result, png_of


@dataclass(frozen=True)
class Embedding:
    """How the image embedding was obtained. ``cached``: from an earlier request; ``encode_ms``: time of the encoder."""

    cached: bool
    encode_ms: float


@dataclass(frozen=True)
class Mask:
    """A mask. ``id``: for ``mask_input`` of a later prompt; None when its logits were not stored.

    ``predicted_iou``: estimate of the network, may exceed 1. ``area``: in pixels. ``bbox``: x, y, width, height in
    pixels. ``segmentation``: as sent by the server, uncompressed run lengths by default.
    """

    predicted_iou: float
    stability_score: float | None
    area: int
    bbox: tuple[int, ...]
    segmentation: Any = field(repr=False)
    id: str | None = None

    @cached_property
    def array(self) -> NDArray[np.bool_]:
        """bool [H, W], decoded on first access.

        Raises ValueError unless ``segmentation`` holds uncompressed run lengths.
        """
        return decode_rle(self.segmentation)

    def to_image(self) -> Image.Image:
        """A 1-bit image, white where the mask is set."""
        return Image.fromarray(self.array)

    def _repr_png_(self) -> bytes:
        return png_of(self.to_image())


@dataclass(frozen=True)
class PromptResult:
    """The masks of a prompt: three (whole, part, subpart) or one. Indexable."""

    prompt: int
    masks: tuple[Mask, ...]

    def __getitem__(self, number: int) -> Mask:
        return self.masks[number]

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def best(self) -> Mask:
        """The mask with the highest predicted IoU."""
        return max(self.masks, key=lambda mask: mask.predicted_iou)


@dataclass(frozen=True)
class Masks(Result):
    """Masks of prompts. ``results[p][m]``: mask ``m`` of prompt ``p``."""

    results: tuple[PromptResult, ...]
    embedding: Embedding

    @property
    def best(self) -> tuple[Mask, ...]:
        """Of each prompt the mask with the highest predicted IoU."""
        return tuple(result.best for result in self.results)


@dataclass(frozen=True)
class AutoMask(Mask):
    """An automatic mask. ``point_coords``: its grid points (x, y). ``crop_box``: x, y, width, height of its crop."""

    point_coords: tuple[tuple[float, ...], ...] = ()
    crop_box: tuple[int, ...] = ()


@dataclass(frozen=True)
class AutoMasks(Result):
    """Automatic masks, the largest first; they may overlap. ``parameters``: those that were used, defaults included."""

    masks: tuple[AutoMask, ...] = field(repr=False)
    embedding: Embedding
    parameters: dict[str, Any] = field(repr=False)
    artifacts: dict[str, str] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{len(self.masks)} masks"


@dataclass(frozen=True)
class FoundMask:
    """Event of ``stream_auto_masks``: a mask was found; it may be dropped later."""

    number: int
    mask: AutoMask


@dataclass(frozen=True)
class DroppedMask:
    """Event of ``stream_auto_masks``: a better mask has replaced the one with this number."""

    number: int


@dataclass(frozen=True)
class Progress:
    """Event of ``stream_auto_masks``. ``share``: part of the work that is done, 0-1."""

    share: float


@dataclass(frozen=True)
class Cutout:
    """An object without its background. ``bbox``: x, y, width, height in the image; ``area``: pixels of the object.

    ``prompt``: the prompt's number; None for an automatic mask.
    """

    id: str | None
    prompt: int | None
    bbox: tuple[int, ...]
    width: int
    height: int
    area: int
    predicted_iou: float
    stability_score: float | None
    url: str | None = None
    png: bytes = field(default=b"", repr=False, compare=False)

    @cached_property
    def image(self) -> Image.Image:
        """RGBA. Raises ValueError when the PNG was not sent with the result; fetch it from ``url`` then."""
        if not self.png:
            raise ValueError(f"the image was not sent along: client.artifact({self.url!r}) fetches it")
        return open_image(self.png)

    def _repr_png_(self) -> bytes | None:
        return self.png or None


@dataclass(frozen=True)
class Cutouts(Result):
    """Cut-outs in the order of the prompts, or of automatic masks, the largest first."""

    cutouts: tuple[Cutout, ...]
    embedding: Embedding


def decode_rle(runs: Any) -> NDArray[np.bool_]:
    """bool [H, W] of uncompressed COCO run lengths: column by column, beginning with background.

    Raises ValueError for other formats, or when the lengths do not add up to the size.
    """
    if not isinstance(runs, dict) or isinstance(runs.get("counts"), str) or "counts" not in runs:
        raise ValueError("this mask was asked for in another format than rle: read it from segmentation")
    height, width = (int(side) for side in runs["size"])
    counts = np.asarray(runs["counts"], np.int64)
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if len(flat) != height * width:
        raise ValueError(f"the runs do not add up to {height} x {width} pixels")
    return np.ascontiguousarray(flat.reshape((height, width), order="F"))
