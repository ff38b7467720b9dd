"""How many trial runs a slow graph gets: those that its processor time allows, so that it is not refused for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.onnx_import.trial_runs import TrialRuns

INFO = {"dtype": "float32", "layout": "NCHW", "input_name": "images"}


class Session:
    """A graph that takes so many processor seconds for an image."""

    def __init__(self, image_s: float) -> None:
        self.image_s = image_s
        self.spent_s = 1.0  # the file was read
        self.shapes: list[int] = []

    def run(self, names: None, inputs: dict[str, Any], options: Any) -> list[Any]:
        self.shapes.append(len(inputs["images"]))
        self.spent_s += self.image_s * len(inputs["images"])
        return [np.zeros(1)]


@pytest.mark.parametrize(
    ("image_s", "batch", "images", "batches"),
    [
        (0.1, 1, 6, (2, 5)),
        (3.0, 1, 6, (2,)),
        (15.0, 1, 5, (2,)),
        (19.0, 1, 4, ()),  # two images take longer than any run may
        (37.0, 1, 3, ()),
        (1.1, 32, 3, (2, 5)),  # a batch that the file fixes
        (0.4, 32, 6, (2, 5)),
    ],
)
def test_a_slow_graph_has_fewer_runs(image_s: float, batch: int, images: int, batches: tuple[int, ...]) -> None:
    session = Session(image_s)
    shape = [batch, 3, 4, 4]
    runs = TrialRuns(session, INFO, shape, pytest.fail, 150.0, lambda: session.spent_s)
    runs.black(batch)
    runs.bright(0.0, 1.0)
    assert session.shapes == [batch] * images
    assert runs.batches() == batches
    assert session.spent_s + sum(batches) * image_s < 150
    assert runs.seconds == pytest.approx(image_s)
