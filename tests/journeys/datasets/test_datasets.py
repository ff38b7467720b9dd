"""Datasets over HTTP: brought in every way, looked into, refused with a reason, removed without a trace."""

from __future__ import annotations

import functools
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.masks.rle import encode, to_coco
from tests.journeys.datasets.dataset_client import as_openapi_says, bring, brought, disc, png, ready, zipped
from tests.journeys.datasets.stored_files import SIX, ZIP, publish_toys, settled, stored
from tests.journeys.jobs.job_client import all_items, events, finished, get, refusal
from tests.serving import TOPOLOGIES, Server, serving


@contextmanager
def web(folder: Path) -> Iterator[str]:
    """The address of a web server of this machine that gives the files of ``folder``."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *given: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# ---- the ways in ----


def test_an_upload_becomes_a_dataset(server: Server, client: httpx.Client, openapi: dict[str, Any]) -> None:
    answer = client.post("/v1/datasets", data={"name": "Zellen, größer"}, files={"file": ("../cells.zip", SIX)})
    body = brought(answer)
    as_openapi_says(openapi, "/v1/datasets", body, "post", 202)
    job = finished(client, body["job_id"])
    assert (job["kind"], job["operation"], job["counts"]["total"]) == ("import", "import_dataset", 1)
    told = [event.kind for event in events(client, body["job_id"])]
    assert told[:2] == ["state", "state"] and told[-1] == "state" and "import" in told
    shown = get(client, f"/v1/datasets/{body['dataset_id']}")
    as_openapi_says(openapi, "/v1/datasets/{id}", shown)
    assert (shown["name"], shown["state"], shown["error"]) == ("Zellen, größer", "ready", None)
    assert (shown["samples"], shown["files"], shown["job_id"]) == (6, 12, body["job_id"])
    assert shown["source"] == {"kind": "upload", "url": None, "filename": "cells.zip"}
    assert [(one["class_index"], one["name"]) for one in shown["classes"]] == [(0, "background"), (1, "foreground")]
    assert sum(one["pixels"] for one in shown["classes"]) == 6 * 64 * 64
    assert shown["classes"][1]["pixels"] == sum(int((disc(n)[1] > 0).sum()) for n in range(6))
    blob = server.home / "blobs" / shown["storage"]
    assert shown["total_mb"] == round(blob.stat().st_size / 1e6, 3)
    assert shown["report"]["ok"] and shown["report"]["class_map"] == "binary_0_255"
    result = get(client, f"/v1/jobs/{body['job_id']}/result")
    assert (result["dataset_id"], result["samples"]) == (body["dataset_id"], 6)
    preview = client.get(shown["preview"])
    assert preview.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(preview.content)).width > 64
    assert [item["state"] for item in all_items(client, body["job_id"])] == ["succeeded"]
    listed = get(client, "/v1/datasets")
    as_openapi_says(openapi, "/v1/datasets", listed)
    assert listed["items"][0] == shown


def test_a_raw_body_with_a_query(client: httpx.Client) -> None:
    query: dict[str, str | int] = {"name": "raw", "classes": '["nothing", "disc"]', "background": "[7]", "priority": 8}
    body = brought(client.post("/v1/datasets", params=query, content=SIX, headers=ZIP))
    assert finished(client, body["job_id"])["priority"] == 8
    shown = get(client, f"/v1/datasets/{body['dataset_id']}")
    assert [one["name"] for one in shown["classes"]] == ["nothing", "disc"]
    assert shown["source"] == {"kind": "upload", "url": None, "filename": None}


def test_samples(client: httpx.Client, six: str, openapi: dict[str, Any]) -> None:
    page = get(client, f"/v1/datasets/{six}/samples")
    as_openapi_says(openapi, "/v1/datasets/{id}/samples", page)
    assert (page["total"], len(page["items"])) == (6, 6)
    for number, sample in enumerate(page["items"]):
        image, mask = disc(number)
        assert (sample["position"], sample["width"], sample["height"]) == (number, 64, 64)
        assert sample["class_pixels"] == [int((mask == 0).sum()), int((mask > 0).sum())]
        answer = client.get(sample["image"])
        assert answer.headers["content-type"] == "image/png" and answer.headers["x-content-type-options"] == "nosniff"
        assert answer.content == png(image)  # as it came
        levels = np.asarray(Image.open(io.BytesIO(client.get(sample["mask"]).content)))
        np.testing.assert_array_equal(levels, (mask > 0).astype(np.uint8))
    second = get(client, f"/v1/datasets/{six}/samples?page=2&limit=4")
    assert (second["items"], second["page"], second["limit"]) == (page["items"][4:], 2, 4)
    assert get(client, f"/v1/datasets/{six}/samples?page=3&limit=4")["items"] == []
    for place, status in (("6", 404), ("-1", 404), ("x", 400), ("9" * 30, 404)):
        assert client.get(f"/v1/datasets/{six}/samples/{place}/image").status_code == status, place
        assert client.get(f"/v1/datasets/{six}/samples/{place}/mask").status_code == status, place
    for query in ("page=0", "limit=0", "page=x", "limit=100000"):
        assert client.get(f"/v1/datasets/{six}/samples?{query}").status_code == 400, query


def test_no_url_of_this_machine_is_fetched(client: httpx.Client, server: Server, tmp_path: Path) -> None:
    (tmp_path / "discs.zip").write_bytes(SIX)
    with web(tmp_path) as address:
        before = settled(server.home)
        for url in (f"{address}/discs.zip", f"http://localhost:{address.rpartition(':')[2]}/discs.zip"):
            body = brought(client.post("/v1/datasets", json={"name": "far", "url": url}))
            job = finished(client, body["job_id"], state="failed")
            assert job["error"]["code"].startswith("url_"), job["error"]
            shown = get(client, f"/v1/datasets/{body['dataset_id']}")
            assert (shown["state"], shown["error"]["code"]) == ("refused", job["error"]["code"])
            assert shown["source"] == {"kind": "url", "url": url, "filename": None}
            assert client.delete(f"/v1/datasets/{body['dataset_id']}").status_code == 204
        assert stored(server.home) == before


@pytest.mark.acceptance
def test_a_url_of_this_machine_where_that_is_allowed(tmp_path: Path, toy_artifacts: dict[str, Path]) -> None:
    shelf, home = tmp_path / "shelf", publish_toys(tmp_path / "var", toy_artifacts)
    shelf.mkdir()
    (shelf / "discs.zip").write_bytes(SIX)
    allowed = serving(home, EKIBEN_WORKERS="1", EKIBEN_PRIVATE_URLS="true")
    with web(shelf) as address, allowed as server, server.client() as client:
        body = brought(client.post("/v1/datasets", json={"name": "near", "url": f"{address}/discs.zip"}))
        finished(client, body["job_id"])
        assert get(client, f"/v1/datasets/{body['dataset_id']}")["samples"] == 6
        missing = brought(client.post("/v1/datasets", json={"name": "none", "url": f"{address}/nothing.zip"}))
        error = finished(client, missing["job_id"], state="failed")["error"]
        assert "404" in error["message"]
        # What was refused can be tried again, once the other side has put it right.
        (shelf / "nothing.zip").write_bytes(SIX)
        assert client.post(f"/v1/jobs/{missing['job_id']}/retry").status_code == 202
        finished(client, missing["job_id"])
        assert get(client, f"/v1/datasets/{missing['dataset_id']}")["state"] == "ready"


def test_corrected_masks(client: httpx.Client) -> None:
    made = [disc(100 + number, 48 + 16 * number) for number in range(3)]
    ids = [client.post("/v1/images", content=png(image)).json()["id"] for image, _ in made]
    answer = client.post("/v1/segment?model=areas", content=png(made[2][0])).json()
    artifact = answer["artifacts"]["mask"].rpartition("/")[2]
    areas = np.asarray(Image.open(io.BytesIO(client.get(answer["artifacts"]["mask"]).content))) > 0
    samples: list[dict[str, Any]] = [
        {"image_id": ids[0], "mask": to_coco(encode(made[0][1])), "class_name": "disc"},
        {"image_id": ids[1], "mask": to_coco(encode(made[1][1])), "class_name": "disc"},
        {"image_id": ids[2], "mask": artifact, "class_name": "area"},
    ]
    body = brought(client.post("/v1/datasets", json={"name": "corrected", "samples": samples}))
    finished(client, body["job_id"])
    shown = get(client, f"/v1/datasets/{body['dataset_id']}")
    assert [one["name"] for one in shown["classes"]] == ["background", "disc", "area"]
    assert (shown["samples"], shown["source"]["kind"]) == (3, "samples")
    found = get(client, f"/v1/datasets/{body['dataset_id']}/samples")["items"]
    truth = [(made[0][1] > 0) * 1, (made[1][1] > 0) * 1, areas * 2]
    for sample, wanted, (image, _) in zip(found, truth, made, strict=True):
        levels = np.asarray(Image.open(io.BytesIO(client.get(sample["mask"]).content)))
        np.testing.assert_array_equal(levels, wanted)
        assert client.get(sample["image"]).content == png(image)
    # As a form, and with names of one's own.
    samples[2] |= {"class_name": "disc"}
    form = {"name": (None, "form"), "samples": (None, json.dumps(samples)), "classes": (None, '["no", "disc"]')}
    second = brought(client.post("/v1/datasets", files=form))
    finished(client, second["job_id"])
    classes = get(client, f"/v1/datasets/{second['dataset_id']}")["classes"]
    assert [one["name"] for one in classes] == ["no", "disc"]


def test_the_same_request_again(server: Server, client: httpx.Client) -> None:
    key = {"Idempotency-Key": os.urandom(8).hex()}

    def request(data: bytes, name: str = "again") -> httpx.Response:
        return client.post("/v1/datasets", data={"name": name}, files={"file": ("a.zip", data)}, headers=key)

    first, again = request(SIX), request(SIX)
    assert brought(first) == brought(again)
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    finished(client, first.json()["job_id"])
    before = settled(server.home)
    assert brought(request(SIX)) == first.json()
    assert refusal(request(SIX, "another name"), 409)[0] == "idempotency_key_reused"
    other = bytearray(SIX)
    other[-30] ^= 1  # as many bytes, but not the same ones
    assert refusal(request(bytes(other)), 409)[0] == "idempotency_key_reused"
    assert stored(server.home) == before
    wrong = client.post("/v1/datasets", json={"name": "x", "url": "http://a/"}, headers={"Idempotency-Key": "a b"})
    assert "Idempotency-Key" in refusal(wrong, 400)[1]


def test_the_same_corrected_masks_again(client: httpx.Client) -> None:
    image, mask = disc(7)
    ident = client.post("/v1/images", content=png(image)).json()["id"]
    body: dict[str, Any] = {"name": "one", "samples": [{"image_id": ident, "mask": to_coco(encode(mask))}]}
    key = {"Idempotency-Key": os.urandom(8).hex()}
    requested = [brought(client.post("/v1/datasets", json=body, headers=key)) for _ in range(2)]
    assert requested[0] == requested[1]
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    body["samples"][0]["mask"] |= {"score": deep}  # what else a mask holds means nothing
    assert brought(client.post("/v1/datasets", json=body, headers=key)) == requested[0]
    body["samples"][0]["mask"] = to_coco(encode(~mask))
    assert refusal(client.post("/v1/datasets", json=body, headers=key), 409)[0] == "idempotency_key_reused"
    finished(client, requested[0]["job_id"], state=None)


# ---- what is wrong ----


def test_a_refused_dataset_keeps_its_report(
    server: Server, client: httpx.Client, openapi: dict[str, Any], six: str
) -> None:
    before = settled(server.home)
    with zipfile.ZipFile(io.BytesIO(SIX)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["masks/004.png"] = png(disc(4, 48)[1])
    data = zipped(entries)
    body = bring(client, data, "half")
    error = finished(client, body["job_id"], state="failed")["error"]
    shown = get(client, f"/v1/datasets/{body['dataset_id']}")
    as_openapi_says(openapi, "/v1/datasets/{id}", shown)
    assert shown["state"] == "refused"
    first = shown["report"]["errors"][0]
    assert shown["error"] == {"code": first["code"], "message": first["message"]}
    assert error["message"] == first["message"] and "004" in first["message"]
    code, message = refusal(client.get(f"/v1/datasets/{body['dataset_id']}/samples"), 409)
    assert code == "dataset_not_ready" and first["message"] in message
    assert shown["preview"] is None
    message = refusal(client.get(f"/v1/datasets/{body['dataset_id']}/preview"), 404)[1]
    assert "no preview" in message and ".png" not in message
    training = client.post("/v1/trainings", json={"dataset_id": body["dataset_id"], "name": "x"})
    assert refusal(training, 409)[0] == "dataset_not_ready"
    assert client.delete(f"/v1/datasets/{body['dataset_id']}").status_code == 204
    assert stored(server.home) == before
    assert client.get(f"/v1/datasets/{six}/samples").status_code == 200


def test_while_it_waits(toy_server: Server, waiting: httpx.Client) -> None:
    """There is no worker: it is shown as what it is, and can be taken back."""
    before = settled(toy_server.home)
    body = bring(waiting, SIX)
    path = f"/v1/datasets/{body['dataset_id']}"
    assert get(waiting, path)["state"] == "importing"
    assert refusal(waiting.get(f"{path}/samples"), 409)[0] == "dataset_not_ready"
    assert body["job_id"] in refusal(waiting.delete(path), 409)[1]
    assert len(stored(toy_server.home)) == len(before) + 1
    assert waiting.post(f"/v1/jobs/{body['job_id']}/cancel").status_code == 200
    shown = get(waiting, path)
    assert (shown["state"], shown["error"]["code"], shown["preview"]) == ("failed", "cancelled", None)
    refusal(waiting.get(f"{path}/preview"), 404)
    assert waiting.delete(path).status_code == 204
    assert stored(toy_server.home) == before
    assert waiting.get(path).status_code == 404


# ---- removing ----


def test_delete_leaves_nothing(server: Server, client: httpx.Client, six: str) -> None:
    before = settled(server.home)
    dataset_id = ready(client, SIX, name="gone")
    assert get(client, f"/v1/datasets/{dataset_id}/samples")["total"] == 6
    assert len(settled(server.home)) == len(before) + 2  # the prepared samples and the sheet, not the upload
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    assert stored(server.home) == before
    for path in ("", "/samples", "/preview", "/samples/0/image", "/samples/0/mask"):
        refusal(client.get(f"/v1/datasets/{dataset_id}{path}"), 404)
    refusal(client.delete(f"/v1/datasets/{dataset_id}"), 404)
    answer = client.post("/v1/trainings", json={"dataset_id": dataset_id, "name": "x"})
    assert dataset_id in refusal(answer, 404)[1]


@pytest.mark.acceptance
def test_several_gateways_agree(tmp_path: Path, toy_artifacts: dict[str, Path]) -> None:
    home = publish_toys(tmp_path / "var", toy_artifacts)
    limits = httpx.Limits(max_keepalive_connections=0)
    several = serving(home, EKIBEN_WORKERS="1", **TOPOLOGIES["two gateways"])
    with several as server, httpx.Client(base_url=server.url, timeout=60, limits=limits) as client:
        dataset_id = ready(client, SIX)
        for _ in range(8):
            assert get(client, f"/v1/datasets/{dataset_id}/samples?limit=1")["total"] == 6
        assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 204
        for _ in range(8):
            assert client.get(f"/v1/datasets/{dataset_id}/samples?limit=1").status_code == 404
            assert client.get(f"/v1/datasets/{dataset_id}/samples/0/image").status_code == 404


@pytest.mark.acceptance
def test_an_import_that_needs_more_memory_than_it_has(tmp_path: Path) -> None:
    """It alone ends, with the reason; the next one is imported."""
    large = png(np.zeros((7000, 8000), np.uint8))
    limited = serving(tmp_path / "var", EKIBEN_WORKERS="1", EKIBEN_DATASET_MEMORY_MB="250")
    with limited as server, server.client() as client:
        body = bring(client, zipped({"images/large.png": large, "masks/large.png": large}))
        job = finished(client, body["job_id"], 200, "failed")
        assert job["error"]["code"] == "out_of_memory" and "EKIBEN_DATASET_MEMORY_MB" in job["error"]["message"]
        shown = get(client, f"/v1/datasets/{body['dataset_id']}")
        assert (shown["state"], shown["report"]["errors"][0]["code"]) == ("refused", "out_of_memory")
        ready(client, SIX, 200)
