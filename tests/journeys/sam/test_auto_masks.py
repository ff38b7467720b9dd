"""Masks of everything are those of the reference's generator; a deadline and a caller who leaves end them."""

from __future__ import annotations

import socket
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bentoml
import httpx
import numpy as np
import pytest
from PIL import Image

from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.sam.auto_reference import reference_masks
from tests.journeys.sam.mask_answers import counted, image_at, message, pixels, request
from tests.serving import Server, serving
from tests.toy_sam import GROUND, boxes_of, middle, shapes

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

CASES: list[dict[str, Any]] = [
    {"points_per_side": 8},
    {"points_per_side": 8, "min_mask_region_area": 150},
    {
        "points_per_side": 6,
        "points_per_batch": 5,
        "pred_iou_thresh": 0.5,
        "stability_score_thresh": 0.7,
        "stability_score_offset": 0.5,
        "box_nms_thresh": 0.95,
    },
    {
        "points_per_side": 6,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "crop_overlap_ratio": 0.25,
        "crop_nms_thresh": 0.5,
        "stability_score_thresh": 0.8,
    },
]


def busy() -> Image.Image:
    """The rectangles with holes in them and islands beside them, lightly noisy: no logit is exactly 0."""
    image = shapes(320, 240)
    for box in boxes_of(320, 240):
        x, y = (int(v) for v in middle(box))
        image.paste(GROUND, (x, y, x + 10, y + 10))
        image.paste(GROUND, (box[0] + 12, box[1] + 12, box[0] + 30, box[1] + 27))
    image.paste((204, 26, 26), (2, 112, 12, 122))
    image.paste((38, 64, 217), (140, 225, 155, 240))
    rough = np.random.default_rng(3).integers(-5, 6, (240, 320, 3))
    return Image.fromarray(np.clip(np.asarray(image).astype(int) + rough, 0, 255).astype(np.uint8))


BUSY = toy_models.encoded(busy())


@cache
def truth(case: int) -> list[dict[str, Any]]:
    return reference_masks(busy(), **CASES[case])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_masks_are_the_reference_s(client: httpx.Client, case: int) -> None:
    body = request(client, "/v1/masks/auto", content=BUSY, params={**CASES[case], "store": False})
    assert body["parameters"] == {**DEFAULTS, **CASES[case]}
    assert body["id"] is None and body["artifacts"] is None
    assert len(truth(case)) >= 4
    assert [mask["area"] for mask in body["masks"]] == sorted((m["area"] for m in body["masks"]), reverse=True)
    assert len(body["masks"]) == len(truth(case))
    for given, expected in zip(body["masks"], truth(case), strict=True):
        assert (pixels(given["segmentation"]) != expected["segmentation"]).sum() <= 1
        assert given["area"] == pytest.approx(expected["area"], abs=1)
        assert given["bbox"] == pytest.approx(expected["bbox"], abs=1)
        assert given["predicted_iou"] == pytest.approx(expected["predicted_iou"], abs=1e-4)
        assert given["stability_score"] == pytest.approx(expected["stability_score"], abs=1e-3)
        assert given["point_coords"][0] == pytest.approx(expected["point_coords"][0], abs=1e-6)
        assert given["crop_box"] == expected["crop_box"]


def test_small_regions_go() -> None:
    """The cases differ in what they are to differ in."""
    before, after = ({tuple(mask["bbox"]) for mask in truth(case)} for case in (0, 1))
    assert before != after
    assert len({tuple(mask["crop_box"]) for mask in truth(3)}) > 1


@EVERY_TOPOLOGY
def test_an_answer_is_remembered_whole(client: httpx.Client) -> None:
    image = shapes(480, 360)
    before = counted(client)
    body = request(
        client, "/v1/masks/auto", files={"file": ("s.png", toy_models.encoded(image))}, params={"preset": "fast"}
    )
    assert body["parameters"] == {**DEFAULTS, "points_per_side": 16}
    assert counted(client)["prompts"] - before["prompts"] == 256
    masks = [pixels(mask["segmentation"]) for mask in body["masks"]]
    boxes = boxes_of(480, 360)
    assert len(masks) >= len(boxes)
    for box in boxes:
        whole = np.zeros((360, 480), bool)
        whole[box[1] : box[3], box[0] : box[2]] = True
        assert max((mask & whole).sum() / (mask | whole).sum() for mask in masks) > 0.85

    row = client.get(f"/v1/predictions/{body['id']}").json()
    assert row["task"] == "auto_masks"
    assert row["result"] == {"masks": body["masks"]}
    assert {key: row["parameters"][key] for key in DEFAULTS} == body["parameters"]

    covered = np.any(masks, axis=0)
    color, overlay = (
        np.array(image_at(client, body["artifacts"][kind]).convert("RGB")) for kind in ("color", "overlay")
    )
    assert (color[~covered] == 0).all()
    on_top = np.full(covered.shape, -1)
    for number, mask in enumerate(masks):  # the largest first, so that a part lies on its whole
        on_top[mask] = number
    colours = [np.unique(color[on_top == number], axis=0).tolist() for number in np.unique(on_top[covered])]
    assert all(len(one) == 1 for one in colours)
    assert len({tuple(one[0]) for one in colours}) == len(colours)
    line = np.zeros(covered.shape, bool)
    line[:, 1:] |= on_top[:, 1:] != on_top[:, :-1]
    line[1:] |= on_top[1:] != on_top[:-1]
    photo = np.array(image).astype(int)
    assert (overlay[~covered & ~line] == photo[~covered & ~line]).all()
    tinted = (photo + color) / 2
    assert np.abs(overlay - tinted)[covered & ~line].max() <= 1
    assert (overlay[line] > tinted[line] + 50).any(axis=1).all()


