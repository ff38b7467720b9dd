"""Suppression of boxes: against torchvision's kernel written out as two loops."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.masks.nms import nms


def loops(boxes: NDArray[Any], scores: NDArray[Any], threshold: float) -> list[int]:
    """torchvision's CPU kernel: float32 arithmetic, the comparison with the threshold in float64."""
    f = np.float32
    corners = [[f(v) for v in box] for box in boxes]
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in corners]
    order = sorted(range(len(corners)), key=lambda i: -float(f(scores[i])))
    gone: set[int] = set()
    kept = []
    for place, i in enumerate(order):
        if i in gone:
            continue
        kept.append(i)
        for j in order[place + 1 :]:
            wide = max(f(0), min(corners[i][2], corners[j][2]) - max(corners[i][0], corners[j][0]))
            high = max(f(0), min(corners[i][3], corners[j][3]) - max(corners[i][1], corners[j][1]))
            both = wide * high
            with np.errstate(divide="ignore", invalid="ignore"):
                if float(both / (areas[i] + areas[j] - both)) > threshold:
                    gone.add(j)
    return kept


def random_boxes(rng: np.random.Generator, n: int, spread: float) -> NDArray[np.float64]:
    corner = rng.uniform(0, spread, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(0, 40, (n, 2))], axis=1)


small = st.integers(0, 6)
boxes_and_scores = st.lists(
    st.tuples(small, small, small, small, st.sampled_from([0.1, 0.5, 0.5, 0.9])), min_size=0, max_size=14
)


@given(boxes_and_scores, st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0]))
@settings(max_examples=400, deadline=None)
def test_small_whole_boxes_with_ties_and_without_area(
    rows: list[tuple[int, int, int, int, float]], threshold: float
) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows]).reshape(-1, 4)
    scores = np.array([row[4] for row in rows])
    assert nms(boxes, scores, threshold).tolist() == loops(boxes, scores, threshold)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [20, 100])
def test_many_boxes(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, 120, spread), rng.random(120)
    kept = nms(boxes, scores, 0.5)
    assert kept.dtype == np.int64
    assert kept.tolist() == loops(boxes, scores, 0.5)
    assert 10 < len(kept) < 120
    assert np.all(np.diff(scores[kept].astype(np.float32)) <= 0)
    # What stayed stays, and order of input does not matter where no scores are equal.
    assert nms(boxes[kept], scores[kept], 0.5).tolist() == list(range(len(kept)))
    turn = rng.permutation(120)
    assert turn[nms(boxes[turn], scores[turn], 0.5)].tolist() == kept.tolist()


@pytest.mark.parametrize(
    ("width", "threshold", "kept"),
    [
        (5, 0.5, [0, 1]),  # IoU 0.5 is not above 0.5
        (6, 0.5, [0]),
        # The float32 nearest to 0.1 is above the float64 0.1, that of 0.7 is below it.
        (1, 0.1, [0]),
        (7, 0.7, [0, 1]),
    ],
)
def test_at_the_threshold(width: int, threshold: float, kept: list[int]) -> None:
    boxes = np.array([[0, 0, 10, 1], [0, 0, width, 1]])
    assert nms(boxes, np.array([0.9, 0.8]), threshold).tolist() == kept


def test_boxes_without_area_never_suppress() -> None:
    line = [3, 0, 3, 9]
    assert nms(np.array([line, line, line]), np.array([0.1, 0.3, 0.2]), 0.0).tolist() == [1, 2, 0]


def test_of_equal_scores_the_lower_index_is_first() -> None:
    apart = np.array([[i * 10, 0, i * 10 + 5, 5] for i in range(40)])
    assert nms(apart, np.ones(40), 0.5).tolist() == list(range(40))
    assert nms(np.array([[0, 0, 5, 5]] * 7), np.ones(7), 0.5).tolist() == [0]


def test_no_boxes() -> None:
    assert nms(np.empty((0, 4)), np.empty(0), 0.5).tolist() == []


def test_three_thousand_boxes_take_little_time() -> None:
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 3000, 2000), rng.random(3000)
    best = float("inf")
    for _ in range(3):
        begun = time.process_time()
        kept = nms(boxes, scores, 0.7)
        best = min(best, time.process_time() - begun)
    assert len(kept) > 2500
    assert best < 1.0  # 0.05 s on two idle cores; two loops of Python take minutes
