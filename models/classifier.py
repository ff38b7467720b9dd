"""The classifier family: one image in, the k best classes out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadInput
from models.artifact import Manifest
from models.images import DecodedImage
from models.inference_requests import InferenceRequest, InferenceResponse
from models.preprocess import Preprocessor
from models.results import ClassScore, ImageInfo, TensorInfo

FloatArray = NDArray[np.floating[Any]]


class Classifier:
    """Reads an output of shape [classes]; further axes of length 1 are dropped."""

    def __init__(self, manifest: Manifest) -> None:
        self._preprocess = Preprocessor(manifest)
        self._labels = manifest.labels
        self._activation = manifest.only_output.activation
        self._output = manifest.only_output.name

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """``probs``: the confidences; and the raw output of the graph, under its own name."""
        classes = (len(self._labels),)
        own = () if self._output == "probs" else (TensorInfo(self._output, "float32", classes, usual=False),)
        return (TensorInfo("probs", "float32", classes), *own)

    def preprocess(self, image: DecodedImage) -> NDArray[np.generic]:
        """The graph's input for one image, without the batch axis."""
        return self._preprocess(image.rgb)

    def confidences(self, output: FloatArray) -> FloatArray:
        """float32 [classes]: softmax of logits; probabilities and sigmoid values as the graph gives them."""
        scores = output.reshape(-1).astype(np.float32, copy=False)
        if self._activation != "logits":
            return scores
        exps = np.exp(scores - scores.max())
        return np.asarray(exps / exps.sum(), dtype=np.float32)

    def postprocess(
        self, output: FloatArray, image: DecodedImage | None, request: InferenceRequest
    ) -> InferenceResponse:
        """The ``top_k`` best classes; ties keep the order of the labels. BadInput for more than there are."""
        check_top_k(request.top_k, len(self._labels))
        confidences = self.confidences(output)
        best = np.argsort(-confidences, kind="stable")[: request.top_k]
        scores = tuple(ClassScore(int(i), self._labels[i], float(confidences[i])) for i in best)
        tensors: dict[str, NDArray[np.generic]] = {}
        for name in request.tensors:
            tensors[name] = confidences if name == "probs" else output.reshape(-1).astype(np.float32, copy=False)
        return InferenceResponse(image.info if image else ImageInfo(0, 0, ""), scores=scores, tensors=tensors)


def check_top_k(top_k: int, classes: int) -> None:
    """BadInput unless ``top_k`` is 1 to ``classes``."""
    if not 1 <= top_k <= classes:
        raise BadInput(f"top_k is {top_k}; this model has {classes} classes, so 1 to {classes} can be asked for")
