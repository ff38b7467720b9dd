"""The work of a lane: an encoded picture and options in, an answer out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.asks import Answer, Ask
from models.images import Picture, decode
from models.loader import Loaded


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
        return self._loaded.family.postprocess(output, prepared, payload)
