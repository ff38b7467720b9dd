"""A toy family: a classifier that gives its classes in reverse. One module and, below, one row of the catalog."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.catalog import FamilyRow
from models.classifier import Classifier
from models.images import DecodedImage
from models.inference_requests import InferenceRequest, InferenceResponse


class Contrary(Classifier):
    """The least confident classes first."""

    def postprocess(
        self, output: NDArray[np.floating[Any]], image: DecodedImage | None, request: InferenceRequest
    ) -> InferenceResponse:
        """The answer for one image from ``output`` [C], turned round."""
        return super().postprocess(-output, image, request)


CONTRARY = FamilyRow("classify", Contrary)
