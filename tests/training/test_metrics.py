"""The metrics against MONAI's and against formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from numpy.typing import NDArray

from training import metrics


def class_maps(seed: int, classes: int = 3, side: int = 24) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    draws = np.random.default_rng(seed)
    truth = draws.integers(0, classes, (side, side), dtype=np.uint8)
    predicted = np.where(draws.random((side, side)) < 0.7, truth, draws.integers(0, classes, (side, side)))
    return predicted.astype(np.uint8), truth


def one_hot(classes: NDArray[np.uint8], count: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(classes).long(), count).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_are_monais(seed: int) -> None:
    predicted, truth = class_maps(seed)
    table = metrics.counts(predicted, truth, 3)
    given = (one_hot(predicted, 3), one_hot(truth, 3))
    np.testing.assert_allclose(metrics.dice(table), compute_dice(*given)[0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(metrics.iou(table), compute_iou(*given)[0].numpy(), rtol=1e-6)
    hit = np.array([((predicted == c) & (truth == c)).sum() for c in range(3)])
    np.testing.assert_allclose(metrics.precision(table), hit / [(predicted == c).sum() for c in range(3)])
    np.testing.assert_allclose(metrics.recall(table), hit / [(truth == c).sum() for c in range(3)])


def test_a_class_that_neither_has_is_no_number_and_one_that_only_the_prediction_has_is_zero() -> None:
    nothing = np.zeros((4, 4), np.uint8)
    assert math.isnan(metrics.dice(metrics.counts(nothing, nothing, 2))[1])
    assert metrics.dice(metrics.counts(nothing + np.uint8(1), nothing, 2))[1] == 0
    assert math.isnan(metrics.hausdorff95(nothing > 0, nothing == 0))


def brute_force(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    def outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        rows, columns = mask.shape
        found = []
        for y, x in np.argwhere(mask):
            near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            if any(not (0 <= a < rows and 0 <= b < columns) or not mask[a, b] for a, b in near):
                found.append((y, x))
        return np.array(found, np.float64)

    a, b = outline(one), outline(other)
    apart = np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])
    return float(max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95)))


@pytest.mark.parametrize("seed", range(5))
def test_hausdorff_by_brute_force(seed: int) -> None:
    draws = np.random.default_rng(seed)
    rows, columns = np.mgrid[:30, :41]

    def blobs() -> NDArray[np.bool_]:
        centres = draws.uniform(0, 30, (3, 3))
        inside = [(rows - y) ** 2 + (columns - x) ** 2 < (2 + r / 4) ** 2 for y, x, r in centres]
        return np.asarray(np.any(inside, axis=0))

    one, other = blobs(), blobs()
    assert metrics.hausdorff95(one, other) == pytest.approx(brute_force(one, other))
    assert metrics.hausdorff95(one, one) == 0


def test_hausdorff_of_a_known_shift() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    assert metrics.hausdorff95(mask, np.roll(mask, 3, axis=1)) == 3


def test_the_summary_is_the_mean_per_image_and_then_per_class() -> None:
    # Class 1: two images have it (Dice 1 and 0.5); class 2: one image has it (Dice 0).
    tables = np.zeros((2, 3, 3), np.int64)
    tables[0, 1] = (10, 0, 0)
    tables[1, 1] = (5, 5, 5)
    tables[1, 2] = (0, 4, 0)
    found = metrics.summary(
        tables, np.full((2, 3), np.nan), ["background", "a", "b"], seed=0, threshold=None, protocol="holdout"
    )
    first, second = found["per_class"]
    assert (first["dice"], first["images"], second["dice"], second["images"]) == (0.75, 2, 0.0, 1)
    assert found["dice"] == 0.375 and found["hd95_px"] is None
    assert second["precision"] == 0.0 and second["recall"] is None
    assert found["iou"] == pytest.approx(((1 + 5 / 15) / 2 + 0) / 2)


def test_the_interval_is_the_bootstraps() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 200)
    low, high = metrics.interval(values) or (0, 0)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.003)
    assert high == pytest.approx(values.mean() + half, abs=0.003)
    assert metrics.interval(values) == [low, high]
    assert metrics.interval(np.array([np.nan])) is None
