"""Settings that every transport obeys: default models, limits on images, names and pages."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import grpc
import httpx
import pytest

from ekiben.v1 import ekiben_pb2 as pb
from tests import toy_models, toy_sam
from tests.conftest import publish
from tests.journeys.jobs.job_client import ASYNC
from tests.journeys.rpc.grpc_calls import connected
from tests.serving import Server, serving
from tests.waiting import eventually

RED = toy_models.solid((255, 0, 0), 40, 30)
SMALL = toy_models.encoded(RED)
WIDE = toy_models.encoded(toy_models.solid((255, 0, 0), 400, 300))  # 0.12 megapixels
HEAVY = SMALL + bytes(1024 * 1024)  # a PNG with a trailer: 1 MiB and some
BMP = toy_models.encoded(RED, "BMP")

REFUSED = {"wide": (WIDE, "too_large"), "heavy": (HEAVY, "too_large"), "bmp": (BMP, "unsupported_image")}
HTTP = {"too_large": 413, "unsupported_image": 415}


@pytest.fixture(scope="module")
def server(toy_artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("settings")
    home = folder / "var"
    for name, artifact in toy_artifacts.items():
        publish(home, name, artifact)
    toy_sam.sam(folder / "sam_toy")
    publish(home, "sam_toy", folder / "sam_toy")
    script = folder / "redoc.js"
    script.write_text("// ReDoc")
    with serving(
        home,
        EKIBEN_WORKERS="1",
        EKIBEN_APP_NAME='Orchard <"1">',
        EKIBEN_DEFAULT_MODELS="classify=never_made,classify=colours,segment=areas,masks=sam_toy",
        EKIBEN_MAX_IMAGE_MB="1",
        EKIBEN_MAX_IMAGE_MEGAPIXELS="0.1",
        EKIBEN_IMAGE_FORMATS="png, JPEG",
        EKIBEN_CACHE_DIR=str(folder / "cache"),
        EKIBEN_REDOC_URL=str(script),
    ) as server:
        yield server


def finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        return job if job["state"] in ("succeeded", "failed") else None

    return eventually(over, f"the end of job {job_id}")


def test_requests_that_name_no_model(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(SMALL)
    with server.client() as client, bentoml.SyncHTTPClient(server.url) as bento, connected(server.grpc) as stubs:
        expected = {"classify": "colours", "segment": "areas", "masks": "sam_toy", "masks/auto": "sam_toy"}
        for path, name in expected.items():
            answer = client.post(f"/v1/{path}?store=false", content=SMALL)
            assert answer.json()["model"] == {"name": name, "version": 1}, answer.text
        assert bento.classify(image=file, store=False)["model"]["name"] == "colours"
        assert bento.masks(image=file, store=False)["model"]["name"] == "sam_toy"
        image = {"data": SMALL}
        assert stubs.vision.Classify(pb.ClassifyRequest(image=image)).model.name == "colours"
        assert stubs.vision.PromptMasks(pb.PromptMasksRequest(image=image)).model.name == "sam_toy"
        job_id = client.post("/v1/segment", content=SMALL, headers=ASYNC).json()["job_id"]
        assert finished(client, job_id)["parameters"]["model"] == "areas"
        job = stubs.jobs.SubmitJob(pb.SubmitJobRequest(classify=pb.ClassifyRequest(image=image)))
        assert finished(client, job.job_id)["parameters"]["model"] == "colours"


@pytest.mark.parametrize("kind", REFUSED)
def test_images_beyond_the_limits(server: Server, tmp_path: Path, kind: str) -> None:
    data, code = REFUSED[kind]
    file = tmp_path / "image.bin"
    file.write_bytes(data)
    with server.client() as client, bentoml.SyncHTTPClient(server.url) as bento, connected(server.grpc) as stubs:
        for path in ("/v1/classify", "/v1/segment", "/v1/masks", "/v1/images"):
            for answer in (client.post(path, content=data), client.post(path, files={"file": ("x", data)})):
                assert (answer.status_code, answer.json()["error"]["code"]) == (HTTP[code], code), (path, answer.text)
        answer = client.post("/classify", files={"image": ("x", data)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (HTTP[code], code)
        with pytest.raises(bentoml.exceptions.BentoMLException, match="accepted"):
            bento.segment(image=file)
        for call in (
            lambda: stubs.vision.Classify(pb.ClassifyRequest(image={"data": data})),
            lambda: stubs.vision.Segment(pb.SegmentRequest(image={"data": data})),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "accepted" in refused.value.details()
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(data) + 4}}]}).encode()
        answer = client.post(
            "/v2/models/colours/infer",
            content=head + len(data).to_bytes(4, "little") + data,
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        assert answer.status_code == HTTP[code], answer.text
        # As a job: of one image at once where its bytes tell, of a batch per item.
        answer = client.post("/v1/classify", content=data, headers=ASYNC)
        if kind != "wide":
            assert (answer.status_code, answer.json()["error"]["code"]) == (HTTP[code], code)
        else:
            assert finished(client, answer.json()["job_id"])["error"]["code"] == code
        files = [("files", ("good.png", SMALL)), ("files", ("bad.png", data))]
        job_id = client.post("/v1/batches", data={"operation": "classify"}, files=files).json()["job_id"]
        assert finished(client, job_id)["counts"] == {"total": 2, "done": 2, "failed": 1, "running": 0}
        items = client.get(f"/v1/jobs/{job_id}/items").json()["items"]
        assert [item["error"] and item["error"]["code"] for item in items] == [None, code]


def test_pixels_of_tensors_have_the_limit_too(server: Server) -> None:
    pixels = {"name": "image", "datatype": "UINT8", "shape": [300, 400, 3]}
    head = json.dumps({"inputs": [{**pixels, "parameters": {"binary_data_size": 360_000}}]}).encode()
    answer = httpx.post(
        f"{server.url}/v2/models/colours/infer",
        content=head + bytes(360_000),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status_code == 413
    assert "EKIBEN_MAX_IMAGE_MEGAPIXELS" in answer.json()["error"]


def test_a_jpeg_within_all_limits_is_answered(server: Server) -> None:
    out = io.BytesIO()
    RED.save(out, "JPEG")
    answer = httpx.post(f"{server.url}/v1/classify", content=out.getvalue())
    assert answer.json()["predictions"][0]["class_name"] == "red"


def test_the_name_of_the_installation(server: Server) -> None:
    with server.client() as client:
        assert client.get("/openapi.json").json()["info"]["title"] == 'Orchard <"1">'
        named = client.get("/", headers={"Accept": "application/json"}).json()
        assert named["name"] == 'Orchard <"1">'
        assert client.get(named["openapi"]).status_code == client.get(named["docs"]).status_code == 200
        assert client.get("/", headers={"Accept": "text/html"}).status_code == 307
        for page in ("/docs", "/redoc"):
            assert "<title>Orchard &lt;" in client.get(page).text
    lines = [json.loads(line) for line in server.logs().splitlines() if line.startswith("{")]
    assert {"ready", "worker ready"} <= {line["message"] for line in lines}
    assert {line["app"] for line in lines if line["logger"].startswith("services")} == {'Orchard <"1">'}


def test_redoc_from_a_file(server: Server) -> None:
    with server.client() as client:
        (script,) = re.findall(r'<script src="([^"]+)"', client.get("/redoc").text)
        answer = client.get(script)
        assert answer.text == "// ReDoc"
        assert answer.headers["content-type"].startswith("text/javascript")
