"""An operation of one row and one module is there over every protocol: HTTP, Bento endpoints, gRPC, and as a job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import bentoml
import grpc
import httpx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from PIL import Image

from ekiben.ids import LOCAL_OWNER
from ekiben.v1 import ekiben_pb2
from services.app_state import AppState
from services.bento.endpoints import with_endpoints
from services.concurrency.byte_budget import ByteBudget
from services.inference.operations import OPERATIONS
from services.rest.app import create_app
from services.rpc.inference_servicer import add_inference_servicer
from services.rpc.method_wrappers import ServicerState
from tests import toy_models
from tests.services.inference.toy_operation import MEAN
from tests.services.jobs.job_homes import AtWork, at_work, make_home

RED = toy_models.encoded(Image.new("RGB", (10, 8), (200, 40, 30)))
MEAN_OF_RED = 90.0

Main = Callable[[AtWork], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Main], None]:
    monkeypatch.setitem(OPERATIONS, MEAN.name, MEAN)

    def run(main: Main) -> None:
        async def whole() -> None:
            async with at_work(make_home(tmp_path / "template"), tmp_path) as bench:
                await asyncio.wait_for(main(bench), 60)

        asyncio.run(whole())

    return run


def client_of(app_state: AppState) -> httpx.AsyncClient:
    app = create_app()
    app.state.app_state = app_state
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ekiben")


def test_over_http(run: Callable[[Main], None]) -> None:
    async def main(bench: AtWork) -> None:
        async with client_of(bench.app_state) as client:
            answer = await client.post("/v1/mean?model=colours&scale=2", content=RED)
            assert answer.status_code == 200, answer.text
            body = answer.json()
            assert body["mean"] == pytest.approx(2 * MEAN_OF_RED) and body["model"]["name"] == "colours"
            row = bench.app_state.records.prediction(LOCAL_OWNER, body["id"])
            assert (row.task, row.result, row.parameters) == ("mean", {"mean": body["mean"]}, {"scale": 2.0})
            text = await client.post("/v1/mean?model=colours", content=RED, headers={"accept": "text/plain"})
            assert (text.text, text.headers["content-type"]) == ("90.000", "text/plain; charset=utf-8")
            refused = await client.post("/v1/mean?model=colours&scale=0", content=RED)
            assert refused.status_code == 400 and "scale" in refused.json()["error"]["message"]
            listed = (await client.get("/v1/predictions?task=mean")).json()
            assert listed["total"] == 2 and listed["items"][-1]["id"] == body["id"]
            document = (await client.get("/openapi.json")).json()
            assert {each["name"] for each in document["paths"]["/v1/mean"]["post"]["parameters"]} >= {"scale", "model"}
            assert "mean" in document["components"]["schemas"]["PredictionBody"]["properties"]["task"]["enum"]

    run(main)


def test_as_a_bento_endpoint(run: Callable[[Main], None], tmp_path: Path) -> None:
    async def main(bench: AtWork) -> None:
        async with client_of(bench.app_state) as client:
            form = {
                "files": {"image": ("red.png", RED, "image/png")},
                "data": {"model": '"colours"', "version": "null"},
            }
            answer = await client.post("/mean", **form)  # type: ignore[arg-type]
            assert answer.status_code == 200, answer.text
            assert answer.json()["mean"] == pytest.approx(MEAN_OF_RED)

        @with_endpoints([MEAN])
        class Gateway:
            app_state = bench.app_state

        (tmp_path / "red.png").write_bytes(RED)
        described = bentoml.service(Gateway)  # type: ignore[arg-type]
        [route] = described.schema()["routes"]
        assert route["route"] == "/mean" and set(route["input"]["properties"]) >= {"image", "scale", "top_k"}
        called = Gateway.mean.func(Gateway(), tmp_path / "red.png", model="colours", scale=3)  # type: ignore[attr-defined]
        assert (await called)["mean"] == pytest.approx(3 * MEAN_OF_RED)

    run(main)


def with_mean() -> Any:
    """ekiben.proto with the messages and the method of the toy, as its author would write them; the Vision service."""
    file = descriptor_pb2.FileDescriptorProto()
    ekiben_pb2.DESCRIPTOR.CopyToProto(file)
    field = descriptor_pb2.FieldDescriptorProto
    request = file.message_type.add(name="MeanRequest")
    request.field.add(name="image", number=1, type=field.TYPE_MESSAGE, type_name=".ekiben.v1.Picture", label=1)
    for number, (name, kind) in enumerate([("model", field.TYPE_STRING), ("scale", field.TYPE_DOUBLE)]):
        request.oneof_decl.add(name=f"_{name}")
        request.field.add(name=name, number=number + 2, type=kind, label=1, proto3_optional=True, oneof_index=number)
    response = file.message_type.add(name="MeanResponse")
    for number, (name, kind, type_name) in enumerate(
        [
            ("id", field.TYPE_STRING, ""),
            ("model", field.TYPE_MESSAGE, ".ekiben.v1.ModelRef"),
            ("image", field.TYPE_MESSAGE, ".ekiben.v1.ImageRef"),
            ("mean", field.TYPE_DOUBLE, ""),
            ("timing", field.TYPE_MESSAGE, ".ekiben.v1.Timing"),
        ]
    ):
        response.field.add(name=name, number=number + 1, type=kind, type_name=type_name or None, label=1)
    vision = next(service for service in file.service if service.name == "Vision")
    vision.method.add(name="Mean", input_type=".ekiben.v1.MeanRequest", output_type=".ekiben.v1.MeanResponse")
    pool = descriptor_pool.DescriptorPool()
    for name in file.dependency:
        dependency = descriptor_pb2.FileDescriptorProto()
        descriptor_pool.Default().FindFileByName(name).CopyToProto(dependency)
        pool.Add(dependency)
    pool.Add(file)
    return pool.FindServiceByName("ekiben.v1.Vision")


def test_over_grpc(run: Callable[[Main], None]) -> None:
    async def main(bench: AtWork) -> None:
        service = with_mean()
        server = grpc.aio.server()
        state = ServicerState(bench.app_state, ByteBudget(1 << 20))
        add_inference_servicer(state, server, OPERATIONS.values(), service)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        method = service.methods_by_name["Mean"]
        request_type, response_type = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary(
                    "/ekiben.v1.Vision/Mean",
                    request_serializer=request_type.SerializeToString,
                    response_deserializer=response_type.FromString,
                )
                answer = await call(request_type(image={"data": RED}, model="colours", scale=0.5))
                assert answer.mean == pytest.approx(MEAN_OF_RED / 2)
                assert (answer.model.name, answer.image.width, answer.image.height) == ("colours", 10, 8)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(request_type(image={"data": RED}, model="colours", scale=11))
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        finally:
            await server.stop(None)

    run(main)


def test_as_a_job_and_a_batch(run: Callable[[Main], None]) -> None:
    async def main(bench: AtWork) -> None:
        async with client_of(bench.app_state) as client:
            accepted = await client.post("/v1/mean?model=colours", content=RED, headers={"prefer": "respond-async"})
            assert accepted.status_code == 202, accepted.text
            await bench.finish(accepted.json()["job_id"])
            [result] = await bench.results(accepted.json()["job_id"])
            assert result is not None and result["mean"] == pytest.approx(MEAN_OF_RED)
        job = await bench.finish((await bench.submit("mean", [RED] * 3, {"model": "colours", "scale": 2})).id)
        assert (job.state, job.succeeded) == ("succeeded", 3)
        results = await bench.results(job.id)
        assert [result["mean"] for result in results if result] == pytest.approx([2 * MEAN_OF_RED] * 3)

    run(main)
