"""A job is followed through broken connections, waited for, and what came out is read; over HTTP."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ekiben._client.records import JobEvent
from ekiben.client import EkibenError, JobFailed, TimedOut, Unreachable
from tests import toy_models
from tests.ekiben.bodies import JOB, classification, job, refusal
from tests.ekiben.clients import Clock, Script, handled, said

PNG = toy_models.encoded(toy_models.solid((200, 10, 10), 4, 3))


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends with an error, if it is given one."""

    def __init__(self, text: str, error: Exception | None = None) -> None:
        self._text = text
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        yield from self._text.encode().splitlines(keepends=True)
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def told(*events: tuple[int, str, dict[str, Any]], error: Exception | None = None) -> httpx.Response:
    text = "retry: 2000\n\n: still here\n\n"
    text += "".join(f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n" for number, name, data in events)
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Broken(text, error))


HALF: tuple[int, str, dict[str, Any]] = (3, "progress", {"progress": 0.5, "total": 2, "done": 1, "failed": 0})
EVENTS: list[tuple[int, str, dict[str, Any]]] = [
    (1, "state", {"state": "queued"}),
    (2, "state", {"state": "running"}),
    HALF,
    (4, "state", {"state": "succeeded", "total": 2, "done": 2, "failed": 0, "error": None}),
]


def test_a_job_is_followed_through_broken_connections(kind: str, clock: Clock) -> None:
    script = Script(
        told(*EVENTS[:2], error=httpx.ReadError("reset")),
        httpx.ConnectError("restarting"),
        said(refusal("unavailable"), 503, **{"Retry-After": "0"}),
        told(HALF),  # the server stops: the stream ends, the job does not
        said(job()),
        told(EVENTS[3]),
    )

    def handler(request: httpx.Request) -> httpx.Response:
        try:
            return script(request)
        except httpx.TransportError as error:
            error.request = request
            raise

    with handled(kind, handler) as client:
        found = list(client.watch(JOB))
    assert found == [JobEvent(*event) for event in EVENTS]
    streams = [request for request in script.requests if request.url.path.endswith("/events")]
    assert [request.headers["last-event-id"] for request in streams] == ["0", "2", "2", "2", "3"]


def test_a_job_that_has_nothing_more_to_tell(kind: str) -> None:
    script = Script(httpx.Response(204), said(job("failed")), said(refusal("not_found"), 404))
    with handled(kind, script) as client:
        assert list(client.watch(JOB, after=9)) == []
        with pytest.raises(EkibenError) as caught:
            list(client.watch(JOB))
    assert caught.value.code == "not_found"
    assert script.requests[0].headers["last-event-id"] == "9"


PAUSES = [0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 11]
"""Each is twice the last, up to five seconds, until a minute is over."""


def test_a_server_that_stays_away(kind: str, clock: Clock) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone", request=request)

    with handled(kind, handler) as client, pytest.raises(Unreachable):
        list(client.watch(JOB))
    assert clock.pauses == pytest.approx(PAUSES)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [(504, "deadline_exceeded", TimedOut), (503, "unavailable", EkibenError), (503, "stopping", EkibenError)],
)
def test_a_server_that_refuses_at_once_is_not_pressed(
    kind: str, status: int, code: str, error: type[EkibenError], clock: Clock
) -> None:
    """As one behind a proxy whose own server is away: the pauses grow, and an end comes."""
    requested: list[float] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requested.append(clock.now)
        return said(refusal(code), status, **{"Retry-After": "0"})

    with handled(kind, handler) as client, pytest.raises(error) as caught:
        list(client.watch(JOB))
    assert caught.value.code == code
    assert [later - sooner for sooner, later in itertools.pairwise(requested)] == pytest.approx(PAUSES)


def test_waiting(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed = job("failed", error={"code": "bad_image", "message": "torn"})
    counts = {"total": 2, "done": 0, "failed": 0, "running": 2}
    script = Script(
        *(said(job(kind="batch", counts=counts)), told(*EVENTS), said(job("succeeded"))),
        *(said(job()), told((1, "state", {"state": "failed"})), said(failed)),
        said(job("cancelled")),
    )
    with handled(kind, script) as client:
        assert client.wait(JOB, progress=True).state == "succeeded"
        shown = capsys.readouterr()
        assert "2/2" in shown.err and "succeeded" in shown.err and "colours classify" in shown.err
        assert shown.out == ""
        with pytest.raises(JobFailed) as caught:
            client.wait(JOB)
        assert (caught.value.code, caught.value.message, caught.value.job.state) == ("bad_image", "torn", "failed")
        with pytest.raises(JobFailed) as caught:
            client.wait(JOB)
    assert (caught.value.code, caught.value.message) == ("cancelled", f"job {JOB} was cancelled")
    assert capsys.readouterr().err == ""


def test_waiting_for_so_long(kind: str, clock: Clock) -> None:
    """Whether the server talks all the time, or not at all."""

    def silent(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            clock.now += request.extensions["timeout"]["read"]
            raise httpx.ReadTimeout("silence", request=request)
        return said(job())

    def chatty(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            clock.now += 5
            return told((int(request.headers["last-event-id"]) + 1, "progress", {"progress": 0.1}))
        return said(job())

    for handler in (silent, chatty):
        begun = clock.now
        with handled(kind, handler) as client, pytest.raises(TimedOut) as caught:
            client.wait(JOB, timeout_s=100)
        assert caught.value.code == "wait_timeout"
        assert 100 <= clock.now - begun <= 105


def test_results(kind: str, tmp_path: Path) -> None:
    over = job("succeeded")
    item = {"position": 0, "state": "succeeded", "filename": "a.png", "image_id": None, "prediction_id": None}
    item |= {"attempts": 1, "error": None, "result": classification("red"), "started_at": None, "finished_at": None}
    torn = {**item, "position": 1, "state": "failed", "result": None, "error": {"code": "bad_image", "message": "torn"}}
    pages = [
        said({"items": [item] * 200, "total": 201, "page": 1, "limit": 200}),
        said({"items": [torn], "total": 201, "page": 2, "limit": 200}),
    ]
    batch = job("succeeded", kind="batch")
    script = Script(
        *(said(over), said(classification("red"))),
        *(said(batch), *pages),
        said(job()),
        httpx.Response(200, content=b"zip"),
    )
    with handled(kind, script) as client:
        assert client.result(JOB).top.class_name == "red"
        rows = client.result(JOB)
        assert len(rows) == 201
        assert (rows[0].answer.top.class_name, rows[0].filename) == ("red", "a.png")
        assert (rows[200].answer, rows[200].error.code, str(rows[200].error)) == (None, "bad_image", "bad_image: torn")
        with pytest.raises(ValueError, match="running"):
            client.result(JOB)
        assert client.download_result(JOB, tmp_path / "all.zip") == tmp_path / "all.zip"
    assert (tmp_path / "all.zip").read_bytes() == b"zip"
    assert [path.name for path in tmp_path.iterdir()] == ["all.zip"]
    assert [request.url.params["page"] for request in script.requests[3:5]] == ["1", "2"]
