"""The work of a lane: an encoded picture and options in, an answer out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.asks import Answer, Ask
from models.images import Picture, decode
from models.loader import Loaded

Prepared = tuple[NDArray[np.generic], Picture]


class VisionWork:
    """Decodes, runs and reads pictures for one loaded model."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def prepare(self, payload: Ask) -> tuple[Hashable, Prepared]:
        picture = decode(payload.image)
        tensor = self._loaded.family.preprocess(picture)
        return (tensor.shape, tensor.dtype.str), (tensor, picture)

    def run(self, prepared: Sequence[Prepared]) -> NDArray[Any]:
        if len(prepared) == 1:
            return self._loaded.run(prepared[0][0][None])
        return self._loaded.run(np.stack([tensor for tensor, _ in prepared]))

    def finish(self, output: NDArray[Any], prepared: Prepared, payload: Ask) -> Answer:
        return self._loaded.family.postprocess(output, prepared[1], payload)
