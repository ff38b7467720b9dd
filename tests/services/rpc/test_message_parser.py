"""Bytes that are no message, sent to every method of a server in this process."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2

from ekiben.settings import Settings
from ekiben.v1 import ekiben_pb2 as pb
from services.app_state import AppState
from services.rpc.server import GrpcServer
from tests.serving import free_port

GARBAGE = {
    "random": b"\xff\xff\xff\xff\xff\xff",
    "cut off": b"\x0a\x10abc",
    "text that is not UTF-8": b"\x0a\x02\xff\xfe",
    "groups that never end": b"\x0b" * 1000,
}
METHODS = {
    "/ekiben.v1.Vision/Classify": "unary",
    "/ekiben.v1.Vision/AutoMasks": "stream",
    "/ekiben.v1.Jobs/GetJob": "unary",
    "/ekiben.v1.Jobs/WatchJob": "stream",
    "/ekiben.v1.Models/GetModel": "unary",
    "/inference.GRPCInferenceService/ModelInfer": "unary",
    "/grpc.health.v1.Health/Check": "unary",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "both",
}


async def ask(channel: grpc.aio.Channel, method: str, kind: str, data: bytes) -> Any:
    if kind == "unary":
        return await channel.unary_unary(method)(data, timeout=20)
    if kind == "stream":
        return [each async for each in channel.unary_stream(method)(data, timeout=20)]
    return [each async for each in channel.stream_stream(method)(iter([data]), timeout=20)]


def test_bytes_that_are_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        settings = Settings(home=tmp_path, grpc_port=free_port())
        app_state = await AppState.start(settings)
        server = GrpcServer(app_state, settings)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
                for method, kind in METHODS.items():
                    for data in GARBAGE.values():
                        caplog.clear()
                        with pytest.raises(grpc.aio.AioRpcError) as caught:
                            await ask(channel, method, kind, data)
                        check(caught.value, method)
                        assert [line.getMessage() for line in caplog.records] == ["refused"], (method, data)
                        assert not caplog.records[0].exc_info
                # And messages are parsed as before, of all kinds.
                healthy = health_pb2.HealthCheckRequest().SerializeToString()
                assert await ask(channel, "/grpc.health.v1.Health/Check", "unary", healthy)
                unknown = pb.GetJobRequest(id="x").SerializeToString()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ask(channel, "/ekiben.v1.Jobs/GetJob", "unary", unknown)
                assert caught.value.code() == grpc.StatusCode.NOT_FOUND
                assert await ask(channel, list(METHODS)[-1], "both", b"\x3a\x00")  # list the services
        finally:
            await server.stop()
            await app_state.stop()

    asyncio.run(main())


def check(error: grpc.aio.AioRpcError, method: str) -> None:
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, (method, error)
    assert method in str(error.details())
    trailing = dict(error.trailing_metadata() or ())
    status, info = Status(), ErrorInfo()
    status.ParseFromString(trailing["grpc-status-details-bin"])
    status.details[0].Unpack(info)
    assert info.reason == "bad_request"
    assert info.metadata["request_id"] == trailing["x-request-id"]
