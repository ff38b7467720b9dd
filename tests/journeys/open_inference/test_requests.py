"""What an infer request may say besides, by tritonclient's four clients; and what is refused, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import toy_models
from tests.journeys.open_inference.client_processes import (
    EACH_CLIENT,
    Client,
    Refused,
    areas,
    files,
    said,
    softmax,
    tensor,
)

pytest_plugins = ("tests.journeys.open_inference.fixtures",)
pytestmark = EACH_CLIENT

KEPT = {"store": False}
IMAGES = [toy_models.noise(32, 32, seed=seed) for seed in (77, 78, 79)]
PIXELS = [np.asarray(image) for image in IMAGES]
PNGS = [toy_models.encoded(image) for image in IMAGES]
PROBS = softmax(PIXELS)


def near(given: Any, expected: Any) -> bool:
    return given.shape == expected.shape and bool(np.abs(given - expected).max() < 1e-5)


def test_versions(oip: Client) -> None:
    for version in ("1", "2"):
        assert oip.infer("oip_colours", files(PNGS[0]), model_version=version, parameters=KEPT).version == version
    code, message = oip.refusal("oip_colours", files(PNGS[0]), model_version="3")
    assert code == oip.code(404, "NOT_FOUND") and "3" in message


def test_what_is_refused(oip: Client) -> None:
    """Each with the reason, as the caller's own mistake."""
    image = files(PNGS[0])
    numbers = np.zeros((2, 2), np.int32)
    wrong: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
        ("no output 'logits'", [image], {"outputs": [{"name": "logits"}]}),
        ("asked for twice", [image], {"outputs": [{"name": "probs"}, {"name": "probs"}]}),
        ("no input 'photo'", [tensor("photo", "INT32", numbers)], {}),
        ("given twice", [image, image], {}),
        ("INT32", [tensor("image", "INT32", numbers)], {}),
        ("FP32 [1, 3, 8, 8]", [tensor("image", "FP32", np.zeros((1, 3, 8, 8), np.float32))], {}),
        ("[32, 32]", [tensor("image", "UINT8", np.zeros((32, 32), np.uint8))], {}),
        ("[1, 0, 4, 3]", [tensor("image", "UINT8", np.zeros((1, 0, 4, 3), np.uint8))], {}),
        ("0 images", [files()], {}),
        ("image 1: the bytes are not an image", [files(PNGS[0], b"no image")], {}),
        ("frobnicate", [image], {"parameters": {"frobnicate": 1}}),
        ("flips", [image], {"parameters": {"flips": True}}),
        ("store", [image], {"parameters": {"store": "perhaps"}}),
        ("store", [tensor("image", "UINT8", PIXELS[0])], {"parameters": {"store": True}}),
        ("negative", [image], {"outputs": [{"name": "probs", "class_count": -1}]}),
    ]
    for reason, inputs, more in wrong:
        code, message = oip.refusal("oip_colours", *inputs, **more)
        assert code == oip.code(400, "INVALID_ARGUMENT"), (reason, message)
        assert reason in message
    code, message = oip.refusal("nobody", image)
    assert code == oip.code(404, "NOT_FOUND") and "nobody" in message
    code, _ = oip.refusal("oip_colours", image, sequence_id=5, sequence_start=True)
    assert code == oip.code(501, "UNIMPLEMENTED")
    assert near(oip.infer("oip_colours", image, parameters=KEPT).tensors["probs"], PROBS[:1])  # as ever


def test_a_deadline(oip: Client) -> None:
    """``timeout`` is in microseconds."""
    slow = toy_models.encoded(toy_models.noise(900, 700, seed=76))
    oip.infer("oip_cells", files(PNGS[0]), parameters=KEPT)  # loaded: else the refusal says that it is not
    code, message = oip.refusal("oip_cells", files(slow), timeout=1000, parameters=KEPT)
    # Where past runs tell that it would be late, it is refused on arrival.
    late = code == oip.code(504, "DEADLINE_EXCEEDED") and "deadline" in message
    assert late or (code == oip.code(503, "UNAVAILABLE") and "requests wait" in message)
    in_time = oip.infer("oip_colours", files(PNGS[0]), timeout=30_000_000, priority=1, parameters=KEPT)
    assert near(in_time.tensors["probs"], PROBS[:1])


def test_compression(oip: Client) -> None:
    tall = tensor("image", "UINT8", np.stack(PIXELS * 20))
    for way in ("gzip", "deflate"):
        options = {"compression_algorithm": way}
        if oip.http:
            options = {"request_compression_algorithm": way, "response_compression_algorithm": way}
        answer = oip.infer("oip_colours", tall, **options)
        assert near(answer.tensors["probs"], np.tile(PROBS, (20, 1)))
        map_ = oip.infer("areas", tall, **options).tensors["class_map"]
        assert np.array_equal(map_, np.tile(areas(np.stack(PIXELS)), (20, 1, 1)))


def test_without_waiting(oip: Client) -> None:
    """async_infer of those clients that have it; a stream over gRPC, whose errors end it not."""
    if not oip.kind.endswith("aio"):
        answer = oip.infer("oip_colours", files(PNGS[0]), call="async_infer", request_id="later", parameters=KEPT)
        assert answer.id == "later" and near(answer.tensors["probs"], PROBS[:1])
        with pytest.raises(Refused, match="nobody"):
            oip.infer("nobody", files(PNGS[0]), call="async_infer")
    if oip.http:
        return
    requests = [
        {"model_name": "oip_colours", "inputs": [files(png)], "request_id": str(number), "parameters": KEPT}
        for number, png in enumerate(PNGS)
    ]
    requests.insert(1, {**requests[1], "model_name": "nobody"})
    came = oip.request("stream", requests=requests)
    assert "nobody" in came[1]["refused"]["message"]
    answers = [said(one) for number, one in enumerate(came) if number != 1]
    assert [one.id for one in answers] == ["0", "1", "2"]
    assert near(np.concatenate([one.tensors["probs"] for one in answers]), PROBS)
