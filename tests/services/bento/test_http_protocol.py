"""Connections, over real sockets: every state of one ends, and who is refused reads why."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from services import metrics
from services.bento import http_protocol
from services.bento.connection_limits import ConnectionLimits
from services.bento.http_protocol import MAX_HEAD_BYTES, GuardedProtocol
from services.rest.middleware import RequestMiddleware

LARGE = 50_000_000
SHORT_S = 1.0
PATIENCE_S = 30.0
"""How long a test waits for the end of a connection; only a fault makes it wait so long."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    path, status, body = scope["path"], 200, b"ok"
    if path == "/read":
        size = 0
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = str(size).encode()
    elif path.startswith("/early"):
        status, body = 413, b"too large"
    elif path == "/some":  # a refusal in the middle of the body
        size = 0
        while size < 1_000_000:
            size += len((await receive()).get("body", b""))
        status, body = 413, b"too large"
    elif path == "/much":
        body = bytes(32_000_000)
    headers = [(b"content-length", str(len(body)).encode())]
    if path.endswith("/close"):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Running:
    def __init__(self, port: int, server: uvicorn.Server) -> None:
        self.port = port
        self.server = server

    @property
    def open(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)


@contextmanager
def running(limits: ConnectionLimits, loop: str = "uvloop") -> Iterator[Running]:
    class Protocol(GuardedProtocol):
        pass

    Protocol.limits = limits
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(2048)
    whole = RequestMiddleware(app, app, None)
    config = uvicorn.Config(whole, http=Protocol, ws="none", loop=loop, lifespan="off", log_config=None)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Running(listening.getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def patient(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(ConnectionLimits(header_timeout_s=PATIENCE_S, keep_alive_s=PATIENCE_S), request.param) as server:
        yield server


@pytest.fixture(params=["uvloop", "asyncio"])
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(http_protocol, "LINGER_IDLE_S", SHORT_S)
    monkeypatch.setattr(http_protocol, "STALLED_WRITE_S", SHORT_S)
    with running(ConnectionLimits(header_timeout_s=SHORT_S, keep_alive_s=SHORT_S), request.param) as server:
        yield server


def closed(reason: str) -> float:
    return metrics.connections_closed.labels(reason)._value.get()


def rest(connection: socket.socket) -> bytes:
    """What the server still sends, until it closes."""
    read = b""
    while True:
        try:
            piece = connection.recv(1 << 16)
        except ConnectionResetError:
            return read
        if not piece:
            return read
        read += piece


def pieces() -> Iterator[bytes]:
    for _ in range(LARGE // 500_000):
        yield bytes(500_000)


@pytest.mark.parametrize("path", ["/early", "/early/close", "/some"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("leaves", [False, True])
def test_who_is_refused_while_sending_reads_the_status(
    patient: Running, path: str, chunked: bool, leaves: bool
) -> None:
    headers = {"Connection": "close"} if leaves else {}
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", patient.port, timeout=PATIENCE_S)
        body: Any = pieces() if chunked else bytes(LARGE)
        connection.request("POST", path, body, headers, encode_chunked=chunked)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (413, b"too large")
        connection.close()
        with httpx.Client(timeout=PATIENCE_S) as client:
            content: Any = pieces() if chunked else bytes(LARGE)
            url = f"http://127.0.0.1:{patient.port}"
            assert client.post(url + path, content=content, headers=headers).status_code == 413
            # The connection may be used again, or it was closed where the client can tell.
            assert client.post(url + "/read", content=b"abc").text == "3"


def test_urllib_closes_its_connections(patient: Running) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{patient.port}/early", data=bytes(LARGE))
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE_S)
    assert caught.value.code == 413


def test_bytes_that_are_no_http(patient: Running) -> None:
    with patient.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n" + bytes(5_000_000))
        assert rest(connection).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_waits_for_100_continue_is_refused_and_closed(patient: Running) -> None:
    with patient.connect() as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        connection.settimeout(PATIENCE_S)
        assert rest(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /read HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"GET /read HTTP/1.1\r\na: " + b"b" * 2_000_000,
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * 200_000,
    ],
    ids=["many", "long", "path", "name"],
)
def test_a_head_has_a_bound(patient: Running, head: bytes) -> None:
    before = closed("header_too_large")
    with patient.connect() as connection:
        connection.sendall(head)
        assert rest(connection).startswith(b"HTTP/1.1 431 ")
    assert closed("header_too_large") == before + 1


def test_a_head_within_the_bound_may_come_in_pieces(patient: Running) -> None:
    head = b"GET /read HTTP/1.1\r\nconnection: close\r\n" + b"a: bcd\r\n" * ((MAX_HEAD_BYTES - 1000) // 8) + b"\r\n"
    with patient.connect() as connection:
        for start in range(0, len(head), 9000):
            connection.sendall(head[start : start + 9000])
        assert rest(connection).startswith(b"HTTP/1.1 200 ")


STATES = [
    (b"", b""),
    (b"\r\n", b""),
    (b"GET / HT", b"HTTP/1.1 408 "),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"HTTP/1.1 408 "),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 "),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n", b"HTTP/1.1 200 "),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / H", b"HTTP/1.1 200 "),
    (b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1", b"HTTP/1.1 413 "),
    (b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n1", b"HTTP/1.1 413 "),
    (b"POST /early HTTP/1.0\r\nHost: x\r\nContent-Length: 9\r\n\r\n1", b"HTTP/1.1 413 "),
    (b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n123\r\n", b"HTTP/1.1 413 "),
]
"""What a client sends before it falls silent, and how the answer begins."""


def test_every_state_ends(short: Running) -> None:
    with ExitStack() as stack:
        waiting = [(stack.enter_context(short.connect()), sent, answer) for sent, answer in STATES]
        for connection, sent, _ in waiting:
            connection.sendall(sent)
        for connection, sent, answer in waiting:
            read = rest(connection)
            assert read.startswith(answer), sent
            assert bool(read) == bool(answer), sent


@pytest.mark.parametrize("piece", [b"a", b"\r\n"])
def test_a_head_that_drips_ends_too(short: Running, piece: bytes) -> None:
    with short.connect() as connection, pytest.raises(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\nA: " if piece == b"a" else b"")
        for _ in range(10_000):
            connection.sendall(piece)
            threading.Event().wait(SHORT_S / 20)


def test_a_response_that_nobody_reads_ends(short: Running) -> None:
    before = closed("unread_response")
    with short.connect() as connection:
        connection.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        wait = threading.Event()
        for _ in range(int(PATIENCE_S / 0.02)):
            if closed("unread_response") > before:
                break
            wait.wait(0.02)
        assert closed("unread_response") == before + 1


def test_more_connections_than_the_bound() -> None:
    with running(ConnectionLimits(PATIENCE_S, PATIENCE_S, max_connections=5)) as server, ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(5)]
        for connection in held:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        one_more = httpx.get(f"http://127.0.0.1:{server.port}/v1/models", timeout=PATIENCE_S)
        assert one_more.status_code == 503
        assert one_more.json()["error"]["code"] == "overloaded"
        assert one_more.headers["retry-after"] == "1"
        assert one_more.headers["connection"] == "close"
        assert httpx.get(f"http://127.0.0.1:{server.port}/livez", timeout=PATIENCE_S).status_code == 200
        silent = [stack.enter_context(server.connect()) for _ in range(200)]
        assert rest(silent[-1]) == b""  # not even asked for
        for connection in (*held, *silent):
            connection.close()
        for _ in range(1500):
            if not server.open:
                break
            threading.Event().wait(0.02)
        assert httpx.get(f"http://127.0.0.1:{server.port}/v1/models", timeout=PATIENCE_S).status_code == 200


def test_a_server_that_stops_waits_for_no_one_who_still_sends() -> None:
    with running(ConnectionLimits(PATIENCE_S, PATIENCE_S)) as server:
        half, refused = server.connect(), server.connect()
        half.sendall(b"GET / HTTP/1.1\r\nHo")
        refused.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nConnection: close\r\n\r\n1")
        assert refused.recv(100).startswith(b"HTTP/1.1 413 ")
        begun = asyncio.new_event_loop().time()
        server.server.should_exit = True
        rest(half), rest(refused)
        assert asyncio.new_event_loop().time() - begun < http_protocol.LINGER_IDLE_S
        half.close(), refused.close()
