"""The Open Inference Protocol over gRPC without tritonclient: what reflection says is enough. And those who leave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.open_inference.client_processes import Client, areas, files, softmax
from tests.journeys.process_memory import rss_mb, with_peak
from tests.journeys.sam.mask_answers import counted
from tests.serving import Server
from tests.toy_sam import boxes_of, expected_masks, middle, shapes

pytest_plugins = ("tests.journeys.open_inference.fixtures",)

SERVICE = "inference.GRPCInferenceService"
IMAGE = toy_models.noise(32, 32, seed=91)
PIXELS = np.asarray(IMAGE)
PNG = toy_models.encoded(IMAGE)
PROBS = softmax([PIXELS])
MOST = 64 * 1024 * 1024


class Reflected:
    """A client that knows nothing but what the server's reflection tells, as grpcurl does."""

    def __init__(self, address: str) -> None:
        # A subchannel of its own: with several gateways another may answer the next one.
        options = {"use_local_subchannel_pool": 1, "max_send_message_length": -1, "max_receive_message_length": -1}
        self.channel = grpc.insecure_channel(address, options=[(f"grpc.{name}", n) for name, n in options.items()])
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self._service = DescriptorPool(self.database).FindServiceByName(SERVICE)

    def call(self, method: str, request: dict[str, Any], **more: Any) -> Any:
        found = self._service.methods_by_name[method]
        return self.send(method, GetMessageClass(found.input_type)(**request), **more)

    def send(self, method: str, message: Any, **more: Any) -> Any:
        found = self._service.methods_by_name[method]
        stub = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda one: one if isinstance(one, bytes) else one.SerializeToString(),
            response_deserializer=GetMessageClass(found.output_type).FromString,
        )
        return stub(message, timeout=more.pop("timeout", 30), **more)

    def refusal(self, request: dict[str, Any], method: str = "ModelInfer", **more: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as refused:
            self.call(method, request, **more)
        return refused.value.code().name, refused.value.details()


@pytest.fixture
def reflected(oip_server: Server) -> Iterator[Reflected]:
    one = Reflected(oip_server.grpc)
    yield one
    one.channel.close()


def image(datatype: str, shape: Any, field: str, values: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": datatype, "shape": shape, "contents": {field: values}}


def probs(answer: Any) -> Any:
    """Raw always: there is nothing in the typed contents."""
    assert not answer.outputs[0].HasField("contents")
    assert [(one.name, one.datatype) for one in answer.outputs] == [("probs", "FP32")]
    return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)


def test_typed_contents(reflected: Reflected) -> None:
    scaled = (PIXELS / 255).transpose(2, 0, 1)
    own = {"model_name": "oip_colours", "id": "g-1"}
    kept = {"store": {"bool_param": False}}
    for given, more, expected in [
        (image("BYTES", [1], "bytes_contents", [PNG]), {"parameters": kept}, PROBS),
        (image("UINT8", [32, 32, 3], "uint_contents", PIXELS.ravel().tolist()), {}, PROBS[0]),
        (image("FP32", [3, 32, 32], "fp32_contents", scaled.ravel().tolist()), {}, PROBS[0]),
        (image("FP64", [1, 3, 32, 32], "fp64_contents", scaled.ravel().tolist()), {}, PROBS),
    ]:
        answer = reflected.call("ModelInfer", {**own, "inputs": [given], **more})
        assert (answer.model_name, answer.model_version, answer.id) == ("oip_colours", "2", "g-1")
        assert probs(answer).shape == expected.shape and np.abs(probs(answer) - expected).max() < 1e-5


def test_typed_prompts(reflected: Reflected) -> None:
    photo = shapes(160, 120)
    red = boxes_of(160, 120)[0]
    for datatype, field in (("INT64", "int64_contents"), ("INT32", "int_contents"), ("FP32", "fp32_contents")):
        answer = reflected.call(
            "ModelInfer",
            {
                "model_name": "sam_toy",
                "inputs": [
                    image("BYTES", [1], "bytes_contents", [toy_models.encoded(photo)]),
                    {"name": "point_coords", "datatype": "FP32", "shape": [1, 1, 2],
                     "contents": {"fp32_contents": middle(red)}},
                    {"name": "point_labels", "datatype": datatype, "shape": [1, 1], "contents": {field: [1]}},
                ],
                "parameters": {"store": {"bool_param": False}, "multimask": {"string_param": "false"}},
            },
        )  # fmt: skip
        masks = np.frombuffer(answer.raw_output_contents[0], bool).reshape(answer.outputs[0].shape)
        (one,) = expected_masks(photo, [[*middle(red), 1]], multimask=False)
        clear = np.abs(one.logits) > 1e-3
        assert masks.shape == (1, 1, 120, 160)
        assert np.array_equal(masks[0, 0][clear], one.mask[clear])


def test_what_is_refused(reflected: Reflected) -> None:
    own = {"model_name": "oip_colours"}
    typed = image("BYTES", [1], "bytes_contents", [PNG])
    bare = {"name": "image", "datatype": "UINT8", "shape": [32, 32, 3]}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"inputs": [typed], "raw_input_contents": [PNG]}, "one of them"),
        ({"inputs": [bare], "raw_input_contents": [PIXELS.tobytes(), b""]}, "2 raw_input_contents"),
        ({"inputs": [bare], "raw_input_contents": [PIXELS.tobytes()[1:]]}, "3071"),
        ({"inputs": [bare]}, "uint_contents has 0"),
        ({"inputs": [image("FP16", [1], "fp32_contents", [1.0])]}, "raw_input_contents only"),
        ({"inputs": [image("UINT8", [1], "uint_contents", [300])]}, "not UINT8"),
        ({"inputs": [image("QINT8", [1], "int_contents", [3])]}, "QINT8"),
        ({"inputs": [{**bare, "shape": [-1, 32, 3]}], "raw_input_contents": [b""]}, "shape"),
        ({"inputs": [{**bare, "shape": [1 << 40, 1 << 40]}], "raw_input_contents": [b""]}, "at most"),
        ({"inputs": []}, "no inputs"),
    ]
    for request, reason in wrong:
        code, details = reflected.refusal({**own, **request})
        assert code == "INVALID_ARGUMENT" and reason in details, details
    region = {"shared_memory_region": {"string_param": "x"}}
    assert reflected.refusal({**own, "inputs": [{**bare, "parameters": region}]})[0] == "UNIMPLEMENTED"
    file = {"parameters": {"file:1/model.onnx": {"bytes_param": b"x"}}, "model_name": "oip_colours"}
    assert reflected.refusal(file, "RepositoryModelLoad")[0] == "UNIMPLEMENTED"
    assert reflected.refusal({"repository_name": "other"}, "RepositoryIndex")[0] == "NOT_FOUND"


