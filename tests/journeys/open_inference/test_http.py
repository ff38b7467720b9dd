"""The Open Inference Protocol over HTTP: JSON, binary and raw bodies, as a client likes; and bodies to beware of."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import zlib
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.open_inference.client_processes import Client, areas, files, softmax, tensor
from tests.journeys.process_memory import rss_mb, with_peak
from tests.serving import Server
from tests.toy_sam import boxes_of, shapes

pytest_plugins = ("tests.journeys.open_inference.fixtures",)
OVER_HTTP = pytest.mark.parametrize("oip", ["http", "http_aio"], indirect=True)

IMAGE = toy_models.noise(32, 32, seed=81)
PIXELS = np.asarray(IMAGE)
PNG, JPEG = toy_models.encoded(IMAGE), toy_models.encoded(IMAGE, "JPEG")
PROBS = softmax([PIXELS])
KEPT = {"store": False}
LENGTH = "inference-header-content-length"
INFER = "/v2/models/oip_colours/infer"
MOST = 64 * 1024 * 1024


def image(array: Any, datatype: str = "UINT8", **more: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": datatype, "shape": list(np.shape(array)), "data": array.tolist(), **more}


def probs(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert (output["name"], output["datatype"]) == ("probs", "FP32")
    return np.array(output["data"]).reshape(output["shape"])


def refusal(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    return str(body["error"])


@EVERY_TOPOLOGY
@OVER_HTTP
def test_json_and_binary_mixed(oip: Client, sam_server: Server) -> None:
    """Each input and each output is the one or the other, as the client says."""
    both = oip.infer("oip_colours", tensor("image", "UINT8", PIXELS[None], binary=False))
    assert both.json == set() and np.abs(both.tensors["probs"] - PROBS).max() < 1e-5
    outputs = [{"name": "probs", "binary": False}]
    text = oip.infer("oip_colours", tensor("image", "UINT8", PIXELS[None], binary=False), outputs=outputs)
    assert text.json == {"probs"} and np.abs(text.tensors["probs"] - PROBS).max() < 1e-5
    data, box = files(toy_models.encoded(shapes(160, 120))), np.array(boxes_of(160, 120)[:2], np.float32)
    whole = oip.infer("sam_toy", data, tensor("boxes", "FP32", box), parameters=KEPT)
    outputs = [{"name": "masks"}, {"name": "iou_predictions", "binary": False}]
    mixed = oip.infer("sam_toy", tensor("boxes", "FP32", box, binary=False), data, outputs=outputs, parameters=KEPT)
    assert mixed.json == {"iou_predictions"}
    assert np.array_equal(mixed.tensors["masks"], whole.tensors["masks"]) and mixed.tensors["masks"].any()
    assert mixed.tensors["iou_predictions"] == pytest.approx(whole.tensors["iou_predictions"], abs=1e-6)


def test_plain_json(oip_server: Server) -> None:
    """What a person writes by hand: nested or flat data, answered as JSON; half floats go as binary data alone."""
    with oip_server.client() as client:
        for one in (image(PIXELS), image(PIXELS, data=PIXELS.ravel().tolist()), image(PIXELS / 255, "FP64", name="x")):
            if one["name"] == "x":
                one = image((PIXELS / 255).transpose(2, 0, 1), "FP64")
            answer = client.post(INFER, json={"id": "7", "inputs": [one]})
            assert np.abs(probs(answer) - PROBS[0]).max() < 1e-5
            assert (answer.json()["id"], answer.json()["model_version"]) == ("7", "2")
        text = base64.b64encode(PNG).decode()
        coded: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
        coded["parameters"] = {"content_type": "base64"}
        answer = client.post(INFER, json={"inputs": [coded], "parameters": {"store": False}})
        assert np.abs(probs(answer) - PROBS).max() < 1e-5
        # The graph's own output, as it comes.
        answer = client.post(INFER, json={"inputs": [image(PIXELS[None])], "outputs": [{"name": "output"}]})
        (output,) = answer.json()["outputs"]
        assert output["shape"] == [1, 4] and np.abs(output["data"] - toy_models.logits_of(PIXELS)).max() < 1e-5
        half = image((PIXELS / 255).transpose(2, 0, 1), "FP16")
        assert "binary" in refusal(client.post(INFER, json={"inputs": [half]}), 400)


def test_one_line_of_curl(oip_server: Server) -> None:
    """The body is the image."""
    with oip_server.client() as client:
        answer = client.post(INFER, content=JPEG, headers={LENGTH: "0"})
        v1 = client.post("/v1/classify?model=oip_colours&top_k=4&store=false", content=JPEG).json()["predictions"]
        by_class = sorted(v1, key=lambda one: int(one["class_index"]))
        assert np.abs(probs(answer) - [one["confidence"] for one in by_class]).max() < 1e-5
        row = client.get(f"/v1/predictions/{answer.json()['parameters']['prediction_id']}").json()
        kept = client.get(f"/v1/images/{row['image']['id']}/content", follow_redirects=True)
        assert kept.content == JPEG


def test_compressed_answers(oip_server: Server) -> None:
    large = {"inputs": [image(PIXELS[None])], "parameters": {"binary_data_output": True}}
    path = "/v2/models/areas/infer"
    with oip_server.client() as client:
        for accept, chosen in [("gzip", "gzip"), ("deflate", "deflate"), ("gzip;q=0, deflate", "deflate"),
                               ("br", None), ("identity", None)]:  # fmt: skip
            answer = client.post(path, json=large, headers={"accept-encoding": accept})
            assert answer.headers.get("content-encoding") == chosen
            head = int(answer.headers[LENGTH])
            assert answer.headers["content-type"] == "application/octet-stream"
            output = json.loads(answer.content[:head])["outputs"][0]
            assert output["parameters"] == {"binary_data_size": 1024}
            got = np.frombuffer(answer.content[head:], np.uint8).reshape(output["shape"])
            assert np.array_equal(got, areas(PIXELS)[None])


def test_bodies_that_are_too_large(oip_server: Server) -> None:
    """Refused before they fill the memory: what is announced, what comes in pieces, what unpacks to it."""
    (pid,) = oip_server.worker_pids()
    url = urlsplit(oip_server.url)
    with socket.create_connection((url.hostname or "", url.port or 0), 20) as caller:
        caller.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {MOST + 1}\r\n\r\n".encode())
        assert caller.recv(64).startswith(b"HTTP/1.1 413 ")
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    piece = bytes(1 << 20)
    bomb = b"".join(packer.compress(piece) for _ in range(200)) + packer.flush()
    assert len(bomb) < 500_000
    with oip_server.client() as client:
        packed = {"content-encoding": "gzip", LENGTH: "0"}
        client.post(INFER, content=gzip.compress(PNG), headers=packed)  # what is imported on the way is there
        before = rss_mb(pid)
        answer, peak = with_peak(pid, lambda: client.post(INFER, content=bomb, headers=packed))
        assert str(MOST) in refusal(answer, 413)
        assert peak - before < 160  # MB: 64 MiB twice, for a moment
        over = zlib.compress(bytes(MOST + 1), 1)
        refusal(client.post(INFER, content=over, headers={**packed, "content-encoding": "deflate"}), 413)
        refusal(client.post(INFER, content=PNG, headers=packed), 400)
        refusal(client.post(INFER, content=PNG, headers={**packed, "content-encoding": "br"}), 501)
        refusal(client.post(INFER, content=gzip.compress(PNG)[:-4], headers=packed), 400)
        assert np.abs(probs(client.post(INFER, content=gzip.compress(PNG), headers=packed)) - PROBS).max() < 1e-5


def test_an_answer_that_is_too_large(oip_server: Server) -> None:
    box = {"name": "boxes", "datatype": "FP32", "shape": [6, 4], "data": [0, 0, 900, 900] * 6}
    photo = base64.b64encode(toy_models.encoded(shapes(2200, 1700))).decode()
    coded: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [photo]}
    coded["parameters"] = {"content_type": "base64"}
    with oip_server.client() as client:
        requested = {"inputs": [coded, box], "parameters": KEPT}
        assert "POST /v1/masks" in refusal(client.post("/v2/models/sam_toy/infer", json=requested), 413)


@EVERY_TOPOLOGY
def test_errors_in_the_protocols_own_shape(oip_server: Server) -> None:
    with oip_server.client() as client:
        for method, path, status in [
            ("GET", "/v2/models/nobody", 404),
            ("GET", "/v2/models/nobody/ready", 404),
            ("GET", "/v2/models/oip_colours/versions/7", 404),
            ("GET", "/v2/nothing", 404),
            ("POST", "/v2/models/oip_colours/generate", 501),
            ("POST", "/v2/models/oip_colours/generate_stream", 501),
            ("POST", "/v2/repository/other/index", 404),
            ("POST", INFER, 400),
        ]:
            assert refusal(client.request(method, path), status)
        assert client.post("/v2/repository/index", content=b"").status_code == 200
        only = client.post("/v2/repository/index", json={"ready": True}).json()
        assert {one["state"] for one in only} == {"READY"}
        for body, reason in [
            (b"[]", "object"),
            (b"{", "JSON"),
            (b'{"inputs": []}', "no inputs"),
            (b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [2], "data": [1]}]}', "2 values"),
            (b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1], "data": [300]}]}', "UINT8"),
        ]:
            assert reason in refusal(client.post(INFER, content=body), 400)
        for length in ("500", "-1", "two", "9" * 5000):
            assert "length of the JSON" in refusal(client.post(INFER, content=b"{}", headers={LENGTH: length}), 400)


def test_answers_are_as_openapi_says(oip_server: Server) -> None:
    with oip_server.client() as client:
        openapi = client.get("/openapi.json").json()
        for path in ("/v2", "/v2/models/{model}", "/v2/models/{model}/ready", "/v2/health/live", "/v2/health/ready"):
            schema = openapi["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            answer = client.get(path.replace("{model}", "oip_colours")).json()
            Draft202012Validator({**schema, "components": openapi["components"]}).validate(answer)
        requested = {"inputs": [image(PIXELS)]}
        said = openapi["paths"]["/v2/models/{model}/infer"]["post"]
        answer = client.post(INFER, json=requested).json()
        schema = said["responses"]["200"]["content"]["application/json"]["schema"]
        Draft202012Validator({**schema, "components": openapi["components"]}).validate(answer)
