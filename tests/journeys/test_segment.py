"""A bird is segmented: the mask, the images made of it, and where they can be fetched."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serving import Server

VOC = {0: (0, 0, 0), 3: (128, 128, 0)}


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_the_bird(topology_server: Server, shared_data: Path) -> None:
    folder = shared_data / "models" / "deeplabv3_voc"
    data = (folder / "bird.png").read_bytes()
    photo = np.array(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    truth = np.array(Image.open(folder / "bird_reference_mask.png").convert("L"))
    with topology_server.client() as client:
        answer = client.post("/v1/segment", params={"model": "deeplabv3_voc"}, content=data)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["image"]["width"], body["image"]["height"]) == (photo.shape[1], photo.shape[0])

        files = {}
        for kind, url in body["artifacts"].items():
            fetched = client.get(url, follow_redirects=True)
            assert fetched.status_code == 200
            assert fetched.headers["content-type"] == "image/png"
            files[kind] = Image.open(io.BytesIO(fetched.content))
        mask = np.array(files["mask"])
        assert mask.dtype == np.uint8
        assert mask.shape == photo.shape[:2]
        bird = mask == 3
        assert iou(bird, (truth == 3) if (truth == 3).any() else truth > 0) >= 0.90

        # The list says what the mask holds, the colours what the palette says, the overlay tints nothing but the bird.
        counts = {int(i): int(n) for i, n in zip(*np.unique(mask, return_counts=True), strict=True)}
        assert {c["class_index"]: c["pixels"] for c in body["classes"]} == counts
        assert [c["pixels"] for c in body["classes"]] == sorted(counts.values(), reverse=True)
        for c in body["classes"]:
            assert c["share"] == pytest.approx(c["pixels"] / mask.size)
            assert tuple(c["color"]) == VOC[c["class_index"]]
        color = np.array(files["color"].convert("RGB"))
        assert (color[bird] == VOC[3]).all()
        assert (color[~bird] == VOC[0]).all()
        over = np.array(files["overlay"].convert("RGB")).astype(int)
        assert (over[~bird] == photo[~bird]).all()
        assert np.abs(over[bird] - (photo[bird] + np.array(VOC[3])) / 2).max() <= 1

        # The same images as the answer itself.
        for kind in ("mask", "color", "overlay"):
            image = client.post(
                "/v1/segment",
                params={"model": "deeplabv3_voc", "render": kind, "store": "false"},
                content=data,
                headers={"accept": "image/png"},
            )
            assert image.status_code == 200
            assert image.headers["content-type"] == "image/png"
            assert (
                np.array(Image.open(io.BytesIO(image.content)).convert("RGB")) == np.array(files[kind].convert("RGB"))
            ).all()

        # A stored image can be asked about again.
        again = client.post("/v1/segment", params={"model": "deeplabv3_voc", "image_id": body["image"]["id"]})
        assert again.status_code == 200, again.text
        assert again.json()["classes"] == body["classes"]
        assert again.json()["image"]["id"] == body["image"]["id"]
        assert again.json()["id"] != body["id"]
