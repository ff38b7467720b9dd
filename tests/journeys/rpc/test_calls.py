"""What every call over gRPC has: an id, a limit; and what reflection tells of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from ekiben.v1 import ekiben_pb2 as pb
from tests import toy_models
from tests.journeys.rpc.grpc_calls import SERVICES, Stubs, connected, failing, image, refused
from tests.serving import Server

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))


@pytest.fixture
def rpc(toy_server: Server) -> Iterator[Stubs]:
    with connected(toy_server.grpc) as stubs:
        yield stubs


def test_requests_have_ids(rpc: Stubs) -> None:
    def query(given: str | None, **more: Any) -> str:
        metadata = [] if given is None else [("x-request-id", given)]
        request = pb.ClassifyRequest(**{"image": image(RED), "model": "colours", "store": False, **more})
        _, call = rpc.vision.Classify.with_call(request, metadata=metadata)
        return str(dict(call.trailing_metadata())["x-request-id"])

    assert query("mine.1-2_3") == "mine.1-2_3"
    made = [query(None), query(None), query("x" * 129), query("a b"), query("")]
    assert len({uuid.UUID(one) for one in made}) == 5
    with pytest.raises(grpc.RpcError) as error:
        query("mine", top_k=0)
    refusal = refused(error.value)
    assert refusal.request_id == "mine" == refusal.trailing["x-request-id"]
    refusal = failing(lambda: rpc.models.GetModel(pb.GetModelRequest(name="nope")))
    assert refusal.request_id == refusal.trailing["x-request-id"]
    assert uuid.UUID(refusal.request_id).version == 7


def test_a_long_refusal_arrives(rpc: Stubs) -> None:
    refusal = failing(lambda: rpc.jobs.GetJob(pb.GetJobRequest(id="x" * 100_000)))
    assert refusal.code == "NOT_FOUND" and len(refusal.message) <= 1500
    refusal = failing(lambda: rpc.models.GetModel(pb.GetModelRequest(name="ü\n" * 50_000)))
    assert refusal.code == "NOT_FOUND" and refusal.reason == "not_found"


def test_messages_have_a_limit(rpc: Stubs) -> None:
    """64 MiB and a bit arrive; what is larger does not, and the connection goes on."""
    at_most = 64 * 1024 * 1024
    requested = pb.ClassifyRequest(image=image(RED + bytes(at_most - len(RED))), model="colours")
    assert failing(lambda: rpc.vision.Classify(requested)).reason == "too_large"
    requested = pb.ClassifyRequest(image=image(RED + bytes(at_most + 1024 * 1024)), model="colours")
    refusal = failing(lambda: rpc.vision.Classify(requested))
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", None)
    requested = pb.ClassifyRequest(image=image(RED), model="colours", store=False)
    assert rpc.vision.Classify(requested).predictions[0].class_name == "red"


def test_reflection_is_enough_to_ask(rpc: Stubs, waiting: httpx.Client) -> None:
    """As grpcurl does: services, messages and methods out of the server alone."""
    database = ProtoReflectionDescriptorDatabase(rpc.channel)
    assert set(database.get_services()) == SERVICES
    pool = DescriptorPool(database)
    for name in SERVICES:
        assert pool.FindServiceByName(name).methods

    def query(service: str, method: str, **given: Any) -> Any:
        found = pool.FindServiceByName(service).methods_by_name[method]
        request, response = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
        write, read = request.SerializeToString, response.FromString
        return rpc.channel.unary_unary(f"/{service}/{method}", write, read)(request(**given))

    told = query("ekiben.v1.Vision", "Classify", image={"data": RED}, model="colours", store=False)
    assert told.predictions[0].class_name == "red"
    job = query("ekiben.v1.Jobs", "SubmitJob", classify={"image": {"data": RED}, "model": "colours"})
    assert query("ekiben.v1.Jobs", "CancelJob", id=job.job_id).parameters["model"] == "colours"  # a Struct
    infer = query(
        "inference.GRPCInferenceService",
        "ModelInfer",
        model_name="colours",
        inputs=[{"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [RED]}}],
    )
    assert (infer.outputs[0].name, list(infer.outputs[0].shape)) == ("probs", [1, 4])
