"""Bytes that are no message, sent to every method of a server in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
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
from services.rpc import message_parser
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


def with_server(home: Path, main: Callable[[grpc.aio.Channel], Awaitable[None]]) -> None:
    """Run ``main`` beside a server in this process, on one event loop."""

    async def whole() -> None:
        settings = Settings(home=home, grpc_port=free_port())
        app_state = await AppState.start(settings)
        server = GrpcServer(app_state, settings)
        await server.start()
        try:
            options = [("grpc.max_send_message_length", -1)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}", options) as channel:
                await main(channel)
        finally:
            await server.stop()
            await app_state.stop()

    asyncio.run(whole())


def test_bytes_that_are_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def main(channel: grpc.aio.Channel) -> None:
        caplog.clear()
        for method, kind in METHODS.items():
            for data in GARBAGE.values():
                caplog.clear()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ask(channel, method, kind, data)
                check(caught.value, method, method)
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

    with_server(tmp_path, main)


def check(error: grpc.aio.AioRpcError, method: str, said: str) -> None:
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, (method, error)
    assert said in str(error.details())
    trailing = dict(error.trailing_metadata() or ())
    status, info = Status(), ErrorInfo()
    status.ParseFromString(trailing["grpc-status-details-bin"])
    status.details[0].Unpack(info)
    assert info.reason == "bad_request"
    assert info.metadata["request_id"] == trailing["x-request-id"]


def test_every_method_says_what_it_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a message of too many fields would be parsed."""
    checked: list[Any] = []
    count = message_parser.count_fields
    monkeypatch.setattr(message_parser, "_SMALL", -1)
    monkeypatch.setattr(message_parser, "count_fields", lambda *given: checked.append(given[1]) or count(*given))

    async def main(channel: grpc.aio.Channel) -> None:
        for method, kind in METHODS.items():
            with contextlib.suppress(grpc.aio.AioRpcError):
                await ask(channel, method, kind, b"\xff")
            assert checked.pop().full_name.endswith(("Request", "Health")), method

    with_server(tmp_path, main)


def test_a_message_of_too_many_messages_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing it takes a second and more, in which no other client is answered."""
    threads: list[int] = []
    count = message_parser.count_fields
    monkeypatch.setattr(
        message_parser, "count_fields", lambda *given: threads.append(threading.get_ident()) or count(*given)
    )
    infer, tensor = "/inference.GRPCInferenceService/ModelInfer", b"\x2a\x00"

    async def main(channel: grpc.aio.Channel) -> None:
        for number in (message_parser.MAX_FIELDS + 1, 32_000_000):
            threads.clear()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(channel, infer, "unary", tensor * number)
            check(caught.value, infer, f"are a message of more than {message_parser.MAX_FIELDS} fields")
            loop = threading.get_ident()
            assert len(threads) == 2 and threads[0] == loop != threads[1]  # the long count is not on the loop
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, infer, "unary", tensor * message_parser.MAX_FIELDS)
        assert "fields" not in (caught.value.details() or "")  # it was parsed
        threads.clear()
        image = pb.ClassifyRequest(image=pb.Picture(data=b"x" * 1_000_000)).SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(channel, "/ekiben.v1.Vision/Classify", "unary", image)
        assert threads == [threading.get_ident()]  # few fields, however large

    with_server(tmp_path, main)
