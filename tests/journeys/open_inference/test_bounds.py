"""Bounds of the Open Inference Protocol: what is refused costs little, and nothing of it stays stored."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from services.open_inference.http_codec import MAX_JSON_VALUES
from services.open_inference.parameters import MAX_INPUTS, MAX_OUTPUTS, MAX_PARAMETERS
from services.open_inference.tensors import MAX_BYTES
from tests import toy_models
from tests.journeys.jobs.job_client import get
from tests.journeys.open_inference.client_processes import EACH_CLIENT, Client, files, softmax, tensor
from tests.journeys.sam.mask_answers import counted
from tests.serving import Server
from tests.toy_sam import boxes_of

pytest_plugins = ("tests.journeys.open_inference.fixtures",)

KEPT = {"store": False}
COLOURS = {"red": (250, 10, 20), "green": (20, 240, 30), "blue": (10, 30, 230), "dark": (5, 6, 7)}


def each(test: Callable[..., None]) -> Callable[..., None]:
    """EACH_CLIENT, for single tests."""
    for mark in reversed(EACH_CLIENT):
        test = mark(test)
    return test


def stored(client: httpx.Client) -> tuple[int, int]:
    """Predictions and images."""
    return get(client, "/v1/predictions")["total"], get(client, "/v1/images")["total"]


def new(seed: int, kind: str, width: int = 32, height: int = 32) -> bytes:
    """An image that nobody else sends."""
    return toy_models.encoded(toy_models.noise(width, height, seed=zlib.crc32(f"{kind} {seed}".encode())))


# ---- nothing stays of what failed ----


@each
def test_a_batch_whose_last_image_is_bad(oip: Client, sam_server: Server) -> None:
    """Some of the others are stored then, some are just being stored, some are not computed yet."""
    images = [new(seed, oip.kind) for seed in range(19)]
    torn = new(19, oip.kind)[:200]  # refused when it is decoded; the other one before that
    with sam_server.client() as client:
        before = stored(client)
        for bad in (b"no image", *[torn] * 5):
            code, message = oip.refusal("oip_colours", files(*images, bad))
            assert code == oip.code(400, "INVALID_ARGUMENT") and message.startswith("image 19: ")
            assert stored(client) == before
        oip.infer("oip_colours", files(*images[:2]))
        assert stored(client) == (before[0] + 2, before[1] + 2)


@each
def test_images_of_different_size_make_no_class_map(oip: Client, sam_server: Server) -> None:
    images = new(30, oip.kind), new(31, oip.kind, 40, 30)
    with sam_server.client() as client:
        before = stored(client)
        code, message = oip.refusal("areas", files(*images))
        assert code == oip.code(400, "INVALID_ARGUMENT") and "differ in size" in message
        assert stored(client) == before


def test_more_values_than_are_written_as_json(oip_server: Server) -> None:
    """Found when all is computed and recorded."""
    width, height = 2100, 2000
    assert width * height > MAX_JSON_VALUES
    photo = toy_models.encoded(toy_models.solid((10, 20, 222), width, height))
    raw = len(photo).to_bytes(4, "little") + photo
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}

    def request(client: httpx.Client, **parameters: Any) -> httpx.Response:
        head = json.dumps({"inputs": [image], "parameters": parameters}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Accept-Encoding": "identity"}
        return client.post("/v2/models/areas/infer", content=head + raw, headers=headers)

    with oip_server.client() as client:
        before = stored(client)
        refused = request(client)
        assert refused.status_code == 413, refused.text[:200]
        assert "class_map" in refused.json()["error"] and "binary_data_output" in refused.json()["error"]
        assert stored(client) == before
        answer = request(client, binary_data_output=True)
        assert answer.status_code == 200
        length = int(answer.headers["Inference-Header-Content-Length"])
        body = json.loads(answer.content[:length])
        assert body["outputs"][0]["shape"] == [1, height, width]
        assert set(answer.content[length:]) == {toy_models.AREAS.index("blue")}
        assert len(answer.content) - length == width * height
        row = get(client, f"/v1/predictions/{body['parameters']['prediction_id']}")
        assert (row["image"]["width"], row["image"]["height"]) == (width, height)
        assert stored(client) == (before[0] + 1, before[1] + 1)


# ---- what an answer is known by ----


@each
def test_ids_of_a_batch(oip: Client, sam_server: Server) -> None:
    order = ["green", "dark", "red", "blue", "red"]
    images = [toy_models.encoded(toy_models.solid(COLOURS[name], 30 + number, 31)) for number, name in enumerate(order)]
    answer = oip.infer("oip_colours", files(*images))
    assert set(answer.parameters) == {"prediction_ids"}
    ids = answer.parameters["prediction_ids"].split(",")
    assert len(set(ids)) == len(order)
    best = answer.tensors["probs"].argmax(axis=1)
    assert [toy_models.CLASSES[index] for index in best] == order
    with sam_server.client() as client:
        rows = [get(client, f"/v1/predictions/{id}") for id in ids]
    assert [row["top_class"] for row in rows] == order
    assert [row["image"]["width"] for row in rows] == [30, 31, 32, 33, 34]
    assert {(row["model"]["name"], row["model"]["version"]) for row in rows} == {("oip_colours", 2)}
    one = oip.infer("oip_colours", files(images[3]))
    assert set(one.parameters) == {"prediction_id"} and "," not in one.parameters["prediction_id"]
    assert oip.infer("oip_colours", files(*images), parameters=KEPT).parameters == {}


# ---- time ----


@pytest.mark.usefixtures("sam_server")
@pytest.mark.parametrize("oip", ["http", "grpc"], indirect=True)
def test_a_deadline_of_the_caller(oip: Client, sam_server: Server) -> None:
    """How it divides among the images of a batch: tests/services/open_inference/test_deadlines.py."""
    images = [new(seed, oip.kind) for seed in range(50, 53)]
    with sam_server.client() as client:
        before = stored(client)
        code, message = oip.refusal("oip_colours", files(*images), timeout=1)  # microseconds
        assert code == oip.code(504, "DEADLINE_EXCEEDED") and "deadline" in message, message
        assert stored(client) == before
    assert len(oip.infer("oip_colours", files(*images), timeout=600_000_000, parameters=KEPT).tensors["probs"]) == 3


# ---- bounds before work ----


@each
def test_low_res_masks_of_too_many_prompts(oip: Client, sam_server: Server) -> None:
    """Refused before anything is made of the image."""
    box = boxes_of(160, 120)[0]
    most = MAX_BYTES // (256 * 256 * 4)
    photo = files(new(40, oip.kind, 160, 120))
    low = [{"name": "low_res_masks"}]
    with sam_server.client() as client:
        before, kept = counted(client), stored(client)
        requested: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
            ([tensor("boxes", "FP32", np.array([box] * (most // 3 + 1), np.float32))], {}),
            ([tensor("boxes", "FP32", np.array([box] * (most + 1), np.float32))], {"multimask": False}),
            ([], {"prompts": json.dumps([{"box": box}] * (most // 3 + 1))}),
        ]
        for inputs, parameters in requested:
            code, message = oip.refusal("sam_toy", photo, *inputs, outputs=low, parameters=parameters)
            assert code == oip.code(413, "INVALID_ARGUMENT") and "low_res_masks" in message, message
        assert (counted(client), stored(client)) == (before, kept)
        # Of the same prompts what is small.
        boxes = tensor("boxes", "FP32", np.array([box] * (most // 3 + 1), np.float32))
        some = oip.infer("sam_toy", photo, boxes, outputs=[{"name": "iou_predictions"}], parameters=KEPT)
        assert some.tensors["iou_predictions"].shape == (most // 3 + 1, 3)
        assert counted(client)["encoder"] == before["encoder"] + 1
        assert counted(client)["prompts"] == before["prompts"] + most // 3 + 1


@each
def test_a_request_of_too_many_parts(oip: Client) -> None:
    photo = files(new(41, oip.kind))
    numbers = np.zeros(1, np.float32)
    requested: list[tuple[str, int, list[dict[str, Any]], dict[str, Any]]] = [
        ("inputs", MAX_INPUTS, [tensor(f"i{n}", "FP32", numbers) for n in range(MAX_INPUTS + 1)], {}),
        ("outputs", MAX_OUTPUTS, [photo], {"outputs": [{"name": f"o{n}"} for n in range(MAX_OUTPUTS + 1)]}),
        ("parameters", MAX_PARAMETERS, [photo], {"parameters": {f"p{n}": n for n in range(MAX_PARAMETERS + 1)}}),
    ]
    for part, most, inputs, more in requested:
        code, message = oip.refusal("oip_colours", *inputs, **more)
        assert code == oip.code(400, "INVALID_ARGUMENT")
        assert f"{part}; at most {most} are read" in message, message
    # As many as are read: what they say is what is wrong then.
    enough = [tensor(f"i{n}", "FP32", numbers) for n in range(MAX_INPUTS)]
    assert "no input 'i0'" in oip.refusal("oip_colours", *enough)[1]
    assert "no output 'o0'" in oip.refusal("oip_colours", photo, outputs=[{"name": f"o{n}"} for n in range(64)])[1]


@each
def test_numbers_that_are_not_finite(oip: Client) -> None:
    """An average of them is no image; and JSON has no text for what would come out."""
    good = np.random.default_rng(3).random((2, 3, 32, 32), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        given = good.copy()
        given[1, 2, 31, 31] = bad
        for one in (given, given[1]):
            code, message = oip.refusal("oip_colours", tensor("image", "FP32", one))
            assert code == oip.code(400, "INVALID_ARGUMENT") and "not finite" in message
    probs = oip.infer("oip_colours", tensor("image", "FP32", good)).tensors["probs"]
    expected = softmax([one.transpose(1, 2, 0) * 255.0 for one in good.astype(np.float64)])
    assert np.abs(probs - expected).max() < 1e-5
