"""The work of a lane: an encoded picture and options in, an answer with its rendered pictures out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.images import Picture, decode, encode_png
from models.loader import Loaded
from models.results import Classification, ClassArea, ClassScore, PictureFacts, Segmentation
from models.segmenter import color_mask, index_mask, overlay

RENDERS = ("mask", "color", "overlay")


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a model. ``image``: encoded bytes. ``renders``: which pictures of a segmentation to make."""

    image: bytes
    top_k: int = 5
    renders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """``scores`` of a classification or ``areas`` of a segmentation; ``renders``: PNG bytes by name."""

    picture: PictureFacts
    scores: tuple[ClassScore, ...] = ()
    areas: tuple[ClassArea, ...] = ()
    renders: Mapping[str, bytes] = field(default_factory=dict)


class VisionWork:
    """Decodes, runs and reads pictures for one loaded model."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def prepare(self, payload: Ask) -> tuple[NDArray[np.generic], Picture]:
        picture = decode(payload.image)
        return self._loaded.family.preprocess(picture), picture

    def run(self, batch: NDArray[np.generic]) -> NDArray[Any]:
        return self._loaded.run(batch)

    def finish(self, output: NDArray[Any], prepared: Picture, payload: Ask) -> Answer:
        facts = PictureFacts(prepared.width, prepared.height, prepared.mime_type)
        if self._loaded.family.task == "classify":
            result: Classification = self._loaded.family.postprocess(output, prepared, top_k=payload.top_k)
            return Answer(facts, scores=result.predictions)
        segmentation: Segmentation = self._loaded.family.postprocess(output, prepared)
        return Answer(facts, areas=segmentation.classes, renders=_render(segmentation, prepared, payload.renders))


def _render(segmentation: Segmentation, picture: Picture, wanted: tuple[str, ...]) -> dict[str, bytes]:
    makers = {
        "mask": lambda: index_mask(segmentation),
        "color": lambda: color_mask(segmentation),
        "overlay": lambda: overlay(segmentation, picture.rgb),
    }
    return {name: encode_png(makers[name]()) for name in wanted}
