"""The 100 photos, posted eight at a time, are answered as plain ONNX Runtime answers them, in every topology."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image, ImageOps

from tests.serving import Server


def reference(session: ort.InferenceSession, path: Path) -> np.ndarray[Any, Any]:
    """Probabilities by a full Pillow decode and plain ONNX Runtime; shares no code with Ekiben."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    side = int(0.875 * min(image.size))
    x, y = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((x, y, x + side, y + side)).resize((224, 224), Image.Resampling.BILINEAR)
    pixels = (np.array(image, dtype=np.float64) / 255 - 0.501961) / 0.501961
    return session.run(None, {"input": pixels.astype(np.float32).transpose(2, 0, 1)[None]})[0][0]


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[tuple[Path, int, np.ndarray[Any, Any]]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = shared_data / "models" / "mobilenet_v2" / "model.onnx"
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    folder = shared_data / "imagenet_sample"
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(folder / r["file"], int(r["class_index"]) + 1, reference(session, folder / r["file"])) for r in rows]


def test_a_hundred_photos(topology_server: Server, photos: list[tuple[Path, int, np.ndarray[Any, Any]]]) -> None:
    with topology_server.client() as client, ThreadPoolExecutor(8) as pool:

        def request(photo: tuple[Path, int, np.ndarray[Any, Any]]) -> dict[str, Any]:
            answer = client.post(
                "/v1/classify",
                params={"model": "mobilenet_v2", "top_k": 5},
                files={"file": (photo[0].name, photo[0].read_bytes())},
            )
            assert answer.status_code == 200, answer.text
            body: dict[str, Any] = answer.json()
            return body

        answers = list(pool.map(request, photos))
        top1 = top5 = 0
        for (path, truth, expected), answer in zip(photos, answers, strict=True):
            best = np.argsort(-expected, kind="stable")[:5]
            given = answer["predictions"]
            assert [p["confidence"] for p in given] == pytest.approx([float(expected[i]) for i in best], abs=1e-5), (
                path.name
            )
            for p in given:
                assert p["confidence"] == pytest.approx(float(expected[p["class_index"]]), abs=1e-5), path.name
            top1 += given[0]["class_index"] == truth
            top5 += truth in [p["class_index"] for p in given]
            with Image.open(path) as image:
                turned = ImageOps.exif_transpose(image)
                assert (answer["image"]["width"], answer["image"]["height"]) == turned.size
        assert (top1, top5) == (91, 97)

        # Every answer was recorded, with the bytes that were sent.
        listed = client.get("/v1/predictions", params={"model": "mobilenet_v2", "limit": 500}).json()
        assert {a["id"] for a in answers} <= {row["id"] for row in listed["items"]}
        stored = client.get(f"/v1/images/{answers[0]['image']['id']}/content", follow_redirects=True)
        assert stored.content == photos[0][0].read_bytes()


def test_each_client_gets_its_own_answer(
    topology_server: Server, photos: list[tuple[Path, int, np.ndarray[Any, Any]]]
) -> None:
    """32 clients at once, each with another image, raw bodies: nobody gets a neighbour's answer."""
    chosen = photos[:32]

    def request(photo: tuple[Path, int, np.ndarray[Any, Any]]) -> None:
        with httpx.Client(base_url=topology_server.url, timeout=60) as client:
            for _ in range(3):
                answer = client.post(
                    "/v1/classify?model=mobilenet_v2&top_k=1&store=false", content=photo[0].read_bytes()
                )
                assert answer.status_code == 200, answer.text
                assert answer.json()["id"] is None
                first = answer.json()["predictions"][0]
                assert first["class_index"] == int(np.argmax(photo[2]))
                assert first["confidence"] == pytest.approx(float(photo[2].max()), abs=1e-5)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(request, chosen))
