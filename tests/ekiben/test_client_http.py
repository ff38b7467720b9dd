"""The client over HTTP: what is sent, and how the answers are read."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from ekiben._client import image_inputs
from ekiben._client.http_transport import AsyncHttpTransport
from ekiben.client import AsyncClient, EkibenError
from tests import toy_models
from tests.ekiben.bodies import JOB, MASK, classification, head, job
from tests.ekiben.clients import Script, form, handled, said

PNG = toy_models.encoded(toy_models.solid((200, 10, 10), 4, 3))

LEVELS = np.array([[0, 1, 1, 2], [0, 0, 2, 2], [3, 3, 3, 3]], np.uint8)
LEVELS_PNG = toy_models.encoded(Image.fromarray(LEVELS))


def test_what_is_sent(kind: str) -> None:
    script = Script(*(said(classification("red")) for _ in range(2)))
    with handled(kind, script, headers={"X-Team": "birds"}) as client:
        answer = client.classify(PNG, model="colours", version=np.int64(2), top_k=3, store=False)
        assert (answer.top.class_name, answer.top.confidence, answer.model.version) == ("red", 0.5, 2)
        client.classify(image_id=MASK)
        for wrong in ({}, {"image": PNG, "image_id": MASK}):
            with pytest.raises(ValueError, match="image_id"):
                client.classify(**wrong)
    first, second = script.requests
    assert (first.method, first.url.path, first.url.query, first.headers["x-team"]) == (
        "POST",
        "/v1/classify",
        b"",
        "birds",
    )
    sent = form(first)
    assert (sent.data, sent.filename) == (PNG, None)
    assert sent.fields == {"model": "colours", "version": "2", "top_k": "3", "store": "false"}
    assert httpx.QueryParams(second.read().decode()) == httpx.QueryParams({"image_id": MASK})


def test_every_form_of_an_image_is_sent_alike(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(PNG)
    pixels = np.asarray(Image.open(path))
    forms: list[Any] = [path, str(path), PNG, io.BytesIO(PNG), path.open("rb"), Image.fromarray(pixels), pixels]
    script = Script(*(said(classification("red")) for _ in forms))
    with handled(kind, script) as client:
        for given in forms:
            client.classify(given)
    sent = [form(request) for request in script.requests]
    assert [one.data for one in sent[:5]] == [PNG] * 5
    assert [one.filename for one in sent] == ["red.png", "red.png", None, None, "red.png", None, None]
    made = image_inputs.image_file(pixels).data()
    assert [one.data for one in sent[5:]] == [made, made]
    forms[4].close()


def test_a_class_map_is_fetched_or_sent_along(kind: str) -> None:
    areas = [{"class_index": 3, "class_name": "cat", "color": [1, 2, 3], "pixels": 4, "share": 1 / 3}]
    kept = head(classes=areas, artifacts={"mask": f"/v1/artifacts/{MASK}", "color": "/v1/artifacts/c"})
    inline = "data:image/png;base64," + base64.b64encode(LEVELS_PNG).decode()
    unkept = head(classes=areas, artifacts={"mask": inline})
    script = Script(said(kept), httpx.Response(200, content=LEVELS_PNG), said(unkept), said(kept), said(kept))
    with handled(kind, script) as client:
        answer = client.segment(PNG, flips=True)
        assert np.array_equal(answer.class_map, LEVELS) and answer.class_map.dtype == np.uint8
        assert answer.artifacts == kept["artifacts"]
        assert answer.of("cat").sum() == 4
        answer = client.segment(PNG, store=False)
        assert np.array_equal(answer.class_map, LEVELS)
        assert (answer.artifacts, answer.raw["artifacts"]) == (None, None)
        assert client.segment(PNG, class_map=False).class_map is None
        assert client.segment(b"\x1f\x8b a volume", store=False, class_map=False).class_map is None
    assert script.requested[:2] == [("POST", "/v1/segment"), ("GET", f"/v1/artifacts/{MASK}")]
    fields = [form(script.requests[number]).fields for number in (0, 2, 3, 4)]
    assert fields == [{"flips": "true"}, {"store": "false", "render": "mask"}, {}, {"store": "false"}]


def test_renders_and_volumes(kind: str) -> None:
    script = Script(httpx.Response(200, content=LEVELS_PNG), httpx.Response(200, content=b"nifti"))
    with handled(kind, script) as client:
        image = client.render(PNG, "color", model="areas")
        assert np.array_equal(np.asarray(image), LEVELS)
        assert client.segment_volume(b"volume") == b"nifti"
    assert [request.headers["accept"] for request in script.requests] == ["image/png", "application/gzip"]
    assert form(script.requests[0]).fields == {"model": "areas", "render": "color"}
    assert form(script.requests[1]).fields == {"render": "nifti"}


def test_masks(kind: str) -> None:
    mask = {"id": MASK, "segmentation": {"size": [3, 4], "counts": [4, 2, 6]}, "predicted_iou": 0.9}
    mask |= {"stability_score": None, "area": 2, "bbox": [1, 1, 0, 1]}
    worse = {**mask, "predicted_iou": 0.1}
    body = head(results=[{"prompt": 0, "masks": [worse, mask]}], embedding={"cached": False, "encode_ms": 3})
    script = Script(said(body))
    with handled(kind, script) as client:
        answer = client.masks(PNG, points=[(1, 1)], labels=[1], multimask=True)
    assert answer.best == (answer.results[0][1],)
    assert np.argwhere(answer.best[0].array).tolist() == [[1, 1], [2, 1]]
    assert (answer.best[0].bbox, answer.best[0].stability_score) == ((1, 1, 0, 1), None)
    fields = form(script.requests[0]).fields
    assert json.loads(fields.pop("prompts")) == [{"points": [[1, 1, 1]]}]
    assert fields == {"multimask": "true"}


def test_cutouts_come_with_their_images(kind: str) -> None:
    cut: dict[str, Any] = {
        "id": None,
        "url": None,
        "prompt": None,
        "bbox": [0, 0, 4, 3],
        "width": 4,
        "height": 3,
        "area": 5,
    }
    cut |= {"predicted_iou": 0.9, "stability_score": 0.8}
    body = head(cutouts=[cut], embedding={"cached": True, "encode_ms": 3.5})
    out = io.BytesIO()
    rgba = Image.fromarray(np.random.default_rng(1).integers(0, 256, (3, 4, 4), np.uint8))
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("cutout-000.png", toy_models.encoded(rgba))
        archive.writestr("cutouts.json", json.dumps(body))
    script = Script(httpx.Response(200, content=out.getvalue()), httpx.Response(200, content=b"<html>"))
    with handled(kind, script) as client:
        (found,) = client.cutouts(PNG, preset="fast", limit=1).cutouts
        assert found.image.mode == "RGBA"
        assert np.array_equal(np.asarray(found.image), np.asarray(rgba))
        with pytest.raises(EkibenError) as caught:
            client.cutouts(PNG)
    assert caught.value.code == "bad_answer"
    assert form(script.requests[0]).fields == {"preset": "fast", "limit": "1"}
    assert script.requests[0].headers["accept"] == "application/zip"


def test_batches(kind: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG + name.encode())
    answers = [said({"job_id": JOB}, 202), said(job("queued"))]
    script = Script(*answers, *answers, httpx.ReadError("reset"), *answers)
    with handled(kind, script) as client:
        client.batch("classify", [PNG, tmp_path / "a.png"], parameters={"model": "colours"}, store=False)
        client.batch("segment", image_ids=[MASK])
        client.batch("masks", tmp_path, parameters={"prompts": [{"box": (1, 2, 3, 4)}]})
    first, _, second, _, third, again, _ = (request.read() for request in script.requests)
    assert first.count(b'name="files"') == 2 and b'filename="a.png"' in first and PNG + b"a.png" in first
    assert b'{"model": "colours"}' in first and b'name="store"\r\n\r\nfalse' in first
    assert json.loads(second) == {"operation": "segment", "parameters": {}, "image_ids": [MASK]}
    # Files are read anew for another try.
    for body in (third, again):
        assert PNG + b"a.png" in body and PNG + b"b.png" in body
        assert b'{"prompts": [{"box": [1, 2, 3, 4]}]}' in body


def test_datasets_are_packed(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    for part in ("images", "masks", ".cache"):
        (folder / part).mkdir(parents=True)
        (folder / part / "1.png").write_bytes(PNG)
    dataset: dict[str, Any] = {
        "id": MASK,
        "name": "cells",
        "state": "importing",
        "error": None,
        "job_id": JOB,
        "source": {},
    }
    dataset |= {"storage": "", "samples": 0, "files": 0, "total_mb": 0.0, "classes": [], "report": None}
    dataset |= {"preview": None, "created_at": "2026-11-20T09:30:00.000000Z"}
    script = Script(said({"dataset_id": MASK, "job_id": JOB}, 202), said(dataset), said(job("succeeded")))
    with handled(kind, script) as client:
        brought = client.upload_dataset(folder, classes=["ground", "cell"])
        assert (brought.name, brought.job_id) == ("cells", JOB)
        assert client.wait(brought).id == JOB
    sent = form(script.requests[0])
    assert (sent.filename, sent.fields) == ("cells.zip", {"name": "cells", "classes": '["ground", "cell"]'})
    with zipfile.ZipFile(io.BytesIO(sent.data or b"")) as archive:
        assert archive.namelist() == ["images/1.png", "masks/1.png"]
        assert archive.read("masks/1.png") == PNG
    assert script.requested[2] == ("GET", f"/v1/jobs/{JOB}")


def test_a_task_that_is_cancelled_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "cells"
    folder.mkdir()
    (folder / "1.png").write_bytes(PNG)
    there: list[list[str]] = []

    async def cancelled() -> None:
        async def never(request: httpx.Request) -> httpx.Response:
            there.append(sorted(path.name.split("-")[0] for path in tmp_path.iterdir()))
            await asyncio.sleep(60)
            raise AssertionError("it was not cancelled")

        through = AsyncHttpTransport("http://ekiben.test", 5.0, {}, None, transport=httpx.MockTransport(never))
        async with AsyncClient(transport=through) as client:
            task = asyncio.create_task(client.upload_dataset(folder))
            while not there:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    assert there == [["cells", "ekiben"]]
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]
