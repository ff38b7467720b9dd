"""Batch steps of networks with one graph: whole images and options to responses, or tiles of a large image."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadInput, Refusal
from models.engine.cancellation import RunCancellation
from models.engine.loader import LoadedNetwork
from models.images import DecodedImage, open_image
from models.inference_requests import InferenceRequest, InferenceResponse, PreparedTensor
from models.unet import TiledImage

log = logging.getLogger(__name__)

PreparedInput = tuple[NDArray[np.generic], DecodedImage | None]
"""The graph's input for one item, and the decoded image, where the item is a whole image."""


@dataclass(frozen=True, slots=True)
class TileInput:
    """Piece ``number`` of a tiled image. Its result is that number; the logits are added to ``tiled_image``."""

    tiled_image: TiledImage
    number: int


class ImageBatchSteps:
    """Decodes, runs and reads images for one loaded model. Whole images and pieces of equal shape share a run."""

    def __init__(self, loaded: LoadedNetwork) -> None:
        self._loaded = loaded

    def prepare(self, payload: InferenceRequest | TileInput) -> tuple[Hashable, PreparedInput]:
        """The graph's input, under its shape and dtype as key. Raises as ``open_image`` and ``Family.preprocess``."""
        if isinstance(payload, TileInput):
            image, tensor = None, payload.tiled_image.tensor(payload.number)
        elif isinstance(payload.image, PreparedTensor):
            image, tensor = None, payload.image.values
        else:
            image = open_image(payload.image)
            tensor = self._loaded.family.preprocess(image)
        return (tensor.shape, tensor.dtype.str), (tensor, image)

    def run(self, prepared: Sequence[PreparedInput], cancellation: RunCancellation | None = None) -> NDArray[Any]:
        """The output [N, ...] of a batch. BadInput for a prepared tensor that the graph refuses."""
        if len(prepared) == 1:
            tensor, image = prepared[0]
            try:
                return self._loaded.run(tensor[None], cancellation)
            except Refusal:
                raise
            except Exception as error:  # the runtimes' own exceptions share no base
                graph = self._loaded.manifest.input
                if image is not None or (graph.height is not None and graph.width is not None):
                    raise
                log.debug("the graph refused a prepared tensor", exc_info=error)
                raise BadInput(f"the network does not take a tensor of {list(tensor.shape)}") from None
        return self._loaded.run(np.stack([tensor for tensor, _ in prepared]), cancellation)

    def finish(
        self, output: NDArray[Any], prepared: PreparedInput, payload: InferenceRequest | TileInput
    ) -> InferenceResponse | int:
        """The response of a whole image, or the number of a piece, whose logits are added to its image."""
        if isinstance(payload, TileInput):
            payload.tiled_image.add(payload.number, output)
            return payload.number
        return self._loaded.family.postprocess(output, prepared[1], payload)
