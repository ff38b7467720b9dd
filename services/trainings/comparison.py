"""Comparing trained models: side by side, and on the test images that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from db.tables import Job


@dataclass(frozen=True, slots=True)
class Comparison:
    """``same_split``: all trainings have identical test images. ``common_images``: how many images are test images of
    all, so that none was trained or validated on them. ``rows``: one per training, in the order of the request."""

    same_split: bool
    common_images: int
    rows: list[dict[str, Any]]


def compare(trainings: Sequence[tuple[Job, dict[str, Any], dict[str, Any]]]) -> Comparison:
    """The comparison of trainings, from job, result and evaluation (training/evaluation.py) of each.

    A model is measured only on images that it has not seen: for the common figures an image counts when it is a test
    image of every training.
    """
    tests = [_tests(evaluation) for _, _, evaluation in trainings]
    common = set.intersection(*(set(test) for test in tests))
    return Comparison(
        same_split=all(set(test) == set(tests[0]) for test in tests),
        common_images=len(common),
        rows=[
            {
                "id": job.id,
                "model": result["model"],
                "dataset_id": job.parameters["dataset_id"],
                "dataset": job.parameters.get("dataset"),
                "options": job.parameters["options"],
                "metrics": result["metrics"],
                "common_dice": _mean([test[image] for image in sorted(common)]),
                "training": result["training"],
            }
            for (job, result, _), test in zip(trainings, tests, strict=True)
        ],
    )


def _tests(evaluation: dict[str, Any]) -> dict[str, float | None]:
    """Dice of each test image, by the SHA-256 of its pixels."""
    return {one["sha256"]: one["dice"] for one in evaluation["samples"] if one["part"] == "test"}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
