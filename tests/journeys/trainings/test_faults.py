"""Trainings that are cancelled, diverge, run out of memory, or lose their worker or server."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.conftest import publish
from tests.journeys.datasets.dataset_client import (
    LONG,
    SMALL,
    as_openapi_says,
    dice,
    disc,
    discs,
    ready,
    segmented,
    train,
    training_pids,
    trains,
    until_epoch,
)
from tests.journeys.jobs.job_client import OVER, blobs, events, eventually, finished, get, refusal
from tests.journeys.jobs.job_home import Place
from tests.journeys.trainings.limits import MINUTES, works
from tests.serving import Server, serving

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]


# ---- ends of other kinds ----


def test_cancel_acts_within_three_seconds(server: Server, client: httpx.Client, dataset_id: str) -> None:
    before = blobs(server.home)
    job_id = train(client, dataset_id, "never", **LONG)
    until_epoch(client, job_id, 3)
    running = get(client, f"/v1/trainings/{job_id}")
    as_openapi_says(get(client, "/openapi.json"), "/v1/trainings/{id}", running)
    assert (running["model"], running["metrics"], running["artifacts"]) == (None, None, {})
    # States are told once a second: these epochs are faster.
    assert (running["now"]["phase"] == "load" or running["now"]["epoch"] >= 1) and running["previews"]
    assert job_id in refusal(client.delete(f"/v1/datasets/{dataset_id}"), 409)[1]
    [pid] = training_pids(server)
    requested = time.monotonic()
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    eventually(lambda: not trains(pid), "the training has ended", 10, 0.02)
    took = time.monotonic() - requested
    print(f"cancelled: the process was gone after {took:.2f} s")
    assert took < 3
    eventually(lambda: not works(server.home, job_id), "its folder is gone", 10)
    told = [point["epoch"] for point in get(client, f"/v1/trainings/{job_id}")["epochs"]]
    assert refusal(client.get("/v1/models/never/versions"), 404)

    # Tried again it goes on from its last checkpoint.
    assert client.post(f"/v1/jobs/{job_id}/retry").status_code == 202
    eventually(lambda: len(training_pids(server)) == 1, "it runs again", 60)
    until_epoch(client, job_id, told[-1] + 2)
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    eventually(lambda: not training_pids(server), "the training has ended", 10, 0.02)
    found = events(client, job_id)
    plans = [event.data for event in found if event.kind == "plan"]
    assert plans[0]["resumed_epoch"] is None
    assert told[-1] - 1 <= plans[1]["resumed_epoch"] <= told[-1]
    again = Counter(event.data["epoch"] for event in found if event.kind == "epoch")
    assert [epoch for epoch, times in again.items() if times > 1] in ([], [told[-1]])

    # All of it goes with the job.
    eventually(lambda: client.delete(f"/v1/jobs/{job_id}").status_code == 204, "it is removed", 10)
    eventually(lambda: blobs(server.home) == before, "its files are gone", 10)


def test_a_training_that_diverges(client: httpx.Client, dataset_id: str) -> None:
    job_id = train(client, dataset_id, "diverged", **{**SMALL, "learning_rate": 1, "loss": "ce"}, epochs=200)
    job = finished(client, job_id, MINUTES, "failed")
    assert job["error"]["code"] == "diverged", job["error"]
    assert "learning_rate" in job["error"]["message"]
    assert get(client, f"/v1/trainings/{job_id}")["model"] is None
    assert refusal(client.get(f"/v1/jobs/{job_id}/result"), 409)[0] == "diverged"


def test_a_training_that_runs_out_of_memory(tmp_path: Path, toy_artifacts: dict[str, Path]) -> None:
    """The server goes on answering."""
    home = tmp_path / "var"
    publish(home, "areas", toy_artifacts["areas"])
    limited = serving(home, EKIBEN_WORKERS="1", EKIBEN_TRAINING_MEMORY_MB="1500")
    with limited as server, server.client(timeout=120) as client:
        wanted = ready(client, discs(range(24), 256))
        greedy = {"width": 64, "depth": 5, "tile": 512, "batch_size": 64, "epochs": 1}
        job_id = train(client, wanted, "greedy", **greedy)
        slowest = 0.0
        image = disc(1)[0]
        while get(client, f"/v1/jobs/{job_id}/status")["state"] not in OVER:
            requested = time.monotonic()
            segmented(client, "areas", image)
            slowest = max(slowest, time.monotonic() - requested)
            time.sleep(0.1)
        job = finished(client, job_id, MINUTES, "failed")
        print(f"while it ran out of memory an answer took {slowest:.2f} s at most")
        assert job["error"]["code"] == "out_of_memory", job["error"]
        assert len(server.job_worker_pids()) == 1


# ---- whatever dies ----


def resumed(place: Place, client: httpx.Client, job_id: str, epochs: int) -> list[int]:
    """The epochs that were told of twice, of a training that was interrupted and has succeeded."""
    finished(client, job_id, MINUTES)
    rows = place.rows("SELECT kind, data FROM job_events WHERE job_id = :id ORDER BY number", id=job_id)
    found = [(kind, data if isinstance(data, dict) else json.loads(data)) for kind, data in rows]
    told = Counter(data["epoch"] for kind, data in found if kind == "epoch")
    assert sorted(told) == list(range(1, epochs + 1))
    plans = [data for kind, data in found if kind == "plan"]
    assert len(plans) >= 2 and plans[-1]["resumed_epoch"] is not None
    assert place.count("artifacts WHERE job_id = :id AND kind = 'checkpoint'", id=job_id) == 0
    strangers, missing = place.strangers()
    assert not missing
    print(f"resumed after epoch {plans[-1]['resumed_epoch']}; strangers {sorted(strangers)}")
    image, truth = disc(1000)
    assert dice(segmented(client, "discs", image), truth) > 0.8
    return [epoch for epoch, times in told.items() if times > 1]


EPOCHS = 30
KILLED_AFTER = 8


def test_the_worker_is_killed(place: Place) -> None:
    with place.serving(EKIBEN_WORKERS="1") as server, server.client(timeout=120) as client:
        wanted = ready(client, discs(range(40)))
        job_id = train(client, wanted, "discs", **SMALL, epochs=EPOCHS)
        until_epoch(client, job_id, KILLED_AFTER)
        [child] = training_pids(server)
        [worker] = server.job_worker_pids()
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: not trains(child), "the training ended with its worker", 10, 0.02)
        ended = time.monotonic() - killed
        eventually(lambda: training_pids(server), "another worker goes on", 120)
        again = time.monotonic() - killed
        twice = resumed(place, client, job_id, EPOCHS)
        print(f"the child ended after {ended:.2f} s, another trained after {again:.1f} s; epochs told twice: {twice}")
        assert ended < 3
        assert len(twice) <= 1
        assert get(client, f"/v1/jobs/{job_id}")["attempts"] == 2


def test_a_worker_that_is_thought_dead(tmp_path: Path) -> None:
    """It only slept. Its training goes on beside that of the worker which took over, and can spoil nothing."""
    place = Place(tmp_path / "var")
    with place.serving() as server, place.working() as first, server.client(timeout=120) as client:
        wanted = ready(client, discs(range(40)))
        job_id = train(client, wanted, "discs", **SMALL, epochs=4 * EPOCHS)
        until_epoch(client, job_id, KILLED_AFTER)
        [child] = [int(pid) for pid in children(first.process.pid) if trains(int(pid))]
        first.process.send_signal(signal.SIGSTOP)
        with place.working():
            eventually(lambda: len(works(place.home, job_id)) == 2, "another worker goes on", 120)
            assert trains(child)
            first.process.send_signal(signal.SIGCONT)
            eventually(lambda: not trains(child), "the first training ended", 30, 0.02)
            assert first.process.wait(30) == 3  # buried
            assert len(resumed(place, client, job_id, 4 * EPOCHS)) <= 1
            assert [one["version"] for one in get(client, "/v1/models/discs/versions")["items"]] == [1]
            eventually(lambda: not works(place.home, job_id)[1:], "its folder is gone", 10)
    with place.working() as third:
        eventually(lambda: "worker ready" in third.logs(), "it works", 60)
        assert not works(place.home, job_id)  # what the first one left


def children(pid: int) -> list[str]:
    return [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def test_the_gateway_and_its_worker_are_killed(tmp_path: Path) -> None:
    place = Place(tmp_path / "var")
    with place.serving(EKIBEN_WORKERS="1") as server, server.client(timeout=120) as client:
        wanted = ready(client, discs(range(40)))
        job_id = train(client, wanted, "discs", **SMALL, epochs=EPOCHS)
        until_epoch(client, job_id, KILLED_AFTER)
        [child] = training_pids(server)
        pids = [pid for pid in server.pids() if pid != child]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not trains(child), "the training ended with its worker", 10, 0.02)
        server.process.wait(10)
    with place.serving(EKIBEN_WORKERS="1") as server, server.client(timeout=120) as client:
        assert len(resumed(place, client, job_id, EPOCHS)) <= 1


def test_the_server_is_stopped(tmp_path: Path) -> None:
    place = Place(tmp_path / "var")
    with place.serving(EKIBEN_WORKERS="1") as server, server.client(timeout=120) as client:
        wanted = ready(client, discs(range(40)))
        job_id = train(client, wanted, "discs", **SMALL, epochs=EPOCHS)
        until_epoch(client, job_id, KILLED_AFTER)
        [child] = training_pids(server)
        requested = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: not trains(child), "the training ended", 30, 0.02)
        ended = time.monotonic() - requested
        server.process.wait(30)
        stopped = time.monotonic() - requested
    print(f"after SIGTERM the training ended after {ended:.1f} s, the server after {stopped:.1f} s")
    assert ended < 8
    assert stopped < 20
    assert not works(place.home, job_id)
    assert place.items(job_id)[0][0] == "queued" and place.deaths(job_id) == 0
    with place.serving(EKIBEN_WORKERS="1") as server, server.client(timeout=120) as client:
        assert len(resumed(place, client, job_id, EPOCHS)) <= 1
