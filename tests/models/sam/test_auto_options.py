"""Options of automatic masks: the reference's names and defaults, presets, bounds."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
from pydantic import ValidationError

from models.sam.auto_options import MAX_POINTS, PRESETS, AutoOptions

DEFAULTS = {
    "points_per_side": 32,
    "points_per_batch": 64,
    "pred_iou_thresh": 0.88,
    "stability_score_thresh": 0.95,
    "stability_score_offset": 1.0,
    "box_nms_thresh": 0.7,
    "crop_n_layers": 0,
    "crop_nms_thresh": 0.7,
    "crop_overlap_ratio": 512 / 1500,
    "crop_n_points_downscale_factor": 1,
    "min_mask_region_area": 0,
}


def test_defaults() -> None:
    assert AutoOptions().parameters == DEFAULTS


def test_names_and_defaults_are_those_of_the_reference() -> None:
    pytest.importorskip("torch")
    from export.torchvision_ops import declare_missing

    declare_missing()
    generator = pytest.importorskip("segment_anything.automatic_mask_generator").SamAutomaticMaskGenerator
    given = {name: info.default for name, info in inspect.signature(generator).parameters.items()}
    assert {name: given[name] for name in DEFAULTS} == DEFAULTS
    assert set(given) - set(DEFAULTS) == {"model", "point_grids", "output_mode"}


@pytest.mark.parametrize(
    ("preset", "changed"),
    [
        ("fast", {"points_per_side": 16}),
        ("full", {}),
        (
            "dense",
            {
                "points_per_side": 64,
                "pred_iou_thresh": 0.90,
                "stability_score_thresh": 0.92,
                "min_mask_region_area": 1000,
            },
        ),
    ],
)
def test_presets(preset: Any, changed: dict[str, Any]) -> None:
    options = AutoOptions(preset=preset)
    assert options.preset == preset and options.parameters == DEFAULTS | changed
    assert AutoOptions(**options.parameters).parameters == options.parameters


def test_what_is_given_wins_over_the_preset() -> None:
    options = AutoOptions(preset="dense", points_per_side=8, min_mask_region_area=0)
    assert (options.points_per_side, options.min_mask_region_area, options.pred_iou_thresh) == (8, 0, 0.90)
    assert PRESETS["dense"]["points_per_side"] == 64


def test_text_from_a_form_is_read() -> None:
    options = AutoOptions.model_validate({"points_per_side": "8", "pred_iou_thresh": "0.5", "preset": "fast"})
    assert (options.points_per_side, options.pred_iou_thresh) == (8, 0.5)


WRONG: list[tuple[str, Any]] = [
    ("preset", "slow"),
    ("preset", 3),
    ("points_per_side", 0),
    ("points_per_side", 257),
    ("points_per_side", 1.5),
    ("points_per_batch", 0),
    ("points_per_batch", 1025),
    ("crop_n_layers", -1),
    ("crop_n_layers", 5),
    ("crop_n_points_downscale_factor", 0),
    ("crop_n_points_downscale_factor", 17),
    ("min_mask_region_area", -1),
    ("min_mask_region_area", 10**400),
    ("stability_score_offset", 0),
    ("crop_overlap_ratio", 1.0),
    ("output_mode", "coco_rle"),
    *[
        (name, value)
        for name in (
            "pred_iou_thresh",
            "stability_score_thresh",
            "stability_score_offset",
            "box_nms_thresh",
            "crop_nms_thresh",
            "crop_overlap_ratio",
        )
        for value in (math.nan, math.inf, -0.01, "nan", 20.5)
    ],
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:20])
def test_what_is_out_of_bounds(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        AutoOptions.model_validate({name: value})
    assert [error["loc"] for error in refused.value.errors()] == [(name,)]


def test_a_layer_without_points_is_refused() -> None:
    with pytest.raises(ValidationError, match="layer 3 would have no points"):
        AutoOptions(points_per_side=4, crop_n_layers=3, crop_n_points_downscale_factor=2)
    assert AutoOptions(points_per_side=8, crop_n_layers=3, crop_n_points_downscale_factor=2).crop_n_layers == 3


def test_all_grids_together_are_bounded() -> None:
    assert AutoOptions(points_per_side=256).points_per_side ** 2 == 65536 <= MAX_POINTS
    with pytest.raises(ValidationError, match="the grids have 327680 points; at most 100000"):
        AutoOptions(points_per_side=256, crop_n_layers=1)
    with pytest.raises(ValidationError, match="the grids have 349184 points"):
        AutoOptions(preset="full", crop_n_layers=4)
    # Every layer has four times as many crops, each with a quarter of the points.
    assert AutoOptions(points_per_side=128, crop_n_layers=4, crop_n_points_downscale_factor=2)


def test_options_do_not_change() -> None:
    with pytest.raises(ValidationError):
        AutoOptions().points_per_side = 3  # type: ignore[misc]
