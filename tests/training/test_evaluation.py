"""The evaluation of an artifact, whose answer for each pixel is known, on test images, and its file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.metrics.meandice import compute_dice
from numpy.typing import NDArray
from torch import from_numpy

from models.artifact import Manifest
from tests import toy_models
from tests.training.discs import write_archive
from training.data import TrainingData
from training.evaluation import Evaluation, evaluate, write_evaluation
from training.split import Parts, Split

SIZES = ((40, 56), (32, 32), (70, 33))
"""Height and width of the images: larger than the network's 32 x 32, equal, and with a tile that hardly fits."""


def pair(seed: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image of noise, and as its mask the toy's answer with a tenth of the pixels turned over."""
    draws = np.random.default_rng(seed)
    rgb = draws.integers(0, 256, (*size, 3), dtype=np.uint8)
    turned = draws.random(size) < 0.1
    return rgb, (answer(rgb) ^ turned).astype(np.uint8)


def answer(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return toy_models.cell_logits(rgb) > 0


MADE = [pair(seed, size) for seed, size in enumerate(SIZES)]
EMPTY = (MADE[1][0], np.zeros(SIZES[1], np.uint8))


def archive(folder: Path, *more: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> TrainingData:
    write_archive(folder / "dataset.zip", [*MADE, *more])
    return TrainingData(folder / "dataset.zip", side=None, cache_bytes=0)


@pytest.fixture
def toy(tmp_path: Path) -> tuple[Path, Manifest]:
    return tmp_path / "toy", toy_models.unet(tmp_path / "toy", binary=True, overlap=0.5)


def one_hot(mask: NDArray[Any]) -> Any:
    return from_numpy(np.stack([mask == 0, mask == 1])[None].astype(np.float32))


def hausdorff95(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """By all distances between the pixels of the two outlines."""

    def outline(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        padded = np.pad(mask, 1)
        neighbours = [np.roll(padded, step, axis)[1:-1, 1:-1] for step in (1, -1) for axis in (0, 1)]
        return np.argwhere(mask & ~np.all(neighbours, axis=0))

    between = np.linalg.norm(outline(one)[:, None] - outline(other)[None], axis=2)
    return max(float(np.percentile(between.min(axis=axis), 95)) for axis in (0, 1))


def test_counts_and_distances_are_those_of_the_networks_answer(toy: tuple[Path, Manifest], tmp_path: Path) -> None:
    """Images in the order that was asked for, each at its own size; an empty mask has no distance."""
    data = archive(tmp_path, EMPTY)
    done: list[int] = []
    found = evaluate(*toy, data, (2, 0, 3), done.append)
    assert (found.indices, done) == ((2, 0, 3), [0, 1, 2])
    assert (found.tables.shape, found.tables.dtype) == ((3, 2, 3), np.int64)
    for table, distances, (rgb, mask) in zip(found.tables, found.hd95, (MADE[2], MADE[0], EMPTY), strict=True):
        cells, truth = answer(rgb), mask == 1
        both = [(~cells, ~truth), (cells, truth)]
        assert table.tolist() == [[(p & t).sum(), (p & ~t).sum(), (t & ~p).sum()] for p, t in both]
        assert math.isnan(distances[0])
        if truth.any():
            assert distances[1] == pytest.approx(hausdorff95(cells, truth))
        else:
            assert math.isnan(distances[1])
    assert found.window_ms > 0


def test_a_perfect_answer_has_no_errors_and_no_distance(toy: tuple[Path, Manifest], tmp_path: Path) -> None:
    rgb = MADE[0][0]
    data = archive(tmp_path, (rgb, answer(rgb).astype(np.uint8)))
    found = evaluate(*toy, data, [3], lambda done: None)
    assert not found.tables[..., 1:].any()
    assert found.tables[0, :, 0].tolist() == [(~answer(rgb)).sum(), answer(rgb).sum()]
    assert found.hd95[0, 1] == 0


def test_the_threshold_is_the_artifacts(tmp_path: Path) -> None:
    """A pixel is a cell from a probability of 0.9: a logit of ln 9."""
    manifest = toy_models.unet(tmp_path / "toy", binary=True, overlap=0.5, threshold=0.9)
    data = archive(tmp_path)
    found = evaluate(tmp_path / "toy", manifest, data, [0], lambda done: None)
    logits = toy_models.cell_logits(MADE[0][0])
    near = np.abs(logits - math.log(9)) < 1e-3  # probabilities are kept in 65535ths
    predicted = found.tables[0, 1, :2].sum()
    assert abs(int(predicted) - int((logits > math.log(9)).sum())) <= near.sum()
    assert predicted < 0.8 * (logits > 0).sum()


def split(train: tuple[int, ...], validation: tuple[int, ...], test: tuple[int, ...]) -> Split:
    return Split("holdout", (Parts(0, train, validation, test),), 4, "d" * 64)


def test_the_file_has_a_row_for_each_image(tmp_path: Path) -> None:
    """Those that were not tested have their part and no number; a class that is nowhere has none either."""
    data = archive(tmp_path, EMPTY)
    tables = np.array([[[90, 4, 6], [40, 6, 4]], [[100, 0, 0], [0, 0, 0]]])
    hd95 = np.array([[math.nan, 2.5], [math.nan, math.nan]])
    evaluation = Evaluation((2, 1), tables, hd95, 1.5)
    write_evaluation(tmp_path, data, split((0,), (3,), (1, 2)), evaluation, {"dice": 0.889})
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (written["metrics"], written["split"]) == ({"dice": 0.889}, "d" * 64)
    assert [row["name"] for row in written["samples"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert [row["sha256"] for row in written["samples"]] == [sample.sha256 for sample in data.samples]
    assert [row["part"] for row in written["samples"]] == ["train", "test", "test", "validation"]
    dice = 2 * 40 / (2 * 40 + 6 + 4)
    assert [(row["dice"], row["per_class"]) for row in written["samples"]] == [
        (None, []),
        (None, [{"class_index": 1, "dice": None, "hd95_px": None}]),
        (pytest.approx(dice), [{"class_index": 1, "dice": pytest.approx(dice), "hd95_px": 2.5}]),
        (None, []),
    ]


def test_the_dice_of_an_image_is_the_mean_of_its_classes_without_background(tmp_path: Path) -> None:
    rgb = MADE[1][0]
    write_archive(tmp_path / "dataset.zip", [(rgb, np.zeros(SIZES[1], np.uint8))], classes=3)
    data = TrainingData(tmp_path / "dataset.zip", side=None, cache_bytes=0)
    tables = np.array([[[1, 99, 99], [10, 0, 0], [10, 10, 10]]])
    evaluation = Evaluation((0,), tables, np.full((1, 3), math.nan), 1.0)
    write_evaluation(tmp_path, data, split((), (), (0,)), evaluation, {})
    (row,) = json.loads((tmp_path / "evaluation.json").read_text())["samples"]
    assert row["dice"] == 0.75
    assert [(one["class_index"], one["dice"]) for one in row["per_class"]] == [(1, 1.0), (2, 0.5)]


def test_the_dice_of_the_file_is_monais(toy: tuple[Path, Manifest], tmp_path: Path) -> None:
    data = archive(tmp_path)
    found = evaluate(*toy, data, (0, 1, 2), lambda done: None)
    write_evaluation(tmp_path, data, split((), (), (0, 1, 2)), found, {})
    rows = json.loads((tmp_path / "evaluation.json").read_text())["samples"]
    expected = [
        float(compute_dice(one_hot(answer(rgb)), one_hot(mask), include_background=False)[0, 0]) for rgb, mask in MADE
    ]
    assert [row["dice"] for row in rows] == pytest.approx(expected, abs=1e-6)
    assert all(0.8 < value < 0.99 for value in expected)
