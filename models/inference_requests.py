"""Requests to models and their responses, independent of the protocol that carried them."""

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
"""Images that can be rendered from any segmentation."""
PROBABILITY = "probability"
"""One more image of a unet with two labels: 16-bit grey, the probability of label 1 in 65535ths."""


Pixels = NDArray[np.uint8]
"""uint8 [height, width, 3], RGB, upright."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedTensor:
    """One image as the graph takes it: ``values`` without the batch axis, in the graph's layout and dtype."""

    values: NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One image to classify or segment: encoded bytes, pixels, or a tensor that was prepared elsewhere.

    ``top_k``: number of classes of a classification. ``renders``: images of a segmentation, of RENDERS and PROBABILITY.
    ``flips``: average over mirror images too (unet only). ``tensors``: names of Family.tensors to return as arrays.
    """

    image: bytes | Pixels | PreparedTensor
    top_k: int = 5
    renders: tuple[str, ...] = ()
    flips: bool = False
    tensors: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the image while it waits in a queue."""
        if isinstance(self.image, bytes):
            return len(self.image)
        return int((self.image.values if isinstance(self.image, PreparedTensor) else self.image).nbytes)


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """``scores`` of a classification, best first, or ``areas`` of a segmentation, largest first.

    ``renders``: PNG bytes by name; ``tensors``: arrays by name. For a prepared tensor ``image`` has the size of the
    output, or 0 x 0 for a classification.
    """

    image: ImageInfo
    scores: tuple[ClassScore, ...] = ()
    areas: tuple[ClassArea, ...] = ()
    renders: Mapping[str, bytes] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MaskRequest:
    """Masks for ``prompts``, or for the box of the whole image where there are none; ``image``: encoded bytes.

    ``multimask``: three masks per prompt, for the whole, a part and a subpart; else one. ``keep_logits``: return the
    logits, which a later prompt can refine.
    """

    image: bytes
    prompts: tuple[Prompt, ...] = ()
    multimask: bool = True
    keep_logits: bool = False


@dataclass(frozen=True, slots=True)
class AutoMaskRequest:
    """Automatic masks of the whole image; ``image``: encoded bytes."""

    image: bytes
    options: AutoOptions


@dataclass(frozen=True, slots=True)
class EmbeddingUse:
    """``cached``: the embedding was in the cache. ``encode_ms``: milliseconds of the encoder's run, now or earlier."""

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
    """``masks``: the largest first."""

    image: ImageInfo
    embedding: EmbeddingUse
    masks: tuple[AutoMask, ...]
