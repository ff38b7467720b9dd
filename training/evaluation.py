"""The judgement: the exported artifact, asked as it will be served, about images that nothing was chosen by."""

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

_TIMED_RUNS = 7


@dataclass(frozen=True)
class Evaluation:
    """``tables`` int64 [images, classes, 3] and ``hd95`` float64 [images, classes], in the order of ``indices``."""

    indices: tuple[int, ...]
    tables: NDArray[np.int64]
    hd95: NDArray[np.float64]
    window_ms: float


def evaluate(
    folder: Path, manifest: Manifest, archive: TrainingData, indices: Sequence[int], told: Callable[[int], None]
) -> Evaluation:
    """Ask the artifact for these images at their own size. ``told`` is called with the number of images that are done.

    On the CPU through ONNX Runtime with all cores, whatever trained it: the artifact is what is served.
    """
    family = Unet(manifest)
    session = open_session(folder, manifest, SessionOptions(device="cpu", threads=cores()))
    classes = len(manifest.labels)
    tables = np.zeros((len(indices), classes, 3), np.int64)
    hd95 = np.full((len(indices), classes), math.nan)
    try:
        for place, index in enumerate(indices):
            told(place)
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
    """The median time of one window, alone, once it runs warm."""
    patch = np.zeros((1, 3, side, side), np.float32)
    run(patch)
    times = []
    for _ in range(_TIMED_RUNS):
        began = time.perf_counter()
        run(patch)
        times.append(time.perf_counter() - began)
    return round(1000 * statistics.median(times), 2)


def write_evaluation(
    folder: Path, archive: TrainingData, split: Split, judgement: Evaluation, summary: dict[str, Any]
) -> None:
    """``evaluation.json``: the part of every image and, of those that judge, what was found."""
    dice = metrics.dice(judgement.tables)
    row_of = {index: row for row, index in enumerate(judgement.indices)}
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
                    "hd95_px": _number(judgement.hd95[row, label]),
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
