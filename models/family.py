"""The contract of a family: how one kind of network is fed and read."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.asks import Answer, Ask
from models.images import Picture


class Family(Protocol):
    """One kind of network. Built from a manifest alone; holds no session and no state between requests."""

    def preprocess(self, picture: Picture) -> NDArray[np.generic]:
        """The graph's input for one picture, without the batch axis, in the layout and dtype of the manifest."""
        ...

    def postprocess(self, output: NDArray[np.floating[Any]], picture: Picture, ask: Ask) -> Answer:
        """The answer for one picture from its row of the graph's output (no batch axis)."""
        ...