def test_presets(client: httpx.Client) -> None:
    small = toy_models.encoded(shapes(96, 64))

    def used(**params: Any) -> dict[str, Any]:
        found: dict[str, Any] = request(client, "/v1/masks/auto", content=small, params={**params, "store": False})
        return dict(found["parameters"])

    assert used(preset="full") == DEFAULTS
    dense = {"pred_iou_thresh": 0.9, "stability_score_thresh": 0.92, "min_mask_region_area": 1000}
    assert used(preset="dense", points_per_side=3) == {**DEFAULTS, **dense, "points_per_side": 3}
    assert used(preset="fast", pred_iou_thresh=0.5, points_per_side=4)["pred_iou_thresh"] == 0.5
    for wrong in ({"preset": "huge"}, {"points_per_side": 0}, {"points_per_side": 10_000}, {"box_nms_thresh": "nan"}):
        assert next(iter(wrong)) in message(client, "/v1/masks/auto", content=small, params=wrong)
    assert "points" in message(
        client, "/v1/masks/auto", content=small, params={"points_per_side": 256, "crop_n_layers": 4}
    )
    assert "frobnicate" in message(client, "/v1/masks/auto", content=small, params={"frobnicate": 1})


LONG = {
    "model": "sam_toy",
    "points_per_side": "100",
    "pred_iou_thresh": "0",
    "stability_score_thresh": "0",
    "store": "false",
}
"""Ten thousand points of which every mask is made: some ten seconds."""


@EVERY_TOPOLOGY
def test_a_caller_who_leaves_ends_them(sam_server: Server, client: httpx.Client) -> None:
    data = toy_models.encoded(shapes(900, 700))
    before = counted(client)["prompts"]
    url = urlsplit(sam_server.url)
    with socket.create_connection((url.hostname or "", url.port or 0)) as caller:
        query = "&".join(f"{name}={value}" for name, value in LONG.items())
        head = f"POST /v1/masks/auto?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        caller.sendall(head.encode() + data)
        end = time.monotonic() + 20
        while counted(client)["prompts"] < before + 40:
            assert time.monotonic() < end, "it never began"
            time.sleep(0.02)
    time.sleep(0.5)
    stopped = counted(client)["prompts"]
    time.sleep(0.5)
    assert counted(client)["prompts"] == stopped
    assert stopped - before < 5000
    # Others are answered as ever.
    assert request(client, "/v1/masks", content=data, params={"store": False})["embedding"]["cached"] in (True, False)


@pytest.mark.acceptance
def test_a_deadline_of_their_own(sam_home: Path) -> None:
    data = toy_models.encoded(shapes(900, 700))
    with serving(sam_home, EKIBEN_AUTO_TIMEOUT_S="0.7") as server, server.client() as client:
        started = time.monotonic()
        answer = client.post("/v1/masks/auto", params=LONG, content=data)
        assert answer.status_code == 504, answer.text
        assert "deadline" in answer.json()["error"]["message"]
        assert 0.6 < time.monotonic() - started < 3
        time.sleep(0.3)
        stopped = counted(client)["prompts"]
        time.sleep(0.3)
        assert counted(client)["prompts"] == stopped
        assert client.post("/v1/cutouts", params=LONG, content=data).status_code == 504
        assert request(client, "/v1/masks", content=data, params={"store": False})["results"]
        small = toy_models.encoded(shapes(96, 64))
        assert len(request(client, "/v1/masks/auto", content=small, params={"points_per_side": 8})["masks"]) == 4


def test_the_bento_endpoint(sam_server: Server, client: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "shapes.png"
    path.write_bytes(toy_models.encoded(shapes(480, 360)))
    same = request(client, "/v1/masks/auto", content=path.read_bytes(), params={"preset": "fast", "store": False})
    with bentoml.SyncHTTPClient(sam_server.url) as bento:
        given: dict[str, Any] = bento.auto_masks(image=path, preset="fast", model="sam_toy")
    assert given["masks"] == same["masks"]
    assert set(given["artifacts"]) == {"color", "overlay"}
