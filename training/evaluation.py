"""Evaluation of the exported artifact, run as at serve time, on test images that no choice depended on."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifact import Manifest
from models.engine.session import open_session
from models.engine.session_options import SessionOptions, cores
from models.unet import Unet
from training import metrics
from training.data import TrainingData
from training.split import Split

EVALUATION = "evaluation.json"

_TIMED_RUNS = 7  # the median of them is reported


@dataclass(frozen=True)
class Evaluation:
    """Results of the images ``indices``, in their order.

    ``tables`` int64 [images, classes, 3]: true positives, false positives, false negatives in pixels. ``hd95`` float64
    [images, classes]: Hausdorff distances in pixels, NaN where undefined and for class 0. ``window_ms``: median time of
    one patch.
    """

    indices: tuple[int, ...]
    tables: NDArray[np.int64]
    hd95: NDArray[np.float64]
    window_ms: float


def evaluate(
    folder: Path, manifest: Manifest, archive: TrainingData, indices: Sequence[int], on_progress: Callable[[int], None]
) -> Evaluation:
    """Predict these images, at their own size, with the artifact in ``folder`` and compare with their masks.

    ``on_progress`` gets the number of finished images before each one. Runs ONNX Runtime on all CPU cores, on whatever
    device the network was trained, since the artifact is what is served.
    """
    family = Unet(manifest)
    session = open_session(folder, manifest, SessionOptions(device="cpu", threads=cores()))
    classes = len(manifest.labels)
    tables = np.zeros((len(indices), classes, 3), np.int64)
    hd95 = np.full((len(indices), classes), math.nan)
    try:
        for place, index in enumerate(indices):
            on_progress(place)
            predicted = family.class_map(family.predict(archive.image(index), session.run))
            truth = archive.truth(index)
            tables[place] = metrics.counts(predicted, truth, classes)
            for label in range(1, classes):
                hd95[place, label] = metrics.hausdorff95(predicted == label, truth == label)
        window_ms = _window_ms(session.run, family.side)
    finally:
        session.close()
    return Evaluation(tuple(indices), tables, hd95, window_ms)


def _window_ms(run: Callable[[NDArray[np.generic]], Any], side: int) -> float:
    """Median milliseconds of one patch float32 [1, 3, side, side], after a first run that is not counted."""
    patch = np.zeros((1, 3, side, side), np.float32)
    run(patch)
    times = []
    for _ in range(_TIMED_RUNS):
        began = time.perf_counter()
        run(patch)
        times.append(time.perf_counter() - began)
    return round(1000 * statistics.median(times), 2)


def write_evaluation(
    folder: Path, archive: TrainingData, split: Split, evaluation: Evaluation, summary: dict[str, Any]
) -> None:
    """Write ``evaluation.json``: the part (train, validation, test) of every image and the metrics of the test images.

    With cross-validation every image is a test image. ``summary``: of ``metrics.summary``.
    """
    dice = metrics.dice(evaluation.tables)
    row_of = {index: row for row, index in enumerate(evaluation.indices)}
    first = split.folds[0]
    validation = set(first.validation)
    samples = []
    for index, sample in enumerate(archive.samples):
        row = row_of.get(index)
        part = "test" if row is not None else "validation" if index in validation else "train"
        per_class = []
        if row is not None:
            per_class = [
                {
                    "class_index": label,
                    "dice": _number(dice[row, label]),
                    "hd95_px": _number(evaluation.hd95[row, label]),
                }
                for label in range(1, dice.shape[1])
            ]
        known = metrics.mean(dice[row, 1:]) if row is not None else None
        samples.append(
            {"name": sample.name, "sha256": sample.sha256, "part": part, "dice": known, "per_class": per_class}
        )
    content = {"metrics": summary, "split": split.digest, "samples": samples}
    (folder / EVALUATION).write_text(json.dumps(content, indent=1) + "\n")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
