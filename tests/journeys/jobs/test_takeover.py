"""Workers that die, hang or are told to drop a job: who takes over, how soon, and what is given up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests import toy_models
from tests.journeys.jobs.job_client import LONG, all_items, batch, eventually, finished, get, refusal, running, submit
from tests.journeys.jobs.job_home import SECONDS, Place, seconds_each
from tests.pace import pace
from tests.toy_sam import shapes

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

LARGE = toy_models.encoded(shapes(900, 700))
TAKEOVER_S = 15.0


def claims(place: Place, job_id: str) -> tuple[int, int]:
    """Of a job of one item that a worker has claimed: how often it was claimed, and the worker's process id."""
    ((state, pid, attempts, _),) = place.items(job_id)
    return (attempts, pid) if state == "running" else (0, 0)


def next_claim(place: Place, job_id: str, attempts: int) -> int:
    """The process id of the worker that claims the only item for the ``attempts``th time, once it does."""
    return eventually(
        lambda: pid if (found := claims(place, job_id))[0] == attempts and (pid := found[1]) else 0,
        f"claimed {attempts} times",
        60,
        0.02,
    )


@pytest.mark.parametrize("who", ["another worker", "the one that the supervisor starts"])
def test_how_soon_work_is_taken_over(toys_place: Place, who: str) -> None:
    supervised = "1" if who != "another worker" else "0"
    with toys_place.serving(EKIBEN_WORKERS=supervised) as server, server.client() as client:
        if supervised == "1":
            took = _kill_and_wait(toys_place, submit(client, "/v1/masks/auto", params=LONG, content=LARGE))
        else:
            with toys_place.working(), toys_place.working():
                eventually(lambda: toys_place.count("workers") == 2, "both are there")
                took = _kill_and_wait(toys_place, submit(client, "/v1/masks/auto", params=LONG, content=LARGE))
        print(f"taken over after {took:.1f} s")
        (job,) = get(client, "/v1/jobs")["items"]
        assert (job["state"], job["attempts"]) == ("running", 2)
        assert client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    assert took <= TAKEOVER_S * pace()


def _kill_and_wait(place: Place, job_id: str) -> float:
    time.sleep(1)
    os.kill(next_claim(place, job_id, 1), signal.SIGKILL)
    killed = time.monotonic()
    next_claim(place, job_id, 2)
    return time.monotonic() - killed


def test_a_job_that_kills_its_worker_is_given_up(toys_place: Place) -> None:
    with toys_place.serving(EKIBEN_WORKERS="1") as server, server.client() as client:
        job_id = submit(client, "/v1/masks/auto", params=LONG, content=LARGE)
        started = time.monotonic()
        for attempt in (1, 2, 3):
            pid = next_claim(toys_place, job_id, attempt)
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
        job = finished(client, job_id, 60, "failed")
        print(f"given up after {time.monotonic() - started:.1f} s: {job['error']}, {job['attempts']} attempts")
        assert job["error"]["code"] == "worker_died"
        assert job["attempts"] == 3
        assert refusal(client.get(f"/v1/jobs/{job_id}/result"), 409) == ("worker_died", job["error"]["message"])
        (item,) = all_items(client, job_id)
        assert (item["state"], item["attempts"], item["error"]["code"]) == ("failed", 3, "worker_died")
        assert toys_place.count("predictions") == 0
        # Others are worked on as ever, and this one too when somebody asks again.
        finished(client, submit(client, "/v1/classify?model=colours", content=LARGE), 60)
        assert client.post(f"/v1/jobs/{job_id}/retry").status_code == 202
        running(client, job_id)
        assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200


