"""Objects with a transparent background: the image's own colours inside the mask, nothing outside."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
from PIL import Image

from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.sam.mask_answers import check_mask, image_at, message, pixels, request
from tests.serving import Server
from tests.toy_sam import boxes_of, expected_masks, middle, shapes


def grained() -> Image.Image:
    """The rectangles with a little noise, so that no two pixels are alike."""
    plain = np.asarray(shapes(400, 300)).astype(int)
    rough = np.random.default_rng(11).integers(-8, 9, plain.shape)
    return Image.fromarray(np.clip(plain + rough, 0, 255).astype(np.uint8))


IMAGE = grained()
RGB = np.asarray(IMAGE)
DATA = toy_models.encoded(IMAGE)
BOXES = boxes_of(400, 300)
PROMPTS: list[dict[str, Any]] = [
    {"points": [[*middle(BOXES[1]), 1]]},
    {"box": list(BOXES[2])},
    {"points": [[399, 299, 1]]},
]


def masks_of(client: httpx.Client, prompts: list[dict[str, Any]], *, multimask: bool = False) -> list[np.ndarray]:
    """What is to be cut out: the only mask of each prompt, or the first of three, which has the best predicted IoU."""
    body = request(client, "/v1/masks", prompts, content=DATA, params={"multimask": multimask, "store": False})
    found = []
    for prompt, result in zip(prompts, body["results"], strict=True):
        truth = expected_masks(IMAGE, prompt.get("points", ()), prompt.get("box"), multimask=multimask)
        check_mask(result["masks"][0], truth[0])
        found.append(pixels(result["masks"][0]["segmentation"]))
    return found


def window(mask: np.ndarray, padding: int = 0) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    return (
        max(0, columns.min() - padding),
        max(0, rows.min() - padding),
        min(width, columns.max() + 1 + padding),
        min(height, rows.max() + 1 + padding),
    )


def check(given: dict[str, Any], cut: Image.Image, mask: np.ndarray, box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    assert cut.mode == "RGBA"
    assert cut.size == (given["width"], given["height"]) == (x1 - x0, y1 - y0)
    assert given["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    assert given["area"] == mask.sum()
    levels, inside = np.array(cut), mask[y0:y1, x0:x1]
    assert (levels[..., 3] == np.where(inside, 255, 0)).all()
    assert (levels[inside, :3] == RGB[y0:y1, x0:x1][inside]).all()
    assert (levels[~inside, :3] == 0).all()  # what was cut away is not in the file


@EVERY_TOPOLOGY
@pytest.mark.parametrize("padding", [0, 25])
def test_cut_by_prompts(client: httpx.Client, padding: int) -> None:
    params = {"padding_px": padding} if padding else {}
    body = request(client, "/v1/cutouts", PROMPTS, content=DATA, params=params)
    assert [one["prompt"] for one in body["cutouts"]] == [0, 1, 2]
    for given, mask in zip(body["cutouts"], masks_of(client, PROMPTS), strict=True):
        check(given, image_at(client, given["url"]), mask, window(mask, padding))
        assert given["url"] == f"/v1/artifacts/{given['id']}"
    # One reaches the image's edge: no more than the image is there.
    assert any(one["bbox"][0] == 0 or one["bbox"][1] == 0 for one in body["cutouts"])
    row = client.get(f"/v1/predictions/{body['id']}").json()
    assert row["task"] == "cutouts"
    assert row["result"] == {"cutouts": body["cutouts"]}
    assert {a["url"] for a in row["artifacts"] if a["kind"] == "cutout"} == {one["url"] for one in body["cutouts"]}
    assert client.delete(f"/v1/predictions/{body['id']}").status_code == 204
    assert client.get(body["cutouts"][0]["url"]).status_code == 404


def test_the_best_of_several_masks(client: httpx.Client) -> None:
    body = request(client, "/v1/cutouts", PROMPTS[:2], content=DATA, params={"multimask": True})
    for given, mask in zip(body["cutouts"], masks_of(client, PROMPTS[:2], multimask=True), strict=True):
        assert given["predicted_iou"] == pytest.approx(0.97, abs=1e-4)
        check(given, image_at(client, given["url"]), mask, window(mask))


def test_the_whole_frame_and_a_soft_edge(client: httpx.Client) -> None:
    body = request(client, "/v1/cutouts", PROMPTS[:1], content=DATA, params={"frame": "full"})
    mask = masks_of(client, PROMPTS[:1])[0]
    check(body["cutouts"][0], image_at(client, body["cutouts"][0]["url"]), mask, (0, 0, 400, 300))

    params = {"feather_px": 3, "padding_px": 12}
    body = request(client, "/v1/cutouts", PROMPTS[:1], content=DATA, params=params)
    given = body["cutouts"][0]
    x0, y0, x1, y1 = window(mask, 12)
    assert given["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    levels = np.array(image_at(client, given["url"]))
    alpha, inside = levels[..., 3].astype(int), mask[y0:y1, x0:x1]
    assert alpha[(inside.shape[0]) // 2, inside.shape[1] // 2] == 255
    assert alpha[0].max() == alpha[:, 0].max() == 0
    assert ((alpha > 0) & (alpha < 255)).sum() > 500
    assert abs(alpha.sum() / 255 - inside.sum()) < 0.02 * inside.sum()
    seen = alpha > 0
    assert (levels[seen, :3] == RGB[y0:y1, x0:x1][seen]).all()
    assert (levels[~seen, :3] == 0).all()


def test_as_an_archive(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/cutouts",
        params={"model": "sam_toy", "prompts": json.dumps(PROMPTS), "store": "false"},
        content=DATA,
        headers={"accept": "application/zip"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        pngs = sorted(name for name in archive.namelist() if name.endswith(".png"))
        cuts = [Image.open(io.BytesIO(archive.read(name))) for name in pngs]
        body = json.loads(archive.read("cutouts.json"))
    assert body["id"] is None
    assert [one["url"] for one in body["cutouts"]] == [None] * 3
    for given, cut, mask in zip(body["cutouts"], cuts, masks_of(client, PROMPTS), strict=True):
        check(given, cut, mask, window(mask))


def test_of_everything(client: httpx.Client) -> None:
    options = {"points_per_side": 8, "store": False}
    auto = request(client, "/v1/masks/auto", content=DATA, params=options)["masks"]
    assert len(auto) >= 4

    def cut(**more: Any) -> list[tuple[dict[str, Any], Image.Image]]:
        body = request(client, "/v1/cutouts", content=DATA, params={**options, "store": True, **more})
        return [(one, image_at(client, one["url"])) for one in body["cutouts"]]

    for (given, image), mask in zip(cut(), auto, strict=True):
        whole = pixels(mask["segmentation"])
        check(given, image, whole, window(whole))
        assert given["prompt"] is None
        assert given["predicted_iou"] == mask["predicted_iou"]
        assert given["stability_score"] == mask["stability_score"]
    areas = [mask["area"] for mask in auto]
    assert [given["area"] for given, _ in cut(min_pixels=areas[1])] == [a for a in areas if a >= areas[1]]
    assert cut(min_pixels=400 * 300) == []


def test_what_is_refused(client: httpx.Client) -> None:
    for wrong in ({"padding_px": -1}, {"feather_px": "nan"}, {"frame": "circle"}, {"min_pixels": "few"}):
        assert next(iter(wrong)) in message(client, "/v1/cutouts", PROMPTS, content=DATA, params=wrong)
    assert "prompt 0" in message(client, "/v1/cutouts", [{"box": [0, 0, 900, 10]}], content=DATA)


def test_the_bento_endpoint(sam_server: Server, client: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "shapes.png"
    path.write_bytes(DATA)
    with bentoml.SyncHTTPClient(sam_server.url) as bento:
        given: dict[str, Any] = bento.cutouts(image=path, prompts=PROMPTS, model="sam_toy")
        for one, mask in zip(given["cutouts"], masks_of(client, PROMPTS), strict=True):
            check(one, image_at(client, one["url"]), mask, window(mask))
