"""The requests that these tests make jobs of."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests import toy_models
from tests.journeys.jobs.job_client import (
    get,
)
from tests.toy_sam import shapes

IMAGE = toy_models.encoded(shapes(320, 240))
LARGE = toy_models.encoded(shapes(900, 700))
RED = toy_models.encoded(toy_models.solid((255, 0, 0)))
UNKNOWN = "01890000-0000-7000-8000-000000000000"
TORN = toy_models.encoded(toy_models.noise(64, 64), "JPEG")[:400]
"""Its first bytes are a JPEG's: only who decodes it finds out."""

POINT = json.dumps([{"points": [[70, 60, 1]]}, {"box": [20, 20, 150, 120]}])
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("/v1/classify", {"model": "colours", "top_k": 2}),
    "segment": ("/v1/segment", {"model": "areas"}),
    "masks": ("/v1/masks", {"model": "sam_toy", "prompts": POINT, "format": "polygons"}),
    "auto_masks": ("/v1/masks/auto", {"model": "sam_toy", "points_per_side": 6}),
    "cutouts": ("/v1/cutouts", {"model": "sam_toy", "prompts": POINT, "padding_px": 3}),
}


def files_of(client: httpx.Client, prediction_id: str) -> list[tuple[str, str]]:
    """Kind and SHA-256 of the files of a prediction, in the order in which they were made."""
    row = get(client, f"/v1/predictions/{prediction_id}")
    return sorted((artifact["kind"], artifact["sha256"]) for artifact in row["artifacts"])
