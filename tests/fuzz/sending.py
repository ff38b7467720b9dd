"""Sends calls over connections of its own, HTTP/1.1 as bytes and gRPC without message types, and reads the answers."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import httptools
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from tests.fuzz.drafts import Call

WAIT_S = 90.0
MOST_BYTES = 64_000_000
STREAM_S = 1.0


@dataclass
class Answer:
    """``status``: that of HTTP, or the name of the gRPC code. ``code``: the error code, empty without one."""

    status: int | str
    code: str = ""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    broken: str = ""

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def good(self) -> bool:
        return self.status == "OK" or (isinstance(self.status, int) and 200 <= self.status < 400)


class _Reader:
    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.done = False
        self.started = False

    def on_message_begin(self) -> None:
        self.__init__()  # type: ignore[misc]  # what came before was 100 Continue

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.started = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


class HttpConnection:
    """One kept connection; opened again where the server closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, call: Call, request_id: str) -> Answer:
        for attempt in (1, 2):
            kept = self._streams is not None
            try:
                return await asyncio.wait_for(self._once(call, request_id), WAIT_S)
            except TimeoutError:
                self.close()
                return Answer(0, broken=f"no answer in {WAIT_S:g} s")
            except (OSError, asyncio.IncompleteReadError, httptools.HttpParserError) as error:
                self.close()
                if not kept or attempt == 2:  # a kept connection may have been closed for its age
                    return Answer(0, broken=f"{type(error).__name__}: {error}")
        raise AssertionError

    async def _once(self, call: Call, request_id: str) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        names = {name.lower() for name, _ in call.headers}
        head = [call.method.encode() + b" " + call.target + b" HTTP/1.1", b"Host: fuzz"]
        head += [name + b": " + value for name, value in call.headers]
        if b"x-request-id" not in names:
            head.append(b"X-Request-ID: " + request_id.encode())
        if call.body or call.method not in ("GET", "HEAD"):
            head.append(b"Content-Length: " + str(len(call.body)).encode())
        writer.write(b"\r\n".join(head) + b"\r\n\r\n" + call.body)
        parsed = _Reader()
        parser = httptools.HttpResponseParser(parsed)
        if call.method == "HEAD":
            return await self._head(reader, parser, parsed)
        try:
            async with asyncio.timeout(None) as limit:
                while not parsed.done or parser.get_status_code() == 100:
                    data = await reader.read(1 << 18)
                    if not data:
                        raise asyncio.IncompleteReadError(b"", None)
                    parser.feed_data(data)
                    if parsed.started and "text/event-stream" in parsed.headers.get("content-type", ""):
                        limit.reschedule(asyncio.get_running_loop().time() + STREAM_S)
                    if len(parsed.body) > MOST_BYTES:
                        self.close()
                        return Answer(0, broken="an endless answer")
        except TimeoutError:  # an event stream goes on
            self.close()
        if parsed.headers.get("connection", "").lower() == "close":
            self.close()
        return _read(parser.get_status_code(), parsed)

    async def _head(self, reader: asyncio.StreamReader, parser: Any, parsed: _Reader) -> Answer:
        data = await reader.readuntil(b"\r\n\r\n")
        parser.feed_data(data)
        self.close()
        return _read(parser.get_status_code(), parsed)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _read(status: int, parsed: _Reader) -> Answer:
    answer = Answer(status, "", bytes(parsed.body), parsed.headers)
    if status >= 400 and isinstance(tree := answer.json, dict):
        error = tree.get("error")
        answer.code = error.get("code", "") if isinstance(error, dict) else "oip" if error else ""
    return answer


class GrpcConnection:
    """A channel of its own."""

    def __init__(self, address: str) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.aio.insecure_channel(address, options)

    async def send(self, call: Call, request_id: str) -> Answer:
        metadata = [(name.decode(), value.decode("latin-1")) for name, value in call.headers]
        metadata.append(("x-request-id", request_id))
        method = call.target.decode()
        try:
            if not call.streams:
                data = await self._channel.unary_unary(method)(call.body, timeout=WAIT_S, metadata=metadata)
                return Answer("OK", body=data)
            stream = self._channel.unary_stream(method)(call.body, timeout=WAIT_S, metadata=metadata)
            last = b""
            async with asyncio.timeout(WAIT_S if "WatchJob" not in method else STREAM_S):
                async for chunk in stream:
                    last = chunk
            return Answer("OK", body=last)
        except TimeoutError:
            stream.cancel()
            return Answer("OK")
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().name, _reason(error), str(error.details()).encode())

    async def close(self) -> None:
        await self._channel.close()


def _reason(error: grpc.aio.AioRpcError) -> str:
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            status, info = Status(), ErrorInfo()
            status.ParseFromString(value)
            for detail in status.details:
                if detail.Unpack(info):
                    return str(info.reason)
    return ""
