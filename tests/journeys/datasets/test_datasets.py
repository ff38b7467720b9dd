"""Datasets over HTTP: brought in every way, looked into, refused with a reason, removed without a trace."""

from __future__ import annotations

import functools
import hashlib
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

from models.artifact import read_manifest
from models.masks.rle import encode, to_coco
from tests import toy_models
from tests.conftest import publish
from tests.journeys.datasets.dataset_client import as_openapi_says, bring, brought, disc, discs, png, ready, zipped
from tests.journeys.jobs.job_client import all_items, events, eventually, finished, get, refusal
from tests.serving import TOPOLOGIES, Server, serving

NOWHERE = "01890000-0000-7000-8000-000000000000"
ZIP = {"content-type": "application/zip"}
SIX = discs(range(6))


def publish_toys(home: Path, artifacts: dict[str, Path]) -> Path:
    for name, artifact in artifacts.items():
        publish(home, name, artifact)
    return home


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, toy_artifacts: dict[str, Path]) -> Iterator[Server]:
    home = publish_toys(tmp_path_factory.mktemp("datasets") / "var", toy_artifacts)
    with serving(home, EKIBEN_WORKERS="1") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def six(server: Server) -> str:
    """A dataset of six discs that nobody removes."""
    with server.client() as client:
        return ready(client, SIX, name="six")


@pytest.fixture(scope="module")
def openapi(server: Server) -> dict[str, Any]:
    schema: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return schema


def stored(home: Path) -> set[str]:
    """Keys of all files of datasets, and what lies in the home besides: work, uploads, caches."""
    found = {path for folder in ("blobs/datasets", "work", "cache/datasets") for path in (home / folder).rglob("*")}
    loose = (path for path in home.iterdir() if path.is_file() and path.suffix not in (".log", ".lock"))
    there = {path for path in found if path.is_file()} | {path for path in loose if "ekiben.db" not in path.name}
    return {path.relative_to(home).as_posix() for path in there}


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
        before = stored(server.home)
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
    before = stored(server.home)
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
    body = {"name": "one", "samples": [{"image_id": ident, "mask": to_coco(encode(mask))}]}
    key = {"Idempotency-Key": os.urandom(8).hex()}
    requested = [brought(client.post("/v1/datasets", json=body, headers=key)) for _ in range(2)]
    assert requested[0] == requested[1]
    finished(client, requested[0]["job_id"], state=None)


# ---- what is wrong ----


def test_a_refused_dataset_keeps_its_report(
    server: Server, client: httpx.Client, openapi: dict[str, Any], six: str
) -> None:
    before = stored(server.home)
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


@pytest.mark.parametrize(
    "options",
    [
        {"classes": '["background", " "]'},
        {"classes": json.dumps(["background", "x" * 101])},
        {"classes": '["background", "a", "a"]'},
        {"classes": json.dumps([str(n) for n in range(257)])},
        {"classes": '["background"]'},
        {"classes": '["background", 7]'},
        {"classes": "background, disc"},
        {"classes": '["background", "a\\u0000b"]'},
        {"background": "[1.5]"},
        {"background": '{"a": 1}'},
        {"name": ""},
        {"name": "a\0b"},
        {"name": "x" * 201},
        {"colour": "red"},
        {"priority": "11"},
        {"timeout_s": "-1"},
        {"webhook": "http://127.0.0.1:1/"},
        {"url": "http://example.org/a.zip"},
        {"samples": f'[{{"image_id": "{NOWHERE}", "mask": "x"}}]'},
        {"samples": '[{"image_id": "\\u0000", "mask": "x"}]'},
    ],
    ids=str,
)
def test_options_that_are_wrong_are_said_at_once(
    server: Server, client: httpx.Client, options: dict[str, str], six: str
) -> None:
    """Not by the job, later, and never as an internal error."""
    before, total = stored(server.home), get(client, "/v1/datasets")["total"]
    answer = client.post("/v1/datasets", data={"name": "wrong", **options}, files={"file": ("a.zip", SIX)})
    assert next(iter(options)) in refusal(answer, 400)[1] or "one of" in refusal(answer, 400)[1]
    assert get(client, "/v1/datasets")["total"] == total
    assert stored(server.home) == before


