"""The interface of a family: how the input of one kind of network is made and its output read."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.images import DecodedImage
from models.inference_requests import InferenceRequest, InferenceResponse
from models.results import TensorInfo


class Family(Protocol):
    """One kind of network. Built from a manifest alone; holds no session and no state between requests."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The arrays that ``InferenceRequest.tensors`` may name."""
        ...

    def preprocess(self, image: DecodedImage) -> NDArray[np.generic]:
        """The graph's input for one image, without the batch axis, in the layout and dtype of the manifest."""
        ...

    def postprocess(
        self, output: NDArray[np.floating[Any]], image: DecodedImage | None, request: InferenceRequest
    ) -> InferenceResponse:
        """The response for one image from its row of the graph's output (no batch axis).

        ``image`` is None where the request held a prepared tensor: nothing is rendered, and class maps have the size of
        the output. BadInput for options that do not fit the model.
        """
        ...
