"""What happens to a job, as server-sent events: numbered without gaps, to be gone on with after any of them."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import httpx

from tests import toy_models
from tests.journeys.jobs.job_client import (
    EVERY_TOPOLOGY,
    LONG,
    Event,
    batch,
    events,
    eventually,
    finished,
    get,
    read_events,
    refusal,
    running,
    submit,
)
from tests.journeys.jobs.test_batches import coloured
from tests.serving import Server, serving
from tests.toy_sam import shapes

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))
LARGE = toy_models.encoded(shapes(900, 700))


def numbers(found: list[Event]) -> list[int]:
    return [event.number for event in found]


@EVERY_TOPOLOGY
def test_the_stream_of_a_batch(sam_server: Server, jobs: httpx.Client) -> None:
    images = [coloured(n) for n in range(40)]
    job_id = batch(jobs, [*images, ("x.png", b"no image")])
    found = events(jobs, job_id)  # the stream is opened at once, and ends with the job
    assert numbers(found) == list(range(1, len(found) + 1))
    states = [event for event in found if event.kind == "state"]
    assert [event.data["state"] for event in states] == ["queued", "running", "succeeded"]
    assert (found[0], found[-1]) == (states[0], states[-1])
    assert found[-1].data == {"state": "succeeded", "total": 41, "done": 41, "failed": 1, "error": None}
    assert {event.kind for event in found} <= {"state", "progress"}
    done = [event.data["done"] for event in found if event.kind == "progress"]
    assert done == sorted(done)
    assert all(
        event.data["progress"] == event.data["done"] / 41 and event.data["total"] == 41
        for event in found
        if event.kind == "progress"
    )
    # From anywhere it goes on exactly there, through any gateway.
    for after in (0, 1, 2, len(found) - 1):
        assert events(jobs, job_id, after) == found[after:]
    assert jobs.get(f"/v1/jobs/{job_id}/events?after=2").text.count("data: ") == len(found) - 2
    for after in (len(found), len(found) + 5, 10**17):
        answer = jobs.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(after)})
        assert (answer.status_code, answer.content) == (204, b"")


def test_a_stream_that_breaks_off_is_gone_on_with(jobs: httpx.Client) -> None:
    """Half of it from one connection, half from the next; what came is neither told twice nor left out."""
    job_id = submit(jobs, "/v1/masks/auto", params=LONG, content=LARGE)
    first: list[Event] = []
    with jobs.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        for event in read_events(answer.iter_lines()):
            first.append(event)
            if event.kind == "progress":
                break
    assert [event.data.get("state") for event in first] == ["queued", "running", None]
    assert 0 < first[-1].data["progress"] < 1
    jobs.post(f"/v1/jobs/{job_id}/cancel")
    rest = events(jobs, job_id, first[-1].number)
    assert rest[-1].data["state"] == "cancelled"
    assert events(jobs, job_id) == [*first, *rest]
    # A retry goes on counting.
    jobs.post(f"/v1/jobs/{job_id}/retry")
    running(jobs, job_id)
    jobs.post(f"/v1/jobs/{job_id}/cancel")
    again = events(jobs, job_id, rest[-1].number)
    assert again[0] == Event(rest[-1].number + 1, "state", {"state": "queued"})
    assert numbers([*first, *rest, *again]) == list(range(1, again[-1].number + 1))
    jobs.delete(f"/v1/jobs/{job_id}")


def test_events_come_as_they_happen(jobs: httpx.Client) -> None:
    """Three who listen hear the same, each within a second."""
    job_id = batch(jobs, [coloured(n) for n in range(3)], timeout_s=600)
    finished(jobs, job_id)
    long_id = submit(jobs, "/v1/masks/auto", params=LONG, content=LARGE)
    running(jobs, long_id)
    heard: list[list[Event]] = [[], [], []]
    ends: list[float] = []

    def listen(own: list[Event]) -> None:
        own += events(jobs, long_id)
        ends.append(time.monotonic())

    threads = [threading.Thread(target=listen, args=(own,)) for own in heard]
    for thread in threads:
        thread.start()
    eventually(lambda: get(jobs, f"/v1/jobs/{long_id}/status")["progress"], "progress is made")
    cancelled = time.monotonic()
    jobs.post(f"/v1/jobs/{long_id}/cancel")
    for thread in threads:
        thread.join(10)
    assert max(ends) - cancelled < 2
    assert heard[0] == heard[1] == heard[2]
    assert heard[0][-1].data["state"] == "cancelled"


def test_what_is_refused(waiting: httpx.Client) -> None:
    job_id = submit(waiting, "/v1/classify?model=colours", content=RED)
    for wrong in ("x", "-1", "1.5", "1e3", "²", "9" * 19):
        answer = waiting.get(f"/v1/jobs/{job_id}/events", headers={b"Last-Event-ID": wrong.encode()})
        assert "Last-Event-ID" in refusal(answer, 400)[1]
    assert waiting.get(f"/v1/jobs/{job_id}/events?after=-1").status_code == 400
    # A job that is removed while somebody listens: the stream ends.
    with waiting.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        stream = read_events(answer.iter_lines())
        assert next(stream).data == {"state": "queued"}
        waiting.post(f"/v1/jobs/{job_id}/cancel")
        assert next(stream).data["state"] == "cancelled"
        assert list(stream) == []


def test_a_stream_does_not_hold_the_stop_up(toy_home: Path) -> None:
    with serving(toy_home) as server, server.client() as client:
        job_id = submit(client, "/v1/classify?model=colours", content=RED)
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            stream = read_events(answer.iter_lines())
            assert next(stream).data == {"state": "queued"}
            requested = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert list(stream) == []  # it ends as it should: no connection is broken off
            assert time.monotonic() - requested < 3
        assert server.process.wait(20) == 0
        assert time.monotonic() - requested < 8