def test_nothing_or_too_much(server: Server, client: httpx.Client, six: str) -> None:
    before = stored(server.home)
    image_id = client.post("/v1/images", content=png(disc(0)[0])).json()["id"]
    rle = to_coco(encode(disc(0)[1]))

    def refused(status: int, **body: Any) -> str:
        return refusal(client.post("/v1/datasets", json={"name": "x", **body}), status)[1]

    assert "one of" in refused(400)
    assert "one of" in refused(400, url="http://example.org/a.zip", samples=[{"image_id": image_id, "mask": rle}])
    assert "samples" in refused(400, samples=[])
    assert "samples" in refused(400, samples=[{"image_id": image_id}])
    assert "samples" in refused(400, samples=[{"image_id": image_id, "mask": 7}])
    assert f"no image {NOWHERE}" in refused(404, samples=[{"image_id": NOWHERE, "mask": rle}])
    assert "samples[0].mask" in refused(404, samples=[{"image_id": image_id, "mask": NOWHERE}])
    wrong = {"size": [32, 128], "counts": [4096]}
    assert "samples[0].mask is 128 x 32" in refused(400, samples=[{"image_id": image_id, "mask": wrong}])
    lacks = {"samples": [{"image_id": image_id, "mask": rle, "class_name": "cell"}], "classes": ["no", "disc"]}
    assert "cell" in refused(400, **lacks)
    for odd in (" ", "x" * 101, ""):
        assert "class_name" in refused(400, samples=[{"image_id": image_id, "mask": rle, "class_name": odd}]), odd
    assert "NUL" in refused(400, samples=[{"image_id": image_id, "mask": rle, "class_name": "a\0b"}])
    assert "NUL" in refused(400, **{"a\0b": 1})
    answer = client.post("/v1/trainings", json={"dataset_id": "\0", "name": "x"})
    assert "NUL" in refusal(answer, 400)[1]
    assert "name" in refusal(client.post("/v1/datasets", json={"url": "http://example.org/"}), 400)[1]
    for body in (b"", b"[]", b"{", b"nothing", b"null"):
        answer = client.post("/v1/datasets", content=body, headers={"content-type": "application/json"})
        refusal(answer, 400)
    assert "JSON" in refusal(client.post("/v1/datasets", content=b"x", headers={"content-type": "text/plain"}), 400)[1]
    assert "JSON" in refusal(client.post("/v1/datasets"), 400)[1]
    assert stored(server.home) == before


FORM = {"content-type": "multipart/form-data; boundary=b"}
NAME = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\nPK\r\n'


@pytest.mark.parametrize(
    "body",
    [
        NAME + FILE,  # no end
        NAME + FILE + FILE + b"--b--\r\n",
        NAME + NAME + FILE + b"--b--\r\n",
        NAME + FILE.replace(b'"file"', b'"upload"') + b"--b--\r\n",
        NAME + b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        NAME + b"--b\r\nContent-Disposition: attachment; name=x\r\n\r\nx\r\n--b--\r\n",
        NAME.replace(b"\r\nx\r\n", b"\r\n\xff\xfe\r\n") + FILE + b"--b--\r\n",
        b"no form at all",
        b"",
        b"--b--\r\n",
        NAME + b"--b--\r\n",
    ],
    ids=range(11),
)
def test_hostile_forms(server: Server, client: httpx.Client, body: bytes, six: str) -> None:
    before = stored(server.home)
    refusal(client.post("/v1/datasets", content=body, headers=FORM), 400)
    assert stored(server.home) == before


def test_a_form_with_too_much_in_its_fields(server: Server, client: httpx.Client, six: str) -> None:
    before = stored(server.home)
    answer = client.post("/v1/datasets", data={"name": "x" * 4_100_000}, files={"file": ("a.zip", SIX)})
    assert "fields" in refusal(answer, 413)[1]
    assert stored(server.home) == before


@pytest.mark.acceptance
def test_more_than_may_be_uploaded(tmp_path: Path, toy_artifacts: dict[str, Path]) -> None:
    home = publish_toys(tmp_path / "var", toy_artifacts)
    with serving(home, EKIBEN_DATASET_MB="1") as small, small.client() as client:
        before = stored(home)

        def endless() -> Iterator[bytes]:
            for _ in range(80):
                yield bytes(100_000)

        for more in ({"content": bytes(7_000_000)}, {"content": endless()}):  # by what it declares, and by what comes
            answer = client.post("/v1/datasets?name=x", headers=ZIP, **more)
            assert "EKIBEN_DATASET_MB" in refusal(answer, 413)[1]
        assert stored(home) == before


