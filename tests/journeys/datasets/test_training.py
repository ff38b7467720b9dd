"""Training over the API: from a folder of images to a model that is asked, whatever dies on the way."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.masks.rle import encode
from tests.conftest import publish
from tests.journeys.datasets.dataset_client import (
    LONG,
    SMALL,
    as_openapi_says,
    bring,
    brought,
    dice,
    disc,
    discs,
    listening,
    png,
    ready,
    segmented,
    train,
    training_pids,
    trains,
    until_epoch,
)
from tests.journeys.jobs.job_client import OVER, accepted, blobs, events, eventually, finished, get, refusal
from tests.journeys.jobs.job_home import Place
from tests.serving import Server, serving

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

MINUTES = 300.0
"""More than any of these takes, on a machine that does something else besides."""


def works(home: Path, job_id: str) -> list[Path]:
    """The folders in which workers are at the job."""
    return list((home / "work").glob(f"*/{job_id}"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, toy_artifacts: dict[str, Path]) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("training") / "var"
    publish(home, "areas", toy_artifacts["areas"])
    with serving(home, EKIBEN_WORKERS="1") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client(timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def dataset_id(server: Server) -> str:
    with server.client(timeout=120) as client:
        return ready(client, discs(range(40)))


@pytest.fixture(scope="module")
def first(server: Server, dataset_id: str) -> dict[str, Any]:
    """A training that succeeded, with what was heard of it; and how long it took."""
    with server.client(timeout=120) as client:
        begun = time.monotonic()
        job_id = train(client, dataset_id, "discs", **SMALL, epochs=25)
        with listening(client, job_id) as heard:
            job = finished(client, job_id, MINUTES)
        print(f"25 epochs of 40 images: {time.monotonic() - begun:.1f} s; longest silence {heard.silence_s:.2f} s")
        return {"id": job_id, "heard": heard, "job": job}


def test_a_model_that_is_asked_without_a_restart(server: Server, client: httpx.Client, first: dict[str, Any]) -> None:
    body = get(client, f"/v1/trainings/{first['id']}")
    openapi = get(client, "/openapi.json")
    as_openapi_says(openapi, "/v1/trainings/{id}", body)
    assert body["model"] == {"name": "discs", "version": 1}
    assert body["metrics"]["dice"] > 0.85 and body["metrics"]["protocol"] == "holdout"
    low, high = body["metrics"]["dice_interval"]
    assert low <= body["metrics"]["dice"] <= high
    assert get(client, f"/v1/jobs/{first['id']}/result")["metrics"] == body["metrics"]
    for number in (1000, 1001):
        image, truth = disc(number)
        found = segmented(client, "discs", image)
        assert found.shape == truth.shape
        assert dice(found, truth) > 0.85
    shown = get(client, "/v1/models/discs")
    assert (shown["task"], shown["version"], shown["classes"]) == ("segment", 1, 2)
    [version] = get(client, "/v1/models/discs/versions")["items"]
    assert version["metrics"]["dice"] == body["metrics"]["dice"]
    assert version["lineage"]["training_id"] == first["id"]
    assert version["lineage"]["dataset"]["id"] == body["dataset_id"]
    assert not works(server.home, first["id"])
    zipped = client.get(f"/v1/jobs/{first['id']}/result", headers={"accept": "application/zip"})
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert "job.json" in archive.namelist()


def test_what_is_told_while_it_runs(client: httpx.Client, first: dict[str, Any]) -> None:
    heard = first["heard"]
    kinds = [event.kind for _, event in heard.events]
    assert kinds[:2] == ["state", "state"] and kinds[-1] == "state"
    assert {"plan", "step", "epoch", "preview"} <= set(kinds)
    assert [event.number for _, event in heard.events] == list(range(1, len(kinds) + 1))
    begun = kinds.index("plan")
    gaps = [b[0] - a[0] for a, b in pairwise(heard.events[begun:])]
    assert max(gaps) <= 2.5, sorted(gaps)[-3:]  # every 2 s; what is looked for every 0.3 s
    [plan] = heard.of("plan")
    assert plan["resumed_epoch"] is None
    epochs = heard.of("epoch")
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 26))
    for epoch in epochs:
        assert epoch["train_loss"] > 0 and 0 <= epoch["dice"] <= 1 and epoch["images_per_s"] > 0
        assert epoch["per_class"][0]["class_index"] == 1
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    for preview in heard.of("preview"):
        answer = client.get(preview["url"])
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
        assert "file" not in preview
    body = get(client, f"/v1/trainings/{first['id']}")
    assert [point["epoch"] for point in body["epochs"]] == list(range(1, 26))
    assert set(body["previews"]) >= {preview["url"] for preview in heard.of("preview")}
    progress = [event.data.get("progress", 0) for _, event in heard.events if event.kind == "progress"]
    assert progress == sorted(progress)


def test_the_same_curves_for_tensorboard(client: httpx.Client, first: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    artifacts = get(client, f"/v1/trainings/{first['id']}")["artifacts"]
    assert set(artifacts) == {"evaluation", "tensorboard"}
    with zipfile.ZipFile(io.BytesIO(client.get(artifacts["tensorboard"]).content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    [found] = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    curves = accumulator.EventAccumulator(str(found)).Reload()
    told = first["heard"].of("epoch")
    for name in ("train_loss", "dice"):
        read = [(scalar.step, scalar.value) for scalar in curves.Scalars(name)]
        assert [step for step, _ in read] == [epoch["epoch"] for epoch in told]
        assert [value for _, value in read] == pytest.approx([epoch[name] for epoch in told], rel=1e-5)
    evaluation = json.loads(client.get(artifacts["evaluation"]).content)
    parts = Counter(sample["part"] for sample in evaluation["samples"])
    [plan] = first["heard"].of("plan")
    assert parts == {part: plan[part] for part in ("train", "validation", "test")} and plan["images"] == 40
    scores = [sample["dice"] for sample in evaluation["samples"] if sample["part"] == "test"]
    metrics = get(client, f"/v1/trainings/{first['id']}")["metrics"]
    assert metrics["dice"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_two_trainings_side_by_side(client: httpx.Client, dataset_id: str, first: dict[str, Any]) -> None:
    requested = {"dataset_id": dataset_id, "name": "discs", **SMALL, "epochs": 2}
    key = {"Idempotency-Key": os.urandom(8).hex()}
    answers = [client.post("/v1/trainings", json=requested, headers=key) for _ in range(2)]
    second = accepted(answers[0])
    assert (accepted(answers[1]), answers[1].headers["idempotency-replayed"]) == (second, "true")
    other = client.post("/v1/trainings", json={**requested, "epochs": 3}, headers=key)
    assert refusal(other, 409)[0] == "idempotency_key_reused"
    finished(client, second, MINUTES)
    body = get(client, f"/v1/trainings/compare?ids={first['id']},{second}")
    as_openapi_says(get(client, "/openapi.json"), "/v1/trainings/compare", body)
    assert (body["same_split"], body["common_images"]) == (True, first["heard"].of("plan")[0]["test"])
    assert [row["id"] for row in body["items"]] == [first["id"], second]
    assert [row["model"]["version"] for row in body["items"]] == [1, 2]
    for row in body["items"]:
        assert row["common_dice"] == pytest.approx(row["metrics"]["dice"], abs=1e-4)
        assert row["training"]["parameters"] > 0
    assert body["items"][0]["common_dice"] > body["items"][1]["common_dice"]
    # The second is what the name means, until somebody chooses.
    assert get(client, "/v1/models/discs")["version"] == 2
    image, truth = disc(1000)
    before = dice(segmented(client, "discs", image, version=1), truth)
    assert client.post("/v1/models/discs/activate", json={"version": 1}).status_code == 200
    assert dice(segmented(client, "discs", image), truth) == before
    for ids, status in ((first["id"], 400), (f"{first['id']},{first['id']}", 400), (f"{first['id']},x", 404)):
        refusal(client.get("/v1/trainings/compare", params={"ids": ids}), status)


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


# ---- the loop ----


def test_five_corrected_masks_change_the_next_answer(client: httpx.Client, first: dict[str, Any]) -> None:
    """The model knows bright discs only; somebody shows it dark ones."""
    made = [disc(2000 + number, lift=-70) for number in range(5)]
    ids = [client.post("/v1/images", content=png(image)).json()["id"] for image, _ in made]
    before = [segmented(client, "discs", image, version=1) for image, _ in made]
    samples = []
    for ident, (_, truth) in zip(ids, made, strict=True):
        rle = encode(truth)
        mask = {"size": [rle.height, rle.width], "counts": rle.counts.tolist()}
        samples.append({"image_id": ident, "mask": mask, "class_name": "foreground"})
    body = brought(client.post("/v1/datasets", json={"name": "corrected", "samples": samples}))
    finished(client, body["job_id"], 120)
    names = [one["name"] for one in get(client, f"/v1/datasets/{body['dataset_id']}")["classes"]]
    options = {**SMALL, "epochs": 20, "start_from": "discs/1", "folds": 3}
    job_id = train(client, body["dataset_id"], "discs", **options)
    finished(client, job_id, MINUTES)
    shown = get(client, f"/v1/trainings/{job_id}")
    assert shown["metrics"]["protocol"] == "cross_validation"
    version = shown["model"]["version"]
    after = [segmented(client, "discs", image, version=version) for image, _ in made]
    earlier = [dice(found, truth) for found, (_, truth) in zip(before, made, strict=True)]
    later = [dice(found, truth) for found, (_, truth) in zip(after, made, strict=True)]
    print(f"classes {names}; Dice of the five before {np.round(earlier, 3)}, after {np.round(later, 3)}")
    assert all(a > b for a, b in zip(later, earlier, strict=True))
    assert np.mean(later) > np.mean(earlier) + 0.2
    assert get(client, "/v1/models/discs/versions")["items"][0]["lineage"]["start_from"] == {
        "name": "discs",
        "version": 1,
    }


def test_what_is_refused_at_once(client: httpx.Client, dataset_id: str) -> None:
    nowhere = "01890000-0000-7000-8000-000000000000"

    def refused(status: int, **given: Any) -> tuple[str, str]:
        body = {"dataset_id": dataset_id, "name": "refused", **given}
        return refusal(client.post("/v1/trainings", json=body), status)

    assert nowhere in refused(404, dataset_id=nowhere)[1]
    assert "epochs" in refused(400, epochs=0)[1]
    assert "tile" in refused(400, tile=100)[1]
    assert "not both" in refused(400, tile=64, image_size=64)[1]
    assert "learningrate" in refused(400, learningrate=1)[1]
    assert "name" in refused(400, name="Not A Name")[1]
    assert "nobody" in refused(404, start_from="nobody")[1]
    waiting = bring(client, discs(range(2)))
    assert refused(409, dataset_id=waiting["dataset_id"])[0] == "dataset_not_ready"
    finished(client, waiting["job_id"], 60, None)
