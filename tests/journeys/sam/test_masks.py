"""Points and boxes become masks: the right ones, in every format, for images of any size."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools import mask as coco

from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.sam.mask_answers import (
    DATA,
    PROMPTS,
    check_results,
    image_at,
    message,
    pixels,
    request,
    without_ids,
)
from tests.serving import Server
from tests.toy_sam import boxes_of, middle, shapes


@EVERY_TOPOLOGY
def test_points_and_boxes(client: httpx.Client) -> None:
    form = {"prompts": json.dumps(PROMPTS), "model": "sam_toy"}
    answer = client.post("/v1/masks", files={"file": ("shapes.png", DATA)}, data=form)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    check_results(body["results"], PROMPTS)
    assert body["model"] == {"name": "sam_toy", "version": 1}
    assert (body["image"]["width"], body["image"]["height"]) == (640, 427)
    ids = [mask["id"] for result in body["results"] for mask in result["masks"]]
    assert len(set(ids)) == 3 * len(PROMPTS) and None not in ids
    assert set(body) == {"id", "model", "image", "results", "embedding", "timing"}

    # Alone, of a raw body, and of a stored image: the same.
    for number, prompt in enumerate(PROMPTS):
        alone = request(client, "/v1/masks", [prompt], content=DATA, params={"store": False})
        assert alone["id"] is None
        assert without_ids(alone["results"]) == without_ids(body["results"][number : number + 1])
        assert {mask["id"] for mask in alone["results"][0]["masks"]} == {None}
    stored = request(client, "/v1/masks", PROMPTS, params={"image_id": body["image"]["id"]})
    assert without_ids(stored["results"]) == without_ids(body["results"])
    assert stored["image"] == body["image"]

    # It is remembered whole.
    row = client.get(f"/v1/predictions/{body['id']}").json()
    assert row["task"] == "masks"
    assert row["result"] == {"results": body["results"]}
    assert row["parameters"]["prompts"] == PROMPTS
    assert row["image"] == body["image"]


def test_one_mask_and_no_prompt(client: httpx.Client) -> None:
    body = request(client, "/v1/masks", PROMPTS, content=DATA, params={"multimask": False, "store": False})
    check_results(body["results"], PROMPTS, multimask=False)
    # Without a prompt: the whole image's box.
    body = request(client, "/v1/masks", content=DATA, params={"store": False})
    check_results(body["results"], [{"box": [0, 0, 640, 427]}])
    assert request(client, "/v1/masks", content=DATA, params={"store": False, "version": 1})["model"]["version"] == 1


def test_formats(client: httpx.Client) -> None:
    def masks(format: str, **params: Any) -> list[dict[str, Any]]:
        body = request(client, "/v1/masks", PROMPTS[:3], content=DATA, params={"format": format, **params})
        return [mask for result in body["results"] for mask in result["masks"]]

    runs = masks("rle")
    truths = [pixels(mask["segmentation"]) for mask in runs]
    info = [{**mask, "id": None, "segmentation": None} for mask in runs]
    for format in ("coco", "polygons", "geojson", "png"):
        drawn = masks(format)
        assert [{**mask, "id": None, "segmentation": None} for mask in drawn] == info
        for mask, truth in zip(drawn, truths, strict=True):
            assert np.array_equal(_drawn(client, format, mask["segmentation"], truth.shape), truth), format
    for mask, truth in zip(masks("png", store=False), truths, strict=True):
        head, data = mask["segmentation"].split(",", 1)
        assert head == "data:image/png;base64"
        assert mask["id"] is None
        assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")) == 255, truth)
    assert "format" in message(client, "/v1/masks", content=DATA, params={"format": "svg"})


def _drawn(client: httpx.Client, format: str, segmentation: Any, shape: tuple[int, int]) -> Any:
    if format == "coco":
        assert segmentation["size"] == list(shape)
        return coco.decode(segmentation).astype(bool)
    if format == "png":
        levels = np.array(image_at(client, segmentation).convert("L"))
        assert set(np.unique(levels)) <= {0, 255}
        return levels == 255
    if format == "geojson":
        area = shapely.geometry.shape(segmentation)
    else:
        area = shapely.MultiPolygon([(_ring(part["outer"]), list(map(_ring, part["holes"]))) for part in segmentation])
    assert area.is_valid
    rows, columns = np.indices(shape)
    return shapely.contains_xy(area, columns + 0.5, rows + 0.5)


def _ring(flat: list[float]) -> Any:
    """COCO's flat x0, y0, x1, y1, ... as points."""
    return np.array(flat, np.float64).reshape(-1, 2)


def test_a_turned_image_answers_in_turned_coordinates(client: httpx.Client) -> None:
    image = shapes(300, 460)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: stored so that this gives the image
    data = toy_models.encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    box = boxes_of(300, 460)[3]
    prompts: list[dict[str, Any]] = [{"points": [[*middle(box), 1]]}, {"box": list(box)}]
    body = request(client, "/v1/masks", prompts, content=data, params={"store": False})
    assert (body["image"]["width"], body["image"]["height"]) == (300, 460)
    check_results(body["results"], prompts, image=image)
    assert "prompt 0" in message(client, "/v1/masks", [{"points": [[400, 5, 1]]}], content=data)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (1300, 40), (1024, 1024), (1700, 1100)], ids=str)
def test_sizes(client: httpx.Client, size: tuple[int, int]) -> None:
    image = shapes(*size) if min(size) > 9 else toy_models.noise(*size, seed=4)
    prompts: list[dict[str, Any]] = [{"points": [[size[0] - 1, size[1] - 1, 1]]}, {"box": [0, 0, *size]}]
    body = request(client, "/v1/masks", prompts, content=toy_models.encoded(image), params={"store": False})
    check_results(body["results"], prompts, image=image)


@EVERY_TOPOLOGY
def test_the_bento_endpoint(sam_server: Server, client: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "shapes.png"
    path.write_bytes(DATA)
    same = request(client, "/v1/masks", PROMPTS[:2], content=DATA, params={"store": False})["results"]
    with bentoml.SyncHTTPClient(sam_server.url) as bento:
        given: dict[str, Any] = bento.masks(image=path, prompts=PROMPTS[:2], model="sam_toy")
        assert without_ids(given["results"]) == without_ids(same)
        assert client.get(f"/v1/predictions/{given['id']}").json()["task"] == "masks"
        one: dict[str, Any] = bento.masks(image=path, model="sam_toy", multimask=False, store=False, format="coco")
        assert one["id"] is None
        mask = one["results"][0]["masks"][0]
        drawn = coco.decode(mask["segmentation"])
        runs = request(client, "/v1/masks", content=DATA, params={"store": False, "multimask": False})["results"]
        assert np.array_equal(drawn == 1, pixels(runs[0]["masks"][0]["segmentation"]))
        with pytest.raises(bentoml.exceptions.BentoMLException, match="prompt 0"):
            bento.masks(image=path, prompts=[{"box": [5, 5, 5, 5]}], model="sam_toy")
