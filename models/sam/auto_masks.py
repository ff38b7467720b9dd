"""Automatic masks: candidates at a grid of points, filtered, and merged over crops.

The steps and their order are those of ``SamAutomaticMaskGenerator``, but full-size logits of many masks never exist at
once: masks that the predicted IoU rules out are not made, the others are enlarged one at a time and only around the
object, and kept as runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadInput
from models.masks.nms import nms
from models.masks.predicted_masks import AutoMask
from models.masks.regions import remove_small_regions
from models.masks.rle import Rle, encode_region
from models.sam.auto_options import AutoOptions
from models.sam.graphs import Decoded, Floats
from models.sam.grids import crop_boxes, layer_grids, near_crop_edge
from models.sam.prompts import FOREGROUND, PADDING
from models.sam.upsampling import Upsampler

Crop = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the image; x1 and y1 are exclusive."""

Points = NDArray[np.float64]
"""[N, 2]: x, y in pixels of a crop."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mask that passed both thresholds, in pixels of its crop; ``best_of_crop`` moves it into the image.

    ``box``: x0, y0, x1, y1, inclusive. ``point``: x, y of the grid point.
    """

    rle: Rle
    box: tuple[int, int, int, int]
    iou: float
    stability: float | None
    point: tuple[float, float]


def plan(height: int, width: int, options: AutoOptions) -> list[tuple[Crop, Points]]:
    """The crops of an image, the whole image first, each with its points [N, 2] in pixels of the crop.

    BadInput for an image that is too small for so many layers.
    """
    grids = layer_grids(options.points_per_side, options.crop_n_layers, options.crop_n_points_downscale_factor)
    crops = []
    for box, layer in crop_boxes(height, width, options.crop_n_layers, options.crop_overlap_ratio):
        x0, y0, x1, y1 = box
        if not (x0 < x1 and y0 < y1):
            raise BadInput(f"an image of {width} x {height} is too small for {options.crop_n_layers} layers of crops")
        crops.append(((x0, y0, x1, y1), grids[layer] * np.array([[x1 - x0, y1 - y0]])))
    return crops


def grid_tokens(points: Points, scaled: Points) -> tuple[Floats, Floats]:
    """The decoder's tokens for one foreground point per prompt, each followed by the reference's padding point.

    float32 coordinates [B, 2, 2] and labels [B, 2]. ``scaled``: the points in the encoder's input.
    """
    coords = np.zeros((len(points), 2, 2), np.float32)
    coords[:, 0] = scaled
    return coords, np.tile(np.array([FOREGROUND, PADDING], np.float32), (len(points), 1))


def candidates(
    decoded: Decoded, points: Points, crop: Crop, size: tuple[int, int], upsampler: Upsampler, options: AutoOptions
) -> list[Candidate]:
    """The masks of some points that pass the thresholds, in the order of points and mask tokens.

    Masks that the crop seems to cut are left out. ``size``: height and width of the image; ``upsampler``: for the size
    of the crop.
    """
    found: list[Candidate] = []
    for logits, prompt in zip(decoded.logits, decoded.kept, strict=True):
        for token in (1, 2, 3):
            iou = float(decoded.iou[prompt, token])
            if options.pred_iou_thresh > 0 and not decoded.iou[prompt, token] > np.float32(options.pred_iou_thresh):
                continue
            region = upsampler.region(logits[token], offset=options.stability_score_offset)
            stability = region.stability
            if options.stability_score_thresh > 0 and not (stability or 0.0) >= options.stability_score_thresh:
                continue
            rle = encode_region(region.mask, region.top, region.left, upsampler.height, upsampler.width)
            x, y = points[prompt]
            found.append(Candidate(rle, rle.box_xyxy, iou, stability, (float(x), float(y))))
    if not found:
        return []
    boxes = np.array([one.box for one in found], np.float32)
    height, width = size
    cut = near_crop_edge(boxes, crop, (width, height))
    return [one for one, near in zip(found, cut, strict=True) if not near]