def test_reflection_and_health(reflected: Reflected) -> None:
    assert {SERVICE, "grpc.health.v1.Health", "ekiben.v1.Vision"} <= set(reflected.database.get_services())
    stub = health_pb2_grpc.HealthStub(reflected.channel)
    for name in ("", SERVICE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    told = MessageToDict(reflected.call("ModelMetadata", {"name": "areas"}), preserving_proto_field_name=True)
    assert told["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": ["-1"]}]


def test_large_messages(reflected: Reflected, oip_server: Server) -> None:
    """64 MiB of tensors go through; more does not, nor what unpacks to more, and neither fills the memory."""
    (pid,) = oip_server.worker_pids()
    side = 2048
    pixels = np.zeros((5, side, side, 3), np.uint8)  # 60 MiB
    pixels[1:, ..., 0] = 255
    given = {"name": "image", "datatype": "UINT8", "shape": pixels.shape}
    own = {"model_name": "areas", "inputs": [given]}
    answer = reflected.call("ModelInfer", {**own, "raw_input_contents": [pixels.tobytes()]})
    maps = np.frombuffer(answer.raw_output_contents[0], np.uint8).reshape(answer.outputs[0].shape)
    assert np.array_equal(maps, areas(pixels[:, ::side, ::side]).repeat(side, 1).repeat(side, 2))
    too_large = {**own, "raw_input_contents": [bytes(MOST + (2 << 20))]}
    before = rss_mb(pid)
    for how, most in ((grpc.Compression.NoCompression, 40), (grpc.Compression.Gzip, 200)):
        (code, _), peak = with_peak(pid, lambda how=how: reflected.refusal(too_large, compression=how))  # type: ignore[misc]
        assert code == "RESOURCE_EXHAUSTED"
        assert peak - before < most
    assert np.abs(probs(reflected.call("ModelInfer", ENCODED)) - PROBS).max() < 1e-5


ENCODED = {
    "model_name": "oip_colours",
    "inputs": [image("BYTES", [1], "bytes_contents", [PNG])],
    "parameters": {"store": {"bool_param": False}},
}


def test_a_deadline_of_the_call(reflected: Reflected) -> None:
    slow = {
        "inputs": [image("BYTES", [1], "bytes_contents", [toy_models.encoded(toy_models.noise(900, 700, seed=92))])]
    }
    started = time.monotonic()
    code, _ = reflected.refusal({"model_name": "oip_cells", **slow}, timeout=0.05)
    assert code == "DEADLINE_EXCEEDED" and time.monotonic() - started < 5
    assert np.abs(probs(reflected.call("ModelInfer", ENCODED)) - PROBS).max() < 1e-5


def leaves(oip: Client, server: Server, seed: int) -> None:
    """Ask for ten thousand points, every mask of which is made, and leave: nothing more is computed."""
    data = toy_models.encoded(shapes(900, 700 + seed))
    many = {"points_per_side": 100, "pred_iou_thresh": 0, "stability_score_thresh": 0, "store": False}
    with httpx.Client(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=1)) as client:
        before = counted(client)["prompts"]
        oip.request("begin", model_name="sam_toy", inputs=[files(data)], parameters=many)
        end = time.monotonic() + 20
        while counted(client)["prompts"] < before + 40:
            assert time.monotonic() < end, "it never began"
            time.sleep(0.02)
        oip.request("leave")
        time.sleep(0.5)
        stopped = counted(client)["prompts"]
        time.sleep(0.4)
        assert counted(client)["prompts"] == stopped
        assert stopped - before < 5000


@EVERY_TOPOLOGY
@pytest.mark.parametrize("oip", ["grpc"], indirect=True)
def test_a_caller_who_leaves(sam_server: Server, oip: Client) -> None:
    leaves(oip, sam_server, 1)


@pytest.mark.parametrize("oip", ["grpc_aio", "http_aio"], indirect=True)
def test_a_task_that_is_cancelled(sam_server: Server, oip: Client) -> None:
    leaves(oip, sam_server, 2)
