"""What a client does with refusals, broken connections, servers that are away or late; over HTTP."""

from __future__ import annotations

import json
import socket
import ssl
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from ekiben.client import Client, EkibenError, TimedOut, Unreachable
from tests import toy_models
from tests.ekiben.bodies import JOB, classification, job, refusal
from tests.ekiben.clients import Script, connected, form, handled, said, self_signed
from tests.serving import free_port

PNG = toy_models.encoded(toy_models.solid((200, 10, 10), 4, 3))


def test_refusals(kind: str) -> None:
    script = Script(
        said(refusal("bad_image", "the bytes are not an image"), 400),
        said(refusal("overloaded"), 503, **{"Retry-After": "120"}),
        said(refusal("deadline_exceeded"), 504, **{"Retry-After": "1"}),
        httpx.Response(502, text="<h1>Bad Gateway</h1>"),
        said(["no", "object"], 500),
    )
    with handled(kind, script) as client:
        caught = []
        for _ in range(5):
            with pytest.raises(EkibenError) as one:
                client.classify(PNG)
            caught.append(one.value)
    assert [error.code for error in caught] == ["bad_image", "overloaded", "deadline_exceeded", "http_502", "http_500"]
    assert [error.status for error in caught] == [400, 503, 504, 502, 500]
    assert (caught[0].message, caught[0].request_id) == ("the bytes are not an image", "r-1")
    assert str(caught[0]) == "bad_image: the bytes are not an image (request r-1)"
    assert [error.retry_after_s for error in caught] == [None, 120, 1, None, None]
    assert isinstance(caught[2], TimedOut) and isinstance(caught[2], TimeoutError)
    assert "Bad Gateway" in caught[3].message
    assert len(script.requests) == 5  # two minutes are too long to wait, and what was computed is not asked again


@pytest.mark.parametrize(
    ("trouble", "tried"),
    [
        (lambda: said(refusal("overloaded"), 503, **{"Retry-After": "0"}), 3),
        (lambda: said(refusal("model_loading"), 503, **{"Retry-After": "0"}), 3),
        (lambda: said(refusal("memory_budget"), 503, **{"Retry-After": "0"}), 3),
        (lambda: said(refusal("stopping"), 503, **{"Retry-After": "0"}), 3),
        (lambda: said(refusal("unavailable"), 503, **{"Retry-After": "0"}), 1),  # as when its answer was to be stored
        (lambda: said(refusal("deadline_exceeded"), 504, **{"Retry-After": "0"}), 1),
        (lambda: said(refusal("overloaded"), 503), 1),
        (lambda: said(refusal("unavailable"), 503), 1),
        (lambda: said(refusal("internal_error"), 500), 1),
        (lambda: httpx.ConnectError("refused"), 3),
        (lambda: httpx.ConnectTimeout("slow"), 3),
        (lambda: httpx.ReadError("reset"), 1),
        (lambda: httpx.RemoteProtocolError("closed"), 1),
        (lambda: httpx.ReadTimeout("late"), 1),
    ],
)
def test_what_is_tried_again(kind: str, trouble: Any, tried: int) -> None:
    """An inference that may have been computed is not asked for again."""

    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        made: Any = trouble() if len(requests) <= 2 else said(classification("red"))
        if isinstance(made, httpx.TransportError):
            made.request = request
            raise made
        response: httpx.Response = made
        return response

    with handled(kind, handler) as client:
        if tried == 3:
            assert client.classify(PNG).top.class_name == "red"
            assert form(requests[2]).data == PNG
        else:
            with pytest.raises(EkibenError):
                client.classify(PNG)
    assert len(requests) == tried
    requests.clear()
    with handled(kind, handler, retries=1) as client, pytest.raises(EkibenError):
        client.classify(PNG)
    assert len(requests) == min(tried, 2)


def test_what_asks_for_no_more_than_once_is_repeated(kind: str) -> None:
    """A GET; and a job, which has a key by which the server knows it again."""
    broken = httpx.ReadError("reset")
    script = Script(broken, said(job()), broken, said({"job_id": JOB}, 202), said(job("queued")))
    with handled(kind, script) as client:
        assert client.job(JOB).state == "running"
        assert client.submit("classify", PNG, top_k=2, priority=9).state == "queued"
    one, two = script.requests[2:4]
    assert one.headers["idempotency-key"] == two.headers["idempotency-key"]
    assert len(one.headers["idempotency-key"]) == 36
    assert two.headers["prefer"] == "respond-async"
    assert form(two).fields == {"top_k": "2", "priority": "9"}
    assert form(two).data == PNG


@pytest.mark.parametrize("code", ["unavailable", "overloaded", "model_loading", "stopping"])
def test_reading_is_repeated_whatever_is_away(kind: str, code: str) -> None:
    away = said(refusal(code), 503, **{"Retry-After": "0"})
    script = Script(away, away, said(job()), away, away, away, said(refusal(code), 503))
    with handled(kind, script, retries=2) as client:
        assert client.job(JOB).state == "running"
        assert script.requested == [("GET", f"/v1/jobs/{JOB}")] * 3
        with pytest.raises(EkibenError) as caught:
            client.job(JOB)
        assert (caught.value.code, len(script.requests)) == (code, 6)
        with pytest.raises(EkibenError):  # that does not ask to come back
            client.job(JOB)
    assert len(script.requests) == 7


def test_what_took_too_long_is_not_read_again(kind: str) -> None:
    script = Script(said(refusal("deadline_exceeded"), 504, **{"Retry-After": "0"}))
    with handled(kind, script) as client, pytest.raises(TimedOut):
        client.job(JOB)
    assert len(script.requests) == 1


def test_nobody_there(kind: str) -> None:
    with connected(kind, f"http://127.0.0.1:{free_port()}", retries=0) as client, pytest.raises(Unreachable) as caught:
        client.classify(PNG)
    assert caught.value.safe_to_retry and "127.0.0.1" in caught.value.message


def test_an_answer_that_does_not_come(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        begun = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with connected(kind, url, timeout_s=0.3) as client, pytest.raises(TimedOut) as caught:
            client.classify(PNG)
        assert caught.value.code == "deadline_exceeded"
        assert time.monotonic() - begun >= 0.3


class Greeter(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(classification("red")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def test_tls(kind: str, tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Greeter) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"https://localhost:{server.server_address[1]}"
            with connected(kind, url, ca=certificate) as client:
                assert client.classify(PNG).top.class_name == "red"
            with connected(kind, url, retries=0) as client, pytest.raises(Unreachable, match="certificate"):
                client.classify(PNG)
        finally:
            server.shutdown()
            thread.join()


def test_what_goes_over_grpc_only(kind: str) -> None:
    with handled(kind, Script()) as client, pytest.raises(EkibenError) as caught:
        list(client.stream_auto_masks(PNG))
    assert caught.value.code == "grpc_only"


@pytest.mark.parametrize("url", ["ftp://localhost", "http://", "localhost:port:3"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError):
        Client(url)


def test_an_address_below_a_path_and_one_without_a_scheme(kind: str) -> None:
    script = Script(said(classification("red")))
    with handled(kind, script, url="https://host/vision") as client:
        client.classify(PNG)
    assert str(script.requests[0].url) == "https://host/vision/v1/classify"
    assert repr(Client("localhost:3000")) == "Client('localhost:3000')"
