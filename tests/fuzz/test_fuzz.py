"""A short run of the fuzz program, and the program itself: what it makes, and that it sees what is wrong."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ekiben.v1 import ekiben_pb2
from services.rest.app import create_app
from tests.fuzz import home
from tests.fuzz.campaign import Campaign, Violation, call_from
from tests.fuzz.drafts import Call
from tests.fuzz.known import Known
from tests.fuzz.sending import Answer
from tests.fuzz.watching import is_fault
from tests.serving import Server

REQUESTS = 300
SEED = 20


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


def campaign(document: dict[str, Any], folder: Path, seed: int = SEED) -> Campaign:
    """One that makes requests and sends none."""
    server: Any = None
    return Campaign(server, Known({"image": ["an-image"], "job": ["a-job"]}), document, seed, folder)


def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    """Everything but time and memory is judged, which would say more of the machine."""
    with home.asked_server(tmp_path) as server:
        with server.client() as client:
            known = home.fill(client)
            before = home.right_answers(client)
            run = Campaign(server, known, client.get("/openapi.json").json(), SEED, tmp_path)
            processes = {*server.worker_pids(), *server.job_worker_pids()}
            asyncio.run(run.send(0, REQUESTS, minutes=3, concurrency=6))
            assert home.right_answers(client) == before
        assert {*server.worker_pids(), *server.job_worker_pids()} == processes
    report = run.report
    assert [violation.what for violation in report.violations] == []
    assert report.past > 0.4 * report.sent


def test_every_route_and_method_is_asked(document: dict[str, Any], tmp_path: Path) -> None:
    made = campaign(document, tmp_path)
    rng = random.Random(1)
    calls = [made.http.call(number, rng, route) for route in made.http.routes for number in range(10)]
    calls += [made.grpc.call(number, rng, method) for method in made.grpc.methods for number in range(10)]
    asked = Counter(call.route for call in calls)
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    services = ekiben_pb2.DESCRIPTOR.services_by_name.values()
    methods = {f"grpc {service.full_name}/{method.name}" for service in services for method in service.methods}
    assert {*routes, *methods, "grpc inference.GRPCInferenceService/ModelInfer"} <= set(asked)
    assert min(made.http.weights) > 0


def test_a_seed_gives_the_same_requests_again(document: dict[str, Any], tmp_path: Path) -> None:
    first, second, other = (campaign(document, tmp_path, seed) for seed in (1, 1, 2))
    assert all(first.call(number) == second.call(number) for number in range(300))
    assert sum(first.call(number) != other.call(number) for number in range(300)) > 290


def test_a_request_that_was_wrong_is_written_and_read_again(document: dict[str, Any], tmp_path: Path) -> None:
    made = campaign(document, tmp_path)
    calls = [made.call(number) for number in range(200)]
    for call in calls:
        record = json.loads(json.dumps(Violation("x", call, Answer(500)).record(SEED)))
        assert call_from(record) == call


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (Answer(200, body=b"{}"), False),
        (Answer(404, "not_found"), False),
        (Answer(501, "oip"), False),
        (Answer(503, "overloaded"), False),
        (Answer(504, "deadline_exceeded"), False),
        (Answer(500, "internal_error"), True),
        (Answer(502), True),
        (Answer(0, broken="ConnectionResetError"), True),
        (Answer("OK"), False),
        (Answer("UNAVAILABLE", "overloaded"), False),
        (Answer("INTERNAL"), True),
        (Answer("UNKNOWN"), True),
    ],
)
def test_what_is_wrong_with_an_answer_is_seen(
    answer: Answer, wrong: bool, document: dict[str, Any], tmp_path: Path
) -> None:
    made = campaign(document, tmp_path)
    call = Call(3, "GET /v1/jobs", "GET", b"/v1/jobs", (), b"")
    made.judge(call, answer, 0.1)
    assert bool(made.report.violations) is wrong
    assert len(list(tmp_path.glob("violation-*.json"))) == wrong
    assert made.report.by_route["GET /v1/jobs"]["sent"] == 1


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"time":"x","level":"warning","logger":"a","message":"b"}', False),
        ('{"time":"x","level":"error","logger":"a","message":"internal error","exception":"Traceback"}', True),
        ("Traceback (most recent call last):", True),
        ("Task exception was never retrieved", True),
    ],
)
def test_lines_of_the_log_that_are_faults(line: str, fault: bool) -> None:
    assert is_fault(line) is fault


def test_the_probe_measures_a_silent_server(toy_server: Server) -> None:
    """A server that is stopped for a second is silent for a second; one that is not is not."""
    import os
    import signal
    import time

    from tests.fuzz.watching import LivezWatch
    from tests.waiting import eventually

    watch = LivezWatch(toy_server)
    try:
        eventually(lambda: len(watch) > 2, "the first answers")
        since = time.monotonic()
        (pid,) = toy_server.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)
        count = len(watch)
        eventually(lambda: len(watch) > count + 2, "answers after the silence")
        assert watch.longest(since) > 2
        assert watch.over(1.0, since)
    finally:
        watch.stop()
