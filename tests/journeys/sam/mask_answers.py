"""Reading the answers of the mask operations: requests, masks as pixels, counters."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests import toy_models
from tests.toy_sam import Expected, boxes_of, expected_masks, middle, shapes

Mask = NDArray[np.bool_]

IMAGE = shapes(640, 427)
DATA = toy_models.encoded(IMAGE)
RED, GREEN, BLUE, YELLOW = boxes_of(640, 427)
INNER = [GREEN[0] + 30, GREEN[1] + 20, GREEN[2] - 30, GREEN[3] - 10]

PROMPTS: list[dict[str, Any]] = [
    {"points": [[*middle(RED), 1]]},
    {"box": INNER},
    {"points": [[*middle(YELLOW), 1]], "box": [0, 0, 640, 427]},
    {"points": [[*middle(BLUE), 1], [*middle(RED), 0], [3, 3, 0]]},
    {"points": [[*middle(RED), 1], [*middle(GREEN), 1]]},
    {"points": [[1, 1, 0]]},
    {"points": [[639.5, 426.25, 1]]},
    {"box": [RED[0] - 7.5, RED[1] - 3, BLUE[2], BLUE[3]]},
]
"""Of different lengths, so that they share batches with absent points."""

NEAR_ZERO = 1e-3
"""Logits this near to the threshold may fall on either side: the server computes them in float32."""

COUNTERS = {
    "hit": 'ekiben_embedding_lookups_total{outcome="hit"}',
    "miss": 'ekiben_embedding_lookups_total{outcome="miss"}',
    "encoder": 'ekiben_encoder_runs_total{model="sam_toy"}',
    "decoded": 'ekiben_decoded_images_total{model="sam_toy"}',
    "prompts": 'ekiben_decoder_prompts_total{model="sam_toy"}',
    "embedding_bytes": "ekiben_embedding_bytes",
}


def request(client: httpx.Client, path: str, prompts: Any = None, *, status: int = 200, **more: Any) -> dict[str, Any]:
    """POST ``path`` with ``params`` as the query, of sam_toy unless they say another model."""
    params = {"model": "sam_toy", **more.pop("params", {})}
    if prompts is not None:
        params["prompts"] = json.dumps(prompts)
    answer = client.post(path, params=params, **more)
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


def message(client: httpx.Client, path: str, prompts: Any = None, *, status: int = 400, **more: Any) -> str:
    """What a refusal says."""
    return str(request(client, path, prompts, status=status, **more)["error"]["message"])


def counted(client: httpx.Client) -> dict[str, float]:
    text = client.get("/metrics").text
    found = {}
    for name, series in COUNTERS.items():
        line = re.search(f"^{re.escape(series)} (.+)$", text, re.MULTILINE)
        found[name] = float(line.group(1)) if line else 0.0
    return found


def since(before: dict[str, float], client: httpx.Client) -> dict[str, int]:
    return {name: int(value - before[name]) for name, value in counted(client).items() if name != "embedding_bytes"}


def pixels(rle: dict[str, Any]) -> Mask:
    """[H, W] of runs down the columns, zeros first."""
    height, width = rle["size"]
    values = np.arange(len(rle["counts"])) % 2 == 1
    flat = np.repeat(values, rle["counts"])
    assert flat.size == height * width
    return np.asarray(flat.reshape(width, height).T)


def image_at(client: httpx.Client, url: str) -> Image.Image:
    fetched = client.get(url, follow_redirects=True)
    assert fetched.status_code == 200, fetched.text
    assert fetched.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(fetched.content))


def check_mask(given: dict[str, Any], expected: Expected) -> None:
    """An answered mask (format rle) is the expected one, and so is what is said of it."""
    mask = pixels(given["segmentation"])
    assert mask.shape == expected.logits.shape
    clear = np.abs(expected.logits) > NEAR_ZERO
    assert np.array_equal(mask[clear], expected.mask[clear])
    assert given["predicted_iou"] == pytest.approx(expected.predicted_iou, abs=1e-4)
    assert given["area"] == mask.sum()
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), np.ptp(columns), np.ptp(rows)] if len(rows) else [0, 0, 0, 0]
    assert given["bbox"] == box
    if not (expected.logits > -1 - NEAR_ZERO).any():
        assert given["stability_score"] is None
        return
    least, most = (
        (expected.logits > 1 + near).sum() / (expected.logits > -1 - near).sum() for near in (NEAR_ZERO, -NEAR_ZERO)
    )
    assert least - 1e-6 <= given["stability_score"] <= most + 1e-6


def expected(prompt: dict[str, Any], image: Image.Image = IMAGE, **more: Any) -> list[Expected]:
    return expected_masks(image, prompt.get("points", ()), prompt.get("box"), **more)


def check_results(results: list[dict[str, Any]], prompts: list[dict[str, Any]], **more: Any) -> None:
    assert [result["prompt"] for result in results] == list(range(len(prompts)))
    for result, prompt in zip(results, prompts, strict=True):
        for given, one in zip(result["masks"], expected(prompt, **more), strict=True):
            check_mask(given, one)


def without_ids(results: list[dict[str, Any]]) -> list[Any]:
    return [[{**mask, "id": None} for mask in result["masks"]] for result in results]
