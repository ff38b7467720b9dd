"""The range of pixel values over HTTP and gRPC, in every topology: the one found, and the one requested."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from ekiben.v1 import ekiben_pb2 as pb
from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.rpc.grpc_calls import connected, image
from tests.models.image_formats.test_png import deep
from tests.serving import Server

TWELVE_BITS = np.zeros((8, 8, 3), np.uint16)
TWELVE_BITS[..., 0] = 4095
RED = deep(TWELVE_BITS, 2)
"""Red of 12 bits in a 16-bit file; as 16 bits it is dark."""


def classify(client: httpx.Client, data: bytes, **params: Any) -> tuple[str, list[float]]:
    answer = client.post("/v1/classify", params={"model": "colours", "store": False, **params}, content=data)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["predictions"][0]["class_name"], body["image"]["range"]


@EVERY_TOPOLOGY
def test_bits_in_use_and_a_range(client: httpx.Client, sam_server: Server) -> None:
    assert classify(client, RED) == ("red", [0, 4095])
    assert classify(client, RED, range="0,65535") == ("dark", [0, 65535])
    assert classify(client, toy_models.encoded(toy_models.solid((255, 0, 0)))) == ("red", [0, 255])
    with connected(sam_server.grpc) as stubs:
        for wanted, found in ((None, ("red", [0, 4095])), ("0,65535", ("dark", [0, 65535]))):
            request = pb.ClassifyRequest(image=image(RED), model="colours", store=False, range=wanted)
            answer = stubs.vision.Classify(request)
            assert (answer.predictions[0].class_name, list(answer.image.range)) == found


@pytest.mark.parametrize("wrong", ["4095", "5,5", "9,1", "a,b", "0,1,2", "nan,1", "0;1"])
def test_a_range_that_is_none(client: httpx.Client, wrong: str) -> None:
    answer = client.post("/v1/classify", params={"model": "colours", "store": False, "range": wrong}, content=RED)
    assert answer.status_code == 400 and "range" in answer.json()["error"]["message"]


def test_a_stored_prediction_keeps_the_range_and_the_original(client: httpx.Client) -> None:
    answer = client.post("/v1/classify", params={"model": "colours", "range": "0,65535"}, content=RED).json()
    assert answer["predictions"][0]["class_name"] == "dark"
    stored = client.get(f"/v1/predictions/{answer['id']}").json()
    assert stored["parameters"]["range"] == "0,65535"
    assert client.get(f"/v1/images/{answer['image']['id']}/content").content == RED


def test_a_range_is_for_more_than_8_bits(client: httpx.Client) -> None:
    """An image of 8 bits is taken as it is, and the answer says so."""
    assert classify(client, toy_models.encoded(toy_models.solid((255, 0, 0))), range="0,4095") == ("red", [0, 255])


def test_masks_and_segmentations_take_it(client: httpx.Client) -> None:
    dim = deep(np.full((40, 60, 1), 2000), 0)
    for path, model in (("/v1/segment", "areas"), ("/v1/masks", "sam_toy"), ("/v1/cutouts", "sam_toy")):
        answer = client.post(path, params={"model": model, "store": False, "range": "0,65535"}, content=dim)
        assert answer.json()["image"]["range"] == [0, 65535], answer.text
