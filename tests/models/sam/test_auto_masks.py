"""Automatic masks from answers made up here: what each filter drops, in which order, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ekiben.errors import BadInput
from models.masks.predicted_masks import AutoMask
from models.masks.rle import encode, encode_region
from models.sam.auto_masks import Candidate, Crop, best_of_crop, candidates, grid_tokens, merge, plan
from models.sam.auto_options import AutoOptions
from models.sam.graphs import Decoded
from models.sam.upsampling import Upsampler

SIDE = 256
SIDE_PX = (256, 256)
WHOLE: Crop = (0, 0, 256, 256)
BOX = tuple[int, int, int, int]


def boxed(box: BOX, inside: float = 10.0) -> NDArray[np.float32]:
    """Low-resolution logits: ``inside`` in a box (exclusive), -10 elsewhere. At 256 x 256 its pixels are the same."""
    logits = np.full((SIDE, SIDE), -10, np.float32)
    logits[box[1] : box[3], box[0] : box[2]] = inside
    return logits


EMPTY = boxed((0, 0, 0, 0))


def answer(
    rows: Sequence[Sequence[tuple[float, NDArray[np.float32]]]], prompts: int | None = None, first: int = 0
) -> Decoded:
    """Masks of tokens 1 to 3 of some prompts, ``first`` and up; token 0 is one that would always pass."""
    iou = np.full((prompts or len(rows), 4), 2, np.float32)
    iou[:, 1:] = -5
    logits = np.empty((len(rows), 4, SIDE, SIDE), np.float32)
    for number, row in enumerate(rows):
        iou[first + number, 1:] = [score for score, _ in row]
        logits[number] = np.stack([boxed((50, 50, 200, 200)), *(one for _, one in row)])
    return Decoded(iou, np.arange(first, first + len(rows)), logits)


def found(decoded: Decoded, crop: Crop = WHOLE, size: tuple[int, int] = SIDE_PX, **options: Any) -> list[Candidate]:
    points = np.arange(2.0 * len(decoded.iou)).reshape(-1, 2)
    height, width = crop[3] - crop[1], crop[2] - crop[0]
    given = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5} | options
    return candidates(decoded, points, crop, size, Upsampler(height, width), AutoOptions(**given))


A, B, C = (40, 50, 80, 90), (100, 60, 160, 90), (100, 150, 150, 220)


def test_masks_in_the_order_of_points_and_tokens() -> None:
    decoded = answer(
        [[(0.9, boxed(A)), (0.8, boxed(B)), (0.7, boxed(C))], [(0.6, boxed(C)), (0.95, boxed(A)), (0.1, boxed(B))]]
    )
    got = found(decoded)
    assert [one.iou for one in got] == [float(np.float32(x)) for x in (0.9, 0.8, 0.7, 0.6, 0.95)]
    # The reference's boxes: the last column and row inside.
    assert [one.box for one in got] == [(x0, y0, x1 - 1, y1 - 1) for x0, y0, x1, y1 in (A, B, C, C, A)]
    assert [one.point for one in got] == [(0.0, 1.0)] * 3 + [(2.0, 3.0)] * 2
    assert all(one.stability == 1.0 for one in got)
    assert got[0].rle == encode(boxed(A) > 0)


def test_scores_and_points_belong_to_the_prompts_that_were_kept() -> None:
    decoded = answer([[(0.9, boxed(A)), (0.8, boxed(B)), (-1, EMPTY)]], prompts=7, first=4)
    got = found(decoded)
    assert [(one.point, round(one.iou, 3)) for one in got] == [((8.0, 9.0), 0.9), ((8.0, 9.0), 0.8)]


def test_none_kept() -> None:
    nothing = Decoded(np.zeros((5, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 4, SIDE, SIDE), np.float32))
    assert found(nothing) == []


def test_the_predicted_iou_is_above_its_threshold() -> None:
    up, down = np.nextafter(np.float32(0.75), np.float32(1)), np.nextafter(np.float32(0.75), np.float32(0))
    decoded = answer([[(0.75, boxed(A)), (float(up), boxed(B)), (float(down), boxed(C))]])
    assert [one.iou for one in found(decoded, pred_iou_thresh=0.75)] == [float(up)]


def test_a_threshold_is_what_it_is_in_float32() -> None:
    """As in the reference, where float32 scores are compared: 0.8 is a little more in float32 than in float64."""
    decoded = answer([[(0.8, boxed(A)), (0.9, boxed(B)), (0.1, boxed(C))]])
    assert [round(one.iou, 3) for one in found(decoded, pred_iou_thresh=0.8)] == [0.9]


def test_a_threshold_of_0_takes_any_predicted_iou() -> None:
    decoded = answer([[(-3, boxed(A)), (0, boxed(B)), (0.1, boxed(C))]])
    assert [one.iou for one in found(decoded, pred_iou_thresh=0)] == [-3, 0, float(np.float32(0.1))]


def wobbly(share: float) -> NDArray[np.float32]:
    """A mask of 100 rows of which ``share`` is sure and the rest is only just positive."""
    logits = boxed((50, 50, 150, 150), 0.5)
    logits[50 : 50 + round(100 * share), 50:150] = 10
    return logits


def test_the_stability_reaches_its_threshold() -> None:
    shares = [Upsampler(SIDE, SIDE).region(wobbly(share)).stability for share in (0.75, 0.74, 0.76)]
    middle = shares[0]
    assert middle is not None and middle == pytest.approx(0.76, abs=0.005)  # a row more: enlarging blurs the edge
    decoded = answer([[(0.9, wobbly(0.75)), (0.9, wobbly(0.74)), (0.9, wobbly(0.76))]])
    got = found(decoded, stability_score_thresh=middle)
    assert [one.stability for one in got] == [middle, shares[2]]  # >= is not strict
    got = found(decoded, stability_score_thresh=float(np.nextafter(middle, 1)) + 1e-6)
    assert [one.stability for one in got] == [shares[2]]
    got = found(decoded, stability_score_thresh=0)
    assert [one.stability for one in got] == shares


def test_the_offset_of_the_stability() -> None:
    decoded = answer([[(0.9, wobbly(0.75)), (-1, EMPTY), (-1, EMPTY)]])
    # Within 0.25 of 0 there is next to nothing of the steep edge; 0.5 away there is a quarter of the mask.
    assert [one.stability for one in found(decoded, stability_score_offset=0.25)] == [pytest.approx(0.985, abs=0.005)]
    assert [one.stability for one in found(decoded, stability_score_offset=0.5)] == [pytest.approx(0.76, abs=0.01)]
    assert found(decoded, stability_score_offset=10) == []  # nothing is above 10: 0


def test_empty_masks_pass_only_without_thresholds() -> None:
    faint = np.full((SIDE, SIDE), -0.5, np.float32)
    decoded = answer([[(0.9, EMPTY), (0.9, faint), (0.9, boxed(A))]])
    assert [one.stability for one in found(decoded)] == [1.0]
    assert [one.stability for one in found(decoded, stability_score_thresh=1)] == [1.0]
    got = found(decoded, stability_score_thresh=0)
    assert [(one.stability, one.box, one.rle.area) for one in got[:2]] == [
        (None, (0, 0, 0, 0), 0),
        (0.0, (0, 0, 0, 0), 0),
    ]


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((21, 21, 100, 100), True),
        ((20, 30, 100, 100), False),
        ((30, 20, 100, 100), False),
        ((30, 30, 236, 100), True),  # its last column is 235: 21 from the crop's edge
        ((30, 30, 237, 100), False),
        ((30, 30, 100, 237), False),
    ],
    ids=str,
)
def test_what_a_crop_seems_to_cut_is_dropped(box: BOX, kept: bool) -> None:
    decoded = answer([[(0.9, boxed(box)), (-1, EMPTY), (-1, EMPTY)]])
    inner: Crop = (100, 100, 356, 356)
    assert bool(found(decoded, inner, (500, 500))) is kept
    assert found(decoded, WHOLE)  # the whole image cuts nothing


def test_an_image_s_own_edge_cuts_nothing() -> None:
    corner = answer([[(0.9, boxed((0, 0, 100, 100))), (-1, EMPTY), (-1, EMPTY)]])
    assert found(corner, (0, 0, 256, 256), (500, 500))
    assert found(corner, (20, 20, 276, 276), (500, 500)) == found(corner, (0, 0, 256, 256), (500, 500))
    assert not found(corner, (20, 21, 276, 277), (500, 500))
    last = answer([[(0.9, boxed((150, 150, 256, 256))), (-1, EMPTY), (-1, EMPTY)]])
    assert found(last, (244, 244, 500, 500), (500, 500))
    assert not found(last, (200, 200, 456, 456), (500, 500))


def candidate(
    box: BOX, iou: float, size: tuple[int, int] = SIDE_PX, point: tuple[float, float] = (1.5, 2.5)
) -> Candidate:
    rle = encode_region(np.ones((box[3] - box[1], box[2] - box[0]), np.bool_), box[1], box[0], *size)
    return Candidate(rle, rle.box_xyxy, iou, 0.97, point)


def test_the_best_of_overlapping_masks_stays() -> None:
    near = (40, 50, 82, 90)
    got = best_of_crop([candidate(A, 0.9), candidate(B, 0.8), candidate(near, 0.95)], WHOLE, SIDE_PX, AutoOptions())
    assert [(mask.predicted_iou, mask.rle.box_xyxy) for mask in got] == [
        (0.95, (40, 50, 81, 89)),
        (0.8, (100, 60, 159, 89)),
    ]
    both = best_of_crop([candidate(A, 0.9), candidate(near, 0.95)], WHOLE, SIDE_PX, AutoOptions(box_nms_thresh=1.0))
    assert [mask.predicted_iou for mask in both] == [0.95, 0.9]
    assert best_of_crop([], WHOLE, SIDE_PX, AutoOptions()) == []


def test_a_crop_s_masks_come_in_the_image_s_frame() -> None:
    crop: Crop = (300, 20, 556, 276)
    (mask,) = best_of_crop([candidate(A, 0.9)], crop, (400, 600), AutoOptions())
    expected = np.zeros((400, 600), np.bool_)
    expected[70:110, 340:380] = True
    assert np.array_equal(mask.rle.decode(), expected)
    assert mask.point == (301.5, 22.5) and mask.crop_box == (300, 20, 256, 256)
    assert (mask.predicted_iou, mask.stability_score) == (0.9, 0.97)


def auto(box: BOX, iou: float = 0.9, crop: BOX = (0, 0, 256, 256)) -> AutoMask:
    return AutoMask(candidate(box, iou).rle, iou, 0.96, (0.0, 0.0), crop)


def test_between_crops_the_smaller_crop_wins_and_the_largest_mask_is_first() -> None:
    near = (40, 50, 81, 90)
    whole, inner = (
        [auto(A, 0.99), auto(B, 0.9)],
        [auto(near, 0.5, (30, 30, 128, 128)), auto(C, 0.6, (30, 30, 128, 128))],
    )
    got = merge([whole, inner], AutoOptions())
    assert [(mask.rle.area, mask.predicted_iou) for mask in got] == [(3500, 0.6), (1800, 0.9), (1640, 0.5)]
    kept = merge([whole, inner], AutoOptions(crop_nms_thresh=1.0))
    assert [mask.rle.area for mask in kept] == [3500, 1800, 1640, 1600]


def test_one_crop_is_not_thinned_a_second_time() -> None:
    twice = [auto(A, 0.9), auto(A, 0.8)]
    assert merge([twice], AutoOptions()) == twice  # of equal areas the better one stays first
    assert len(merge([twice, []], AutoOptions())) == 1
    assert merge([], AutoOptions()) == merge([[], []], AutoOptions()) == []


def rough(box: BOX, hole: BOX | None, island: BOX | None, iou: float) -> AutoMask:
    mask = np.zeros(SIDE_PX, np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    if hole:
        mask[hole[1] : hole[3], hole[0] : hole[2]] = False
    if island:
        mask[island[1] : island[3], island[0] : island[2]] = True
    return AutoMask(encode(mask), iou, 0.96, (0.0, 0.0), (0, 0, 256, 256))


def test_small_regions_go_and_scores_stay() -> None:
    mask = rough(A, (50, 60, 55, 64), (200, 200, 204, 205), 0.9)  # a hole and an island of 20 pixels
    options = AutoOptions(min_mask_region_area=21)
    (cleaned,) = merge([[mask]], options)
    assert cleaned.rle == auto(A).rle and (cleaned.predicted_iou, cleaned.stability_score) == (0.9, 0.96)
    assert merge([[mask]], AutoOptions(min_mask_region_area=20)) == [mask]
    assert merge([[mask]], AutoOptions(min_mask_region_area=0)) == [mask]


def test_of_masks_that_became_alike_the_untouched_one_stays() -> None:
    mended, untouched = rough(A, None, (200, 200, 204, 205), 0.99), auto(A, 0.7)
    assert merge([[mended, untouched]], AutoOptions(min_mask_region_area=50)) == [untouched]
    # The laxer of the two thresholds counts.
    lax = AutoOptions(min_mask_region_area=50, box_nms_thresh=0.1, crop_nms_thresh=1.0)
    assert len(merge([[mended, untouched]], lax)) == 2


def test_holes_are_filled_before_islands_are_judged() -> None:
    ring = np.zeros(SIDE_PX, np.bool_)
    ring[100:105, 100:105] = True
    ring[102, 102] = False  # 24 pixels with a hole of one
    other = np.zeros(SIDE_PX, np.bool_)
    other[10:60, 10:60] = True
    mask = AutoMask(encode(ring | other), 0.9, None, (0.0, 0.0), (0, 0, 256, 256))
    (cleaned,) = merge([[mask]], AutoOptions(min_mask_region_area=25))
    assert cleaned.rle.area == 2500 + 25


def test_a_point_and_its_padding() -> None:
    coords, labels = grid_tokens(np.zeros((3, 2)), np.array([[1, 2], [3, 4.5], [5, 6]]))
    assert coords.dtype == labels.dtype == np.float32
    assert coords.tolist() == [[[1, 2], [0, 0]], [[3, 4.5], [0, 0]], [[5, 6], [0, 0]]]
    assert labels.tolist() == [[1, -1]] * 3


PLANS = [
    ((480, 640), {}),
    ((480, 640), {"points_per_side": 7, "crop_n_layers": 1}),
    ((1501, 2250), {"points_per_side": 16, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}),
    ((333, 1000), {"points_per_side": 9, "crop_n_layers": 2, "crop_overlap_ratio": 0.1}),
    ((800, 200), {"points_per_side": 8, "crop_n_layers": 3, "crop_n_points_downscale_factor": 2}),
    ((64, 64), {"points_per_side": 8, "crop_n_layers": 1, "crop_overlap_ratio": 0.0}),
]


@pytest.mark.parametrize(("size", "given"), PLANS, ids=str)
def test_crops_and_points_are_the_reference_s(size: tuple[int, int], given: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    from export.torchvision_ops import declare_missing

    declare_missing()
    amg = pytest.importorskip("segment_anything.utils.amg")
    options = AutoOptions(**given)
    grids = amg.build_all_layer_point_grids(
        options.points_per_side, options.crop_n_layers, options.crop_n_points_downscale_factor
    )
    boxes, layers = amg.generate_crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
    got = plan(*size, options)
    assert [list(crop) for crop, _ in got] == boxes
    for (_, points), (x0, y0, x1, y1), layer in zip(got, boxes, layers, strict=True):
        assert np.array_equal(points, grids[layer] * np.array([[x1 - x0, y1 - y0]]))


def test_a_plan_without_crops() -> None:
    ((crop, points),) = plan(480, 640, AutoOptions(points_per_side=2))
    assert crop == (0, 0, 640, 480)
    assert points.tolist() == [[160, 120], [480, 120], [160, 360], [480, 360]]


@pytest.mark.parametrize("size", [(20, 20), (5, 5), (9, 3), (16, 1024)], ids=str)
def test_an_image_too_small_for_its_crops_is_refused(size: tuple[int, int]) -> None:
    """Or every crop of it has pixels: there is no third way."""
    for layers in range(5):
        try:
            crops = plan(*size, AutoOptions(points_per_side=2, crop_n_layers=layers))
        except BadInput:
            continue
        for (x0, y0, x1, y1), points in crops:
            assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0], (layers, x0, y0, x1, y1)
            assert (points > 0).all() and (points < (x1 - x0, y1 - y0)).all()
