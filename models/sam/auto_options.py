"""Options of automatic masks: the reference generator's parameters, their defaults and bounds, and presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Preset = Literal["fast", "full", "dense"]

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"points_per_side": 16},
    "full": {"points_per_side": 32},
    "dense": {
        "points_per_side": 64,
        "pred_iou_thresh": 0.90,
        "stability_score_thresh": 0.92,
        "min_mask_region_area": 1000,
    },
}

MAX_POINTS = 100_000
"""Points of all grids of one request: at 10 ms each, a quarter of an hour."""


class AutoOptions(BaseModel):
    """The parameters of ``SamAutomaticMaskGenerator`` (``automatic_mask_generator.py``), with its names and defaults.

    A preset sets the values of fields that are not given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Preset | None = Field(
        default=None, description="fast: 16 points a side; full: 32; dense: 64, and stricter."
    )
    points_per_side: int = Field(default=32, ge=1, le=256, description="The grid has so many points a side.")
    points_per_batch: int = Field(
        default=64, ge=1, le=1024, description="At most so many points run at once; the answer does not depend on it."
    )
    pred_iou_thresh: float = Field(
        default=0.88, ge=0, le=2, description="Masks predicted to fit less well are dropped."
    )
    stability_score_thresh: float = Field(default=0.95, ge=0, le=1, description="Masks less stable are dropped.")
    stability_score_offset: float = Field(
        default=1.0, gt=0, le=20, description="Stability compares the mask at logits shifted by so much."
    )
    box_nms_thresh: float = Field(
        default=0.7, ge=0, le=1, description="Of masks whose boxes overlap more (IoU), the best stays."
    )
    crop_n_layers: int = Field(default=0, ge=0, le=4, description="Layers of crops besides the whole image.")
    crop_nms_thresh: float = Field(default=0.7, ge=0, le=1, description="As box_nms_thresh, between crops.")
    crop_overlap_ratio: float = Field(
        default=512 / 1500, ge=0, lt=1, description="Overlap of crops, as a share of the image's shorter side."
    )
    crop_n_points_downscale_factor: int = Field(
        default=1, ge=1, le=16, description="Points a side in layer n: points_per_side divided by this to the n."
    )
    min_mask_region_area: int = Field(
        default=0, ge=0, le=64_000_000, description="Holes and islands with fewer pixels are removed."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("preset"), str):
            return {**PRESETS.get(given["preset"], {}), **given}
        return given

    @model_validator(mode="after")
    def _bounded(self) -> AutoOptions:
        total = 0
        for layer in range(self.crop_n_layers + 1):
            side = int(self.points_per_side / self.crop_n_points_downscale_factor**layer)
            if side < 1:
                raise ValueError(f"layer {layer} would have no points: lower crop_n_points_downscale_factor")
            total += side * side * (4**layer)
        if total > MAX_POINTS:
            raise ValueError(f"the grids have {total} points; at most {MAX_POINTS} are computed in one request")
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of all fields but ``preset``."""
        return self.model_dump(exclude={"preset"})
