"""A stop while requests are in flight loses none of them, over whichever protocol they came."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from ekiben.v1 import ekiben_pb2 as pb
from tests import toy_models
from tests.journeys.jobs.job_client import eventually
from tests.journeys.rpc.grpc_calls import connected, image
from tests.serving import TOPOLOGIES, Server, first_in, serving, wait_ready
from tests.toy_sam import shapes

SLOW = toy_models.encoded(shapes(2600, 1800))
"""Stored with its images it takes a slot some tenths of a second."""
RED = toy_models.encoded(toy_models.solid((255, 0, 0)))

ANSWERED, REFUSED = "answered", "refused"
Ask = Callable[[], str]


def over_ekiben(server: Server, stack: contextlib.ExitStack) -> Ask:
    stubs = stack.enter_context(connected(server.grpc))
    request = pb.SegmentRequest(image=image(SLOW), model="areas")
    return lambda: answered(lambda: stubs.vision.Segment(request).HasField("id"))


def over_inference(server: Server, stack: contextlib.ExitStack) -> Ask:
    stubs = stack.enter_context(connected(server.grpc))
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    raw = len(SLOW).to_bytes(4, "little") + SLOW
    request = service_pb2.ModelInferRequest(model_name="areas", inputs=[tensor], raw_input_contents=[raw])
    return lambda: answered(lambda: len(stubs.inference.ModelInfer(request).raw_output_contents[0]) == 2600 * 1800)


def over_http(server: Server, stack: contextlib.ExitStack) -> Ask:
    client = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))

    def request() -> str:
        try:
            answer = client.post("/v1/segment?model=areas", content=SLOW)
        except httpx.TransportError:
            return REFUSED
        return ANSWERED if answer.status_code == 200 and answer.json()["id"] else answer.text

    return request


def answered(call: Callable[[], bool]) -> str:
    try:
        return ANSWERED if call() else "a wrong answer"
    except grpc.RpcError as error:
        return REFUSED if error.code() == grpc.StatusCode.UNAVAILABLE else f"{error.code()} {error.details()}"


WAYS = (over_ekiben, over_inference, over_http)


def late(server: Server) -> str:
    with connected(server.grpc) as stubs:
        return answered(lambda: bool(stubs.models.ListModels(pb.ListModelsRequest()).items))


def in_progress(client: httpx.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("ekiben_requests_in_progress"))


def recorded(home: Path) -> int:
    with contextlib.closing(sqlite3.connect(home / "ekiben.db")) as database:
        return int(database.execute("SELECT count(*) FROM predictions").fetchone()[0])


@pytest.mark.parametrize("topology", first_in("embedded"))
def test_a_stop_loses_nothing(toy_home: Path, topology: str) -> None:
    """What was in flight is answered; what comes later is refused and not begun: as many answers as rows.

    Some ask once, before the stop; some again and again, until they are refused.
    """
    results: Counter[str] = Counter()
    with serving(toy_home, EKIBEN_THREADS="1", **TOPOLOGIES[topology]) as server, contextlib.ExitStack() as stack:
        client = stack.enter_context(server.client())
        assert over_http(server, stack)() == ANSWERED  # the model is loaded
        results[ANSWERED] += 1
        health = stack.enter_context(connected(server.grpc)).health.Watch(health_pb2.HealthCheckRequest())
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        once = [way(server, stack) for way in WAYS for _ in range(4)]
        steady = [way(server, stack) for way in WAYS for _ in range(2)]
        pool = stack.enter_context(ThreadPoolExecutor(len(once) + len(steady)))

        def go_on(request: Ask) -> Counter[str]:
            told: Counter[str] = Counter()
            end = time.monotonic() + 60
            while set(told) <= {ANSWERED} and time.monotonic() < end:
                told[request()] += 1
            return told

        requested = [pool.submit(request) for request in once]
        # These, of which some may be answered by now (looked at first), the health watcher and the question itself.
        eventually(
            lambda: sum(one.done() for one in requested) + in_progress(client) >= len(once) + 2,
            "all are received",
            20,
            every_s=0.01,
        )
        going = [pool.submit(go_on, request) for request in steady]
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING, "it is told", 10)
        # Of two gateways the other may be told a little later.
        eventually(lambda: late(server) == REFUSED, "new calls are refused", 5)
        assert not all(one.done() for one in requested), "the stop came too late for this test"
        assert [one.result(60) for one in requested] == [ANSWERED] * len(once)
        for one in going:
            told = one.result(60)
            assert told[REFUSED] == 1 and set(told) <= {ANSWERED, REFUSED}, told
            results += told
        results[ANSWERED] += len(once)
        assert server.process.wait(40) == 0
        assert list(health) == []  # it ended, and with no error
        assert "Traceback" not in server.logs()
    assert recorded(toy_home) == results[ANSWERED]


@pytest.mark.acceptance
def test_two_gateways_share_the_port(toy_home: Path) -> None:
    """Both answer; when one is killed the other does, and a new one comes in its place."""
    with serving(toy_home, **TOPOLOGIES["two gateways"]) as server:
        eventually(lambda: len(server.worker_pids()) == 2, "both have started", 20)
        wait_ready(server)
        eventually(lambda: spread(server), "both answer", 20)
        killed = server.worker_pids()[0]
        stop = threading.Event()
        told: Counter[str] = Counter()

        def ask_on() -> None:
            while not stop.is_set():
                told[one_more(server)] += 1

        terms = threading.Thread(target=ask_on)
        terms.start()
        try:
            os.kill(killed, signal.SIGKILL)
            eventually(lambda: killed not in server.pids(), "it is dead", 10)
            died = told[ANSWERED]
            eventually(lambda: told[ANSWERED] > died + 5, "the other answers", 20)
            eventually(lambda: len(server.worker_pids()) == 2 and spread(server), "a new one answers", 40)
        finally:
            stop.set()
            terms.join(20)
        assert killed not in server.worker_pids()
        # One call at most was with the one that was killed.
        assert set(told) <= {ANSWERED, REFUSED} and told[REFUSED] <= 1, told


def one_more(server: Server) -> str:
    with connected(server.grpc) as stubs:
        requested = pb.ClassifyRequest(image=image(RED), model="colours", store=False)
        return answered(lambda: bool(stubs.vision.Classify(requested).predictions))


def spread(server: Server) -> bool:
    """Whether each of the two processes has some of sixteen connections."""
    with contextlib.ExitStack() as stack:
        for one in [stack.enter_context(connected(server.grpc)) for _ in range(16)]:
            one.models.ListModels(pb.ListModelsRequest())
        held = [connections(pid, int(server.grpc.rpartition(":")[2])) for pid in server.worker_pids()]
    return len(held) == 2 and min(held) > 0


def connections(pid: int, port: int) -> int:
    """How many a process has taken on a port, as Linux tells (proc(5))."""
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()]
    taken = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    held = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held += os.readlink(descriptor) in taken
    return held
