"""Segmentation metrics: per image and class, then means over images with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.integer[Any]]
Numbers = NDArray[np.float64]

_RESAMPLINGS = 2000
_HD_PERCENTILE = 95


def counts(predicted: Classes, truth: Classes, classes: int) -> NDArray[np.int64]:
    """int64 [classes, 3]: pixels that are true positives, false positives and false negatives of each class.

    ``predicted`` and ``truth``: class indices of one image, in arrays of equal shape. Class 0 is counted too.
    """
    table = np.bincount(truth.ravel().astype(np.intp) * classes + predicted.ravel(), minlength=classes * classes)
    table = table.reshape(classes, classes)
    hit = np.diagonal(table)
    return np.stack([hit, table.sum(axis=0) - hit, table.sum(axis=1) - hit], axis=1).astype(np.int64)


def dice(table: NDArray[np.int64]) -> Numbers:
    """Dice, float64 [..., classes], of counts [..., classes, 3]; NaN where truth and prediction lack the class."""
    hit, wrong, missed = np.moveaxis(table.astype(np.float64), -1, 0)
    return _ratio(2 * hit, 2 * hit + wrong + missed)


def iou(table: NDArray[np.int64]) -> Numbers:
    """Intersection over union, float64 [..., classes], of counts [..., classes, 3]; NaN as for ``dice``."""
    hit, wrong, missed = np.moveaxis(table.astype(np.float64), -1, 0)
    return _ratio(hit, hit + wrong + missed)


def precision(table: NDArray[np.int64]) -> Numbers:
    """Share of the predicted pixels that are right, float64 [..., classes]; NaN where none was predicted."""
    hit, wrong, _ = np.moveaxis(table.astype(np.float64), -1, 0)
    return _ratio(hit, hit + wrong)


def recall(table: NDArray[np.int64]) -> Numbers:
    """Share of the true pixels that were predicted, float64 [..., classes]; NaN where there are none."""
    hit, _, missed = np.moveaxis(table.astype(np.float64), -1, 0)
    return _ratio(hit, hit + missed)


def mean(values: Numbers) -> float | None:
    """The mean of the values that are not NaN; None when there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def interval(values: Numbers, seed: int = 0) -> list[float] | None:
    """[low, high], the 95 % bootstrap interval of the mean: percentiles of 2000 seeded resamplings of the images.

    Values that are NaN are left out; None when there are no others.
    """
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    drawn = np.random.default_rng(seed).integers(0, known.size, (_RESAMPLINGS, known.size))
    low, high = np.percentile(known[drawn].mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


def hausdorff95(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """The 95th percentile of the distances between two outlines in pixels, the larger of both directions.

    Takes masks bool [H, W]. An outline is the pixels of a mask with a 4-neighbour outside it or outside the image, as
    in MONAI's compute_hausdorff_distance, which would need scipy. NaN where either mask is empty.
    """
    if not predicted.any() or not truth.any():
        return math.nan
    one, other = _outline(predicted), _outline(truth)
    return max(
        float(np.percentile(_distances(one, other), _HD_PERCENTILE)),
        float(np.percentile(_distances(other, one), _HD_PERCENTILE)),
    )


def summary(
    tables: NDArray[np.int64],
    hd95: Numbers,
    labels: Sequence[str],
    *,
    seed: int,
    threshold: float | None,
    protocol: str,
) -> dict[str, Any]:
    """The metrics of a training from counts [images, classes, 3] and distances [images, classes] in pixels.

    The value of a class is the mean over the images in which truth or prediction has it (precision: prediction; recall:
    truth; hd95_px: both). Overall values are means over the classes other than the background. ``threshold`` and
    ``protocol`` are copied into the result; ``seed``: of the bootstrap.
    """
    values = {"dice": dice(tables), "iou": iou(tables), "precision": precision(tables), "recall": recall(tables)}
    per_class = []
    for index in range(1, len(labels)):
        found = {name: mean(value[:, index]) for name, value in values.items()}
        per_class.append(
            {
                "class_index": index,
                "class_name": labels[index],
                **found,
                "hd95_px": mean(hd95[:, index]),
                "dice_interval": interval(values["dice"][:, index], seed),
                "images": int((~np.isnan(values["dice"][:, index])).sum()),
            }
        )
    overall = {
        name: mean(np.array([row[name] for row in per_class], np.float64))
        for name in ("dice", "iou", "precision", "recall", "hd95_px")
    }
    return {
        **overall,
        "dice_interval": _overall_interval(values["dice"][:, 1:], seed),
        "images": len(tables),
        "threshold": threshold,
        "protocol": protocol,
        "per_class": per_class,
    }


def _overall_interval(values: Numbers, seed: int) -> list[float] | None:
    """``interval`` of the mean over classes of the means over images; an image is drawn with all of its classes."""
    if not len(values) or np.isnan(values).all():
        return None
    drawn = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLINGS, len(values)))
    known = ~np.isnan(values)
    sums, numbers = np.where(known, values, 0.0)[drawn].sum(axis=1), known[drawn].sum(axis=1)
    means = _ratio(sums, numbers.astype(np.float64))
    overall = _ratio(np.nansum(means, axis=1), (~np.isnan(means)).sum(axis=1).astype(np.float64))
    low, high = np.nanpercentile(overall, [2.5, 97.5])
    return [float(low), float(high)]


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    ratio: Numbers = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return ratio


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    framed = np.pad(mask, 1)
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    edge: NDArray[np.bool_] = mask & ~inside
    return edge


def _distances(points: NDArray[np.bool_], targets: NDArray[np.bool_]) -> Numbers:
    """The exact Euclidean distance in pixels from each of ``points`` to the nearest of ``targets``, both bool [H, W].

    First along the columns for all pixels, then across the rows for the points alone: H x W memory, points x W work.
    """
    rows, columns = targets.shape
    height = np.arange(rows)[:, None]
    far = rows + columns
    above = np.maximum.accumulate(np.where(targets, height, -far), axis=0)
    below = np.minimum.accumulate(np.where(targets, height, rows + far)[::-1], axis=0)[::-1]
    vertical = np.minimum(height - above, below - height).astype(np.int64) ** 2
    ys, xs = np.nonzero(points)
    nearest = np.empty(len(ys), np.float64)
    across = np.arange(columns)
    band = max(1, (1 << 22) // columns)  # bounds the memory of a step: 32 MB of int64
    for start in range(0, len(ys), band):
        part = slice(start, start + band)
        nearest[part] = ((across - xs[part, None]) ** 2 + vertical[ys[part]]).min(axis=1)
    return np.sqrt(nearest)
