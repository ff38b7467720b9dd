"""Asks and answers: what every door hands to a model, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.masks.predicted_masks import AutoMask, PromptMask
from models.results import ClassArea, ClassScore, ImageInfo
from models.sam.auto_options import AutoOptions
from models.sam.prompts import Prompt

RENDERS = ("mask", "color", "overlay")
"""The images that can be made of any segmentation."""
PROBABILITY = "probability"
"""Of a unet with two labels besides: 16-bit grey, the probability of label 1 in 65535ths."""


Pixels = NDArray[np.uint8]
"""[height, width, 3], RGB, as a person sees the image."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedTensor:
    """One image as the graph takes it: ``values`` without the batch axis, in its layout and dtype."""

    values: NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """``image``: encoded bytes, pixels, or what was prepared elsewhere. ``top_k``: classes to answer. ``renders``:
    images of a segmentation to make. ``flips``: average over the mirror images too; of a unet only. ``tensors``:
    what of Family.tensors to give as arrays."""

    image: bytes | Pixels | PreparedTensor
    top_k: int = 5
    renders: tuple[str, ...] = ()
    flips: bool = False
    tensors: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Of the image, as it waits in a queue."""
        if isinstance(self.image, bytes):
            return len(self.image)
        return int((self.image.values if isinstance(self.image, PreparedTensor) else self.image).nbytes)


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """``scores`` of a classification or ``areas`` of a segmentation; ``renders``: PNG bytes by name; ``tensors``: by
    name. What came prepared has no image: ``image`` is the size of the output then, or 0 x 0."""

    image: ImageInfo
    scores: tuple[ClassScore, ...] = ()
    areas: tuple[ClassArea, ...] = ()
    renders: Mapping[str, bytes] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MaskRequest:
    """Masks for ``prompts``; for the whole image's box where there are none. ``multimask``: three masks per prompt,
    for the whole, a part and a part of that, else one. ``keep_logits``: give back what a next prompt can refine."""

    image: bytes
    prompts: tuple[Prompt, ...] = ()
    multimask: bool = True
    keep_logits: bool = False


@dataclass(frozen=True, slots=True)
class AutoMaskRequest:
    image: bytes
    options: AutoOptions


@dataclass(frozen=True, slots=True)
class EmbeddingUse:
    """``cached``: the image's embedding was there. ``encode_ms``: what making it took, now or then."""

    cached: bool
    encode_ms: float


@dataclass(frozen=True, slots=True)
class MaskResponse:
    """``results``: the masks of each prompt, in order."""

    image: ImageInfo
    embedding: EmbeddingUse
    results: tuple[tuple[PromptMask, ...], ...]


@dataclass(frozen=True, slots=True)
class AutoMaskResponse:
    image: ImageInfo
    embedding: EmbeddingUse
    masks: tuple[AutoMask, ...]