def best_of_crop(found: Sequence[Candidate], crop: Crop, size: tuple[int, int], options: AutoOptions) -> list[AutoMask]:
    """The candidates of one crop that remain after NMS, best predicted IoU first, in pixels of the image.

    ``size``: height and width of the image.
    """
    return [_in_image(found[i], crop, size) for i in _left_of_crop(found, options)]


class IncrementalNms:
    """Provisional masks while a grid is computed: each candidate stays until NMS prefers a better one.

    For progress only: ``best_of_crop`` and ``merge`` decide the result. ``size``: height and width of the image.
    """

    def __init__(self, size: tuple[int, int], options: AutoOptions) -> None:
        self._size = size
        self._options = options
        self._numbers = itertools.count()
        self._crop: Crop | None = None
        self._candidates: list[Candidate] = []
        self._reported: dict[int, int] = {}

    def add(self, crop: Crop, found: Sequence[Candidate]) -> tuple[list[tuple[int, AutoMask]], list[int]]:
        """Add candidates: (new provisional masks, each with a number of its own; numbers of those that are dropped).

        All candidates of a crop are added before those of the next crop.
        """
        if crop != self._crop:
            self._crop, self._candidates, self._reported = crop, [], {}
        self._candidates.extend(found)
        left = _left_of_crop(self._candidates, self._options)
        dropped = [self._reported.pop(i) for i in set(self._reported) - set(left)]
        new: list[tuple[int, AutoMask]] = []
        for i in left:
            if i not in self._reported:
                self._reported[i] = next(self._numbers)
                new.append((self._reported[i], _in_image(self._candidates[i], crop, self._size)))
        return new, sorted(dropped)


def _left_of_crop(found: Sequence[Candidate], options: AutoOptions) -> list[int]:
    if not found:
        return []
    boxes = np.array([one.box for one in found], np.float32)
    scores = np.array([one.iou for one in found], np.float32)
    return [int(i) for i in nms(boxes, scores, options.box_nms_thresh)]


def _in_image(one: Candidate, crop: Crop, size: tuple[int, int]) -> AutoMask:
    x0, y0, x1, y1 = crop
    return AutoMask(
        rle=one.rle.shifted(y0, x0, *size),
        predicted_iou=one.iou,
        stability_score=one.stability,
        point=(one.point[0] + x0, one.point[1] + y0),
        crop_box=(x0, y0, x1 - x0, y1 - y0),
    )


def merge(
    crops: Iterable[Sequence[AutoMask]], options: AutoOptions, check: Callable[[], None] = lambda: None
) -> list[AutoMask]:
    """The masks of all crops as one list, the largest first; of duplicates between crops the smaller crop's stays.

    Small regions are then removed. ``check`` is called before each mask of that step, and may raise to stop it.
    """
    lists = list(crops)
    masks = [mask for one in lists for mask in one]
    if len(lists) > 1 and masks:
        areas = np.array([mask.crop_box[2] * mask.crop_box[3] for mask in masks], np.float32)
        masks = [masks[i] for i in nms(_boxes(masks), np.float32(1.0) / areas, options.crop_nms_thresh)]
    if options.min_mask_region_area > 0 and masks:
        masks = _without_small_regions(masks, options, check)
    return sorted(masks, key=lambda mask: -mask.rle.area)


def _without_small_regions(masks: list[AutoMask], options: AutoOptions, check: Callable[[], None]) -> list[AutoMask]:
    """Fill small holes, then remove small islands; of masks that became duplicates, unchanged ones are preferred.

    As in the reference, predicted IoU and stability are not computed anew.
    """
    cleaned: list[AutoMask] = []
    scores: list[float] = []
    for mask in masks:
        check()
        filled, holes = remove_small_regions(mask.rle, options.min_mask_region_area, "holes")
        rle, islands = remove_small_regions(filled, options.min_mask_region_area, "islands")
        changed = holes or islands
        cleaned.append(replace(mask, rle=rle) if changed else mask)
        scores.append(0.0 if changed else 1.0)
    threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
    return [cleaned[i] for i in nms(_boxes(cleaned), np.array(scores, np.float32), threshold)]


def _boxes(masks: Sequence[AutoMask]) -> NDArray[np.float32]:
    return np.array([mask.rle.box_xyxy for mask in masks], np.float32)