@pytest.mark.parametrize("place_of_killer", [0, 2])
def test_one_item_that_kills_does_not_take_the_others_along(toys_place: Place, place_of_killer: int) -> None:
    """The one that has claimed the large image for five seconds, without anything else ending meanwhile, is killed."""
    images = [(f"{n}.png", toy_models.encoded(shapes(64 + n, 48))) for n in range(6)]
    images[place_of_killer] = ("killer.png", toy_models.encoded(shapes(3000, 2000)))
    with toys_place.serving(EKIBEN_WORKERS="1") as server, server.client() as client:
        job_id = batch(client, images, "auto_masks", **{**SECONDS, "points_per_side": "40"})
        seen: tuple[int, int, int] = (0, 0, 0)
        since, kills = time.monotonic(), 0
        while get(client, f"/v1/jobs/{job_id}/status")["state"] in ("queued", "running"):
            state, pid, attempts, _ = toys_place.items(job_id)[place_of_killer]
            now = (pid, attempts, toys_place.done(job_id))
            if state != "running" or now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > 5:
                os.kill(pid, signal.SIGKILL)
                kills += 1
                eventually(lambda p=pid: p not in toys_place.holders(job_id), "it is buried")  # type: ignore[misc]
            assert kills < 6
            time.sleep(0.05)
        job = finished(client, job_id, 10, None)
        items = all_items(client, job_id)
        print(f"{kills} kills, {job['error']}: {[(item['state'], item['attempts']) for item in items]}")
        states = [item["state"] for item in items]
        assert states == ["failed" if n == place_of_killer else "succeeded" for n in range(6)]
        assert items[place_of_killer]["error"]["code"] == "worker_died"
        assert (kills, job["state"]) == (3, "succeeded")


def test_a_worker_that_hangs(toys_place: Place) -> None:
    """It is thought dead, its work is taken over; when it wakes up it ends, and nothing is counted twice."""
    with toys_place.serving() as server, server.client() as client, toys_place.working() as first:
        job_id = seconds_each(client, 12)
        eventually(lambda: toys_place.done(job_id) >= 1, "one is done", 60)
        eventually(lambda: toys_place.holders(job_id).get(first.process.pid), "it has items", 60)
        with toys_place.working():
            eventually(lambda: toys_place.count("workers") == 2, "the second is there")
            first.process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            held = toys_place.holders(job_id)[first.process.pid]
            eventually(lambda: first.process.pid not in toys_place.holders(job_id), "taken over", 30)
            took = time.monotonic() - stopped
            time.sleep(max(0.0, 15 - took))
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(10 * pace()) == 3
            finished(client, job_id, 120)
        print(f"{len(held)} items were taken from it after {took:.1f} s; it ended: {first.logs()[-200:]!r}")
    assert took <= TAKEOVER_S * pace()
    assert toys_place.deaths(job_id) == len(held)
    toys_place.check_each_once(job_id, 12)


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("after_s", [1.0, 8.0], ids=["while it encodes", "among the points"])
def test_a_cancelled_job_costs_nothing_more(
    place: Place, shared_data: Path, vit_b_artifact: Path, after_s: float
) -> None:
    """Automatic masks with the published architecture: within three seconds the worker does nothing of it any more."""
    place.publish("sam_vit_b", vit_b_artifact)
    photo = (shared_data / "photos" / "truck.jpg").read_bytes()
    query = {"model": "sam_vit_b", "preset": "dense"}
    with place.serving() as server, server.client() as client, place.working() as worker:
        warm = submit(client, "/v1/masks/auto", params={**query, "points_per_side": 1}, content=photo)
        finished(client, warm, 120)
        other = (shared_data / "photos" / "dogs.jpg").read_bytes()
        job_id = submit(client, "/v1/masks/auto", params=query, content=other)
        running(client, job_id)
        time.sleep(after_s)
        at_cancel = get(client, f"/v1/jobs/{job_id}/status")
        used = cpu_s(worker.process.pid)
        client.post(f"/v1/jobs/{job_id}/cancel")
        time.sleep(3)
        before = cpu_s(worker.process.pid)
        time.sleep(4)
        idle = cpu_s(worker.process.pid) - before
        print(
            f"cancelled at {at_cancel}: {before - used:.2f} s of processor in the 3 s after, {idle:.2f} s in the next 4"
        )
        assert at_cancel["state"] == "running"
        assert idle < 0.4  # beats, and looks into the queue
        # It is there for others.
        finished(client, submit(client, "/v1/masks/auto", params={**query, "points_per_side": 2}, content=photo), 120)
