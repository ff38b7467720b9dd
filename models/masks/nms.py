"""Non-maximum suppression (NMS) of boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def nms(boxes: NDArray[Any], scores: NDArray[Any], iou_threshold: float) -> NDArray[np.int64]:
    """int64 indexes of the boxes [N, 4] (x0, y0, x1, y1) that stay, highest score first.

    As ``torchvision.ops.nms``, in float32: a box is dropped when its IoU with a better one is above the threshold.
    Boxes without an area have IoU NaN and never suppress each other. Of equal scores the lower index comes first
    (torchvision leaves that open).
    """
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    x0, y0, x1, y1 = corners[order].T
    areas = (x1 - x0) * (y1 - y0)
    alive = np.ones(len(order), np.bool_)
    # torchvision compares in float64: above 0.1 is also the float32 next to it, which is a little more than 0.1.
    threshold = np.float32(iou_threshold)
    if float(threshold) > iou_threshold:
        threshold = np.nextafter(threshold, np.float32(-np.inf))
    for i in range(len(order)):
        if not alive[i]:
            continue
        rest = slice(i + 1, None)
        wide = np.maximum(np.float32(0), np.minimum(x1[i], x1[rest]) - np.maximum(x0[i], x0[rest]))
        high = np.maximum(np.float32(0), np.minimum(y1[i], y1[rest]) - np.maximum(y0[i], y0[rest]))
        both = wide * high
        with np.errstate(divide="ignore", invalid="ignore"):
            alive[rest] &= ~(both / (areas[i] + areas[rest] - both) > threshold)
    return np.asarray(order[alive], np.int64)
