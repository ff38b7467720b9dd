"""A stop while requests are in flight loses none of them; a caller who leaves is not computed."""

from __future__ import annotations

import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import toy_models
from tests.pace import pace
from tests.serving import TOPOLOGIES, first_in, serving

PHOTO = toy_models.encoded(toy_models.noise(900, 700), "JPEG", quality=95)


@pytest.mark.parametrize("topology", first_in("split"))
def test_sigterm_answers_what_is_in_flight(toy_home: Path, topology: str) -> None:
    count = 16
    with serving(toy_home, **TOPOLOGIES[topology]) as server:
        with httpx.Client(base_url=server.url) as client:
            assert client.post("/v1/segment?model=areas", content=PHOTO, timeout=30).status_code == 200
        sent = threading.Barrier(count + 1)

        def request() -> int:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                client.get("/livez")  # connected before the stop
                sent.wait(30)
                return client.post("/v1/segment?model=areas", content=PHOTO).status_code

        with ThreadPoolExecutor(count) as pool:
            answers = [pool.submit(request) for _ in range(count)]
            sent.wait(30)
            time.sleep(0.5)  # all are received, most still wait for a slot
            server.process.send_signal(signal.SIGTERM)
            assert [answer.result(60) for answer in answers] == [200] * count
        assert server.process.wait(40 * pace()) == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url + "/livez", timeout=2)


def test_a_caller_who_leaves_is_not_computed(toy_home: Path) -> None:
    with serving(toy_home, EKIBEN_THREADS="1") as server, server.client() as client:
        client.post("/v1/segment?model=areas&store=false", content=PHOTO)
        runs = lambda: client.get("/v1/models/areas").json()["counters"]["batches"]  # noqa: E731
        before = runs()
        address = (server.url.split("//")[1].split(":")[0], int(server.url.rsplit(":", 1)[1]))
        head = f"POST /v1/segment?model=areas HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode()
        callers = []
        for _ in range(30):
            caller = socket.create_connection(address, 10)
            caller.sendall(head + PHOTO)
            callers.append(caller)
        for caller in callers:
            caller.close()
        end = time.monotonic() + 30
        while client.get("/v1/models/areas").json()["counters"]["waiting"] and time.monotonic() < end:
            time.sleep(0.05)
        assert client.post("/v1/segment?model=areas&store=false", content=PHOTO).status_code == 200
        assert runs() - before <= 15  # those that a slot had taken already, and the last one
        # Nothing was recorded for those who left before their answer.
        total = client.get("/v1/predictions").json()["total"]
        assert total <= 15
        files = [p for p in (toy_home / "blobs").rglob("*.jpg") if p.is_file()]
        assert len(files) == total


def test_overload_is_refused_at_once(toy_home: Path) -> None:
    """More than the queue takes: 503 with Retry-After, quickly; what was accepted is answered."""
    with serving(toy_home, EKIBEN_QUEUE_MB="2", EKIBEN_THREADS="1") as server:

        def request(_: int) -> tuple[int, float, str | None]:
            with httpx.Client(base_url=server.url, timeout=120) as client:
                started = time.monotonic()
                answer = client.post("/v1/segment?model=areas&store=false", content=PHOTO)
                return answer.status_code, time.monotonic() - started, answer.headers.get("retry-after")

        request(0)
        with ThreadPoolExecutor(40) as pool:
            results = list(pool.map(request, range(40)))
        statuses = {status for status, _, _ in results}
        assert statuses == {200, 503}
        assert all(int(wait or 0) >= 1 for status, _, wait in results if status == 503)
        assert sum(status == 200 for status, _, _ in results) >= 2


def test_the_deadline_of_a_request(toy_home: Path) -> None:
    big = toy_models.encoded(toy_models.noise(4000, 3000), "JPEG", quality=95)
    with serving(toy_home, EKIBEN_TIMEOUT_S="0.05") as server, server.client() as client:
        answer = client.post("/v1/segment?model=areas", content=big)
        assert answer.status_code in (503, 504), answer.text
        assert answer.json()["error"]["code"] in ("deadline_exceeded", "model_loading", "overloaded")
        time.sleep(1)
        late = client.post("/v1/segment?model=areas", content=big)
        assert late.status_code == 504, late.text
        assert late.json()["error"]["code"] == "deadline_exceeded"
        assert client.get("/v1/predictions").json()["total"] == 0
        assert not list((toy_home / "blobs").rglob("*.jpg"))


@pytest.mark.acceptance
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_on_the_port(toy_home: Path, number: signal.Signals) -> None:
    """The terminal is closed, or the launcher is killed: what it started ends too."""
    with serving(toy_home, EKIBEN_TOPOLOGY="split") as server:
        below = [pid for pid in server.pids() if pid != server.process.pid]
        assert len(below) >= 4
        server.process.send_signal(number)
        server.process.wait(40 * pace())
        end = time.monotonic() + 20 * pace()
        while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < end:
            time.sleep(0.1)
        assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []
