"""Batches lose nothing: workers, gateways and the database are killed in the middle, every image is answered once."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests import servers, toy_models
from tests.journeys.jobs.job_client import accepted, all_items, batch, eventually, finished
from tests.journeys.jobs.job_home import Place, seconds_each

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]


def same(given: dict[str, Any], direct: dict[str, Any]) -> bool:
    classes = [[best["class_index"] for best in answer["predictions"]] for answer in (given, direct)]
    shares = [[best["confidence"] for best in answer["predictions"]] for answer in (given, direct)]
    return classes[0] == classes[1] and shares[0] == pytest.approx(shares[1], abs=1e-6)


def test_a_thousand_photos_and_a_worker_killed_twice(
    place: Place, home_with_real_models: Path, shared_data: Path
) -> None:
    ((where,),) = Place(home_with_real_models).rows("SELECT location FROM model_versions WHERE name = 'mobilenet_v2'")
    place.publish("mobilenet_v2", home_with_real_models / "blobs" / where)
    photos = {path.name: path.read_bytes() for path in sorted((shared_data / "imagenet_sample").glob("*.jpg"))}
    assert len(photos) == 100
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as entries:
        for copy, name in itertools.product(range(10), photos):
            entries.writestr(f"{copy}/{copy}-{name}", photos[name])
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    moments = [chance.randint(20, 400), chance.randint(450, 850)]
    parameters = json.dumps({"model": "mobilenet_v2", "top_k": 5})
    with place.serving(EKIBEN_WORKERS="2") as server, server.client(timeout=300) as client:
        direct = {}
        for name, data in photos.items():
            answer = client.post("/v1/classify?model=mobilenet_v2&top_k=5&store=false", content=data)
            direct[name] = answer.json()
        begun = time.monotonic()
        job_id = accepted(
            client.post(
                "/v1/batches",
                params={"operation": "classify", "parameters": parameters},
                content=archive.getvalue(),
                headers={"content-type": "application/zip"},
            )
        )
        submitted = time.monotonic()
        killed, victims, spared = [], set[int](), 0
        for moment in moments:
            eventually(lambda m=moment: place.done(job_id) >= m, f"{moment} are done", 300, 0.01)  # type: ignore[misc]
            victim = place.holder(
                job_id, but={spared, *victims}
            )  # the second is the one that came in place of the first
            spared = spared or next(pid for pid in server.job_worker_pids() if pid != victim)
            killed.append((place.done(job_id), len(place.holders(job_id).get(victim, ()))))
            victims.add(victim)
            os.kill(victim, signal.SIGKILL)
        job = finished(client, job_id, 600)
        over = time.monotonic()
        print(
            f"seed {seed}: killed at (done, claimed) {killed}; submitted in {submitted - begun:.1f} s, done in "
            f"{over - submitted:.1f} s; {place.deaths(job_id)} items had a death, strangers {place.strangers()}"
        )
        assert job["counts"] == {"total": 1000, "done": 1000, "failed": 0, "running": 0}
        items = all_items(client, job_id)
    place.check_each_once(job_id, 1000)
    assert place.count("predictions") == 1000
    assert [item["position"] for item in items] == list(range(1000))
    assert len({item["prediction_id"] for item in items}) == 1000
    assert sum(killing for _, killing in killed) > 0
    names = [f"{copy}-{name}" for copy in range(10) for name in sorted(photos)]
    assert sorted(item["filename"] for item in items) == sorted(names)
    off = [item["filename"] for item in items if not same(item["result"], direct[item["filename"].partition("-")[2]])]
    assert off == []


def test_sigterm_in_the_middle(toys_place: Place) -> None:
    """What is claimed is finished or requeued; no death is counted; another worker has the rest."""
    with toys_place.serving() as server, server.client() as client:
        with toys_place.working() as first:
            job_id = seconds_each(client, 10)
            eventually(lambda: toys_place.done(job_id) >= 2, "two are done", 60)
            requested = time.monotonic()
            first.process.send_signal(signal.SIGTERM)
            assert first.process.wait(30) == 0
            took = time.monotonic() - requested
        at_end = toys_place.done(job_id)
        assert toys_place.holders(job_id) == {}
        assert toys_place.count("workers") == 0
        assert toys_place.count("job_items WHERE state = 'queued'") == 10 - at_end
        with toys_place.working():
            job = finished(client, job_id, 120)
        print(f"ended after {took:.1f} s; {at_end} of 10 done by then")
        assert took < 20
        assert job["attempts"] == 1
    assert toys_place.deaths(job_id) == 0
    toys_place.check_each_once(job_id, 10)


def test_the_gateway_is_killed(toys_place: Place) -> None:
    """Its workers end by themselves; the job goes on when somebody starts it again."""
    with toys_place.serving(EKIBEN_WORKERS="1") as server, server.client() as client:
        job_id = seconds_each(client, 8)
        eventually(lambda: toys_place.done(job_id) >= 1, "one is done", 60)
        workers = server.job_worker_pids()
        assert len(workers) == 1
        others = [pid for pid in server.pids() if pid not in workers]
        for pid in others:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the worker ended", 30)
        ended = time.monotonic() - killed
        server.process.wait(10)
    done = toys_place.done(job_id)
    with toys_place.serving(EKIBEN_WORKERS="1") as server, server.client() as client:
        started = time.monotonic()
        finished(client, job_id, 120)
        print(f"the worker ended after {ended:.1f} s, {done} done; over {time.monotonic() - started:.1f} s later")
    assert ended < 20
    assert done < 8
    assert toys_place.deaths(job_id) == 0
    toys_place.check_each_once(job_id, 8)


def test_the_database_restarts(tmp_path: Path, toy_artifacts: dict[str, Path]) -> None:
    with servers.postgres() as database:
        if database.stop is None or database.start is None:
            pytest.skip("the PostgreSQL of EKIBEN_TEST_PG_URL cannot be stopped")
        place = Place(tmp_path / "var", {"EKIBEN_DATABASE_URL": database.url})
        place.publish("areas", toy_artifacts["areas"])
        with place.serving() as server, server.client(timeout=300) as client, place.working(), place.working():
            images = [(f"{n}.png", toy_models.encoded(toy_models.noise(700 + n, 500))) for n in range(80)]
            job_id = batch(client, images, "segment", "areas")
            eventually(lambda: place.done(job_id) >= 10, "ten are done", 60)
            done = place.done(job_id)
            place.database.dispose()
            database.stop()
            time.sleep(5)
            database.start()
            started = time.monotonic()
            eventually(lambda: client.get("/readyz").status_code == 200, "the server is ready again", 30)
            job = finished(client, job_id, 240)
            print(f"stopped at {done} of 80; over {time.monotonic() - started:.1f} s after the start")
            assert done < 80
            assert job["counts"] == {"total": 80, "done": 80, "failed": 0, "running": 0}
        place.check_each_once(job_id, 80)
        place.database.dispose()