def test_while_it_waits(toy_server: Server, waiting: httpx.Client) -> None:
    """There is no worker: it is shown as what it is, and can be taken back."""
    before = stored(toy_server.home)
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
    before = stored(server.home)
    dataset_id = ready(client, SIX, name="gone")
    assert get(client, f"/v1/datasets/{dataset_id}/samples")["total"] == 6
    assert len(stored(server.home)) == len(before) + 2  # the prepared samples and the sheet, not the upload
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


# ---- versions of models ----


def test_versions_of_a_model(server: Server, client: httpx.Client, openapi: dict[str, Any], tmp_path: Path) -> None:
    for seed in range(3):
        toy_models.segmenter(tmp_path / str(seed))
        publish(server.home, "many", tmp_path / str(seed))
    eventually(lambda: client.get("/v1/models/many").status_code == 200, "it is listed", 5)

    listed = get(client, "/v1/models/many/versions")
    as_openapi_says(openapi, "/v1/models/{name}/versions", listed)
    assert [(one["version"], one["active"]) for one in listed["items"]] == [(3, True), (2, False), (1, False)]
    assert refusal(client.delete("/v1/models/many/versions/3"), 409)
    activated = client.post("/v1/models/many/activate", json={"version": 2})
    assert activated.status_code == 200
    as_openapi_says(openapi, "/v1/models/{name}/activate", activated.json(), "post")
    assert activated.json()["version"] == 2
    red = toy_models.encoded(toy_models.solid((255, 0, 0)))
    assert client.post("/v1/segment?model=many", content=red).json()["model"]["version"] == 2

    answer = client.get("/v1/models/many/versions/1/files")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="many-1.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "taken")
    manifest = read_manifest(tmp_path / "taken")
    assert manifest.digest == listed["items"][2]["digest"]
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == ["manifest.json", "model.onnx"]
    for name, info in manifest.files.items():
        data = (tmp_path / "taken" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == info.sha256
        assert data == (tmp_path / "0" / name).read_bytes()

    where = server.home / "blobs" / "models" / "many"
    assert sorted(path.name for path in where.iterdir()) == ["1", "2", "3"]
    assert client.delete("/v1/models/many/versions/3").status_code == 204
    assert [one["version"] for one in get(client, "/v1/models/many/versions")["items"]] == [2, 1]
    assert not [path for path in (where / "3").rglob("*") if path.is_file()]
    refusal(client.post("/v1/segment?model=many&version=3", content=red), 404)
    refusal(client.delete("/v1/models/many/versions/3"), 404)
    refusal(client.get("/v1/models/many/versions/3/files"), 404)
    refusal(client.post("/v1/models/many/activate", json={"version": 3}), 404)


@pytest.mark.parametrize("version", ["0", "-1", "x", str(2**31), str(2**63), "9" * 30])
def test_versions_that_there_are_not(client: httpx.Client, version: str) -> None:
    for method, path in (("GET", f"/v1/models/areas/versions/{version}/files"),
                         ("DELETE", f"/v1/models/areas/versions/{version}")):  # fmt: skip
        assert client.request(method, path).status_code in (400, 404), (method, path)
    number = int(version) if version != "x" else version
    assert client.post("/v1/models/areas/activate", json={"version": number}).status_code in (400, 404)
    assert client.get("/v1/models/areas/versions").status_code == 200


def test_activate_and_its_bodies(client: httpx.Client, openapi: dict[str, Any]) -> None:
    bodies: list[Any] = [{}, {"version": None}, {"version": 1, "more": 2}, {"version": 1.5}, []]
    for body in bodies:
        refusal(client.post("/v1/models/areas/activate", json=body), 400)
    refusal(client.post("/v1/models/nobody/activate", json={"version": 1}), 404)
    refusal(client.get("/v1/models/nobody/versions"), 404)
    assert client.post("/v1/models/areas/activate", json={"version": 1}).json()["version"] == 1
    described = openapi["paths"]["/v1/models/{name}/activate"]["post"]["requestBody"]["content"]["application/json"]
    assert described["schema"]["required"] == ["version"]
    for path in ("/v1/datasets", "/v1/trainings"):
        body = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        text = json.dumps(body)
        for name in (part.split('"')[0] for part in text.split('"#/')[1:]):
            assert (
                name.startswith("components/schemas/") and name.rpartition("/")[2] in (openapi["components"]["schemas"])
            ), f"{path} refers to {name}, which is nowhere in the document"
