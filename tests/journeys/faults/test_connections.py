"""Clients that send half, and clients that send too much, at a server as a user starts it."""

from __future__ import annotations

import gzip
import http.client
import re
import resource
import socket
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.conftest import publish
from tests.serving import Server, serving
from tests.toy_models import classifier, encoded, noise
from tests.waiting import eventually

LARGE = 50_000_000
HALVES = 1200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("connections")
    classifier(folder / "colours")
    publish(folder / "var", "colours", folder / "colours")
    with serving(folder / "var", EKIBEN_HEADER_TIMEOUT_S="2", EKIBEN_MAX_CONNECTIONS="300") as server:
        yield server


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v1/trainings", "/v1/classify?model=colours", "/v1/nothing"])
@pytest.mark.parametrize("leaves", [False, True])
def test_who_sends_too_much_reads_why(server: Server, path: str, leaves: bool) -> None:
    size = LARGE + (5_000_000 if "classify" in path else 0)
    status = 404 if path == "/v1/nothing" else 413
    headers = {"Content-Type": "application/json", **({"Connection": "close"} if leaves else {})}
    address = server.url.removeprefix("http://")
    for _ in range(3):
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("POST", path, bytes(size), headers)
        assert connection.getresponse().status == status
        connection.close()
        with server.client() as client:
            assert client.post(path, content=bytes(size), headers=headers).status_code == status
            pieces = (bytes(1_000_000) for _ in range(size // 1_000_000))
            assert client.post(path, content=pieces, headers=headers).status_code == status


def test_half_sent_requests_are_closed(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * HALVES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4 * HALVES, hard), hard))
    host, port = server.url.removeprefix("http://").split(":")
    halves = (
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nA: ",
        b"POST /nowhere HTTP/1.1\r\nContent-Length: 9\r\n\r\n1",
        b"",
    )
    with ExitStack() as stack:
        held = []
        for number in range(HALVES):
            connection = stack.enter_context(socket.create_connection((host, int(port)), 60))
            try:
                connection.sendall(halves[number % 3])
            except ConnectionError:  # one over the bound
                continue
            held.append(connection)

        def answered() -> bool:
            try:
                return httpx.get(server.url + "/v1/models", timeout=60).status_code == 200
            except httpx.TransportError:  # over the bound, still
                return False

        eventually(answered, "an answer while half-sent requests are open")
        for connection in held:  # every one is closed by the server
            try:
                while connection.recv(1 << 16):
                    pass
            except ConnectionError:
                pass
    text = httpx.get(server.url + "/metrics", timeout=60).text
    counted = dict(re.findall(r'ekiben_connections_closed_total\{reason="(\w+)"\} (\d+)', text))
    assert int(counted["header_timeout"]) > 50
    assert int(counted["too_many"]) >= HALVES - 300 - 50
    assert server.logs().count("connections are refused") == 1


def test_a_compressed_body(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = gzip.compress(encoded(noise(64, 48)))
    head = (
        "POST /v1/classify?model=colours HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Encoding: gzip\r\n"
    )
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        read = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert read.startswith(b"HTTP/1.1 415 ")
    assert b"'gzip'" in read
