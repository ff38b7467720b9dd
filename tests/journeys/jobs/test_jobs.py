"""An inference request as a job: what it answers, what is refused, cancel, retry, remove."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import httpx

from tests import toy_models
from tests.journeys.jobs.inputs import IMAGE, LARGE, RED, ROUTES, TORN, UNKNOWN, files_of
from tests.journeys.jobs.job_client import (
    EVERY_TOPOLOGY,
    LONG,
    blobs,
    eventually,
    finished,
    get,
    plain,
    refusal,
    running,
    submit,
)
from tests.serving import Server


@EVERY_TOPOLOGY
def test_the_answer_is_that_of_the_request(jobs: httpx.Client) -> None:
    direct = {
        name: jobs.post(path, params=params, files={"file": ("s.png", IMAGE)})
        for name, (path, params) in ROUTES.items()
    }
    assert [answer.status_code for answer in direct.values()] == [200] * 5
    requested = {
        name: submit(jobs, path, params=params, files={"file": ("s.png", IMAGE)})
        for name, (path, params) in ROUTES.items()
    }
    for name, job_id in requested.items():
        job = finished(jobs, job_id)
        assert (job["kind"], job["operation"], job["state"], job["attempts"]) == ("request", name, "succeeded", 1)
        assert job["counts"] == {"total": 1, "done": 1, "failed": 0, "running": 0}
        assert (job["progress"], job["error"], job["webhook"], job["priority"]) == (1.0, None, None, 5)
        assert job["created_at"] <= job["started_at"] <= job["finished_at"]
        assert job["parameters"]["version"] == 1
        answer, first = get(jobs, f"/v1/jobs/{job_id}/result"), direct[name].json()
        assert answer.keys() == first.keys()
        assert plain(answer) == plain(first)
        assert answer["timing"].keys() == first["timing"].keys()
        assert answer["id"] != first["id"]

        row = get(jobs, f"/v1/predictions/{answer['id']}")
        assert (row["job_id"], row["task"], row["status"]) == (job_id, name, "succeeded")
        assert row["image"] == answer["image"]
        assert files_of(jobs, answer["id"]) == files_of(jobs, first["id"])
        assert get(jobs, f"/v1/predictions/{first['id']}")["job_id"] is None
        image = get(jobs, f"/v1/images/{answer['image']['id']}")
        assert (image["filename"], image["bytes"]) == ("s.png", len(IMAGE))
        assert jobs.get(image["url"]).content == IMAGE
        for url in (
            (answer.get("artifacts") or {}).values() if name != "cutouts" else [c["url"] for c in answer["cutouts"]]
        ):
            assert jobs.get(url).headers["content-type"] == "image/png"
        (item,) = get(jobs, f"/v1/jobs/{job_id}/items")["items"]
        assert (item["position"], item["state"], item["prediction_id"]) == (0, "succeeded", answer["id"])
        assert item["result"] == answer


def test_a_stored_image_and_nothing_stored(jobs: httpx.Client) -> None:
    photo = toy_models.encoded(toy_models.solid((0, 255, 0), 50, 40))
    image_id = jobs.post("/v1/images", content=photo).json()["id"]
    stored = submit(jobs, f"/v1/classify?model=colours&image_id={image_id}")
    unstored = submit(jobs, "/v1/segment?model=areas&store=false", content=photo)
    finished(jobs, stored)
    answer = get(jobs, f"/v1/jobs/{stored}/result")
    assert answer["image"] == {"id": image_id, "width": 50, "height": 40, "range": [0, 255]}
    assert answer["predictions"][0]["class_name"] == "green"
    assert finished(jobs, unstored)["store"] is False
    answer = get(jobs, f"/v1/jobs/{unstored}/result")
    assert (answer["id"], answer["artifacts"]) == (None, None)
    assert answer["image"] == {"id": None, "width": 50, "height": 40, "range": [0, 255]}
    assert plain(answer) == plain(jobs.post("/v1/segment?model=areas&store=false", content=photo).json())


def test_what_is_not_stored_leaves_no_row(sam_server: Server, jobs: httpx.Client) -> None:
    photo = toy_models.encoded(toy_models.solid((3, 4, 250), 31, 30))
    images, predictions = (get(jobs, f"/v1/{what}")["total"] for what in ("images", "predictions"))
    job_id = submit(jobs, "/v1/classify?model=colours&store=false", content=photo)
    finished(jobs, job_id)
    assert get(jobs, "/v1/images")["total"] == images
    assert get(jobs, "/v1/predictions")["total"] == predictions
    before = blobs(sam_server.home)
    assert jobs.delete(f"/v1/jobs/{job_id}").status_code == 204
    gone = before - blobs(sam_server.home)
    assert len(gone) == 1 and next(iter(gone)).startswith("images/")
    # A stored image of somebody else's outlives a job that only looked at it.
    image = jobs.post("/v1/images", content=photo).json()
    job_id = submit(jobs, f"/v1/classify?model=colours&image_id={image['id']}")
    finished(jobs, job_id)
    assert jobs.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert jobs.get(image["url"]).content == photo


def test_jobs_are_listed_newest_first(jobs: httpx.Client) -> None:
    requested = [submit(jobs, "/v1/classify?model=colours", content=RED) for _ in range(3)]
    for job_id in requested:
        finished(jobs, job_id)
    assert [job["id"] for job in get(jobs, "/v1/jobs?limit=3")["items"]] == requested[::-1]
    assert get(jobs, "/v1/jobs?limit=1&page=2")["items"][0] == get(jobs, f"/v1/jobs/{requested[1]}")
    done = get(jobs, "/v1/jobs", params={"state": "succeeded", "kind": "request"})
    assert [job["id"] for job in done["items"][:3]] == requested[::-1]
    assert {(job["state"], job["kind"]) for job in done["items"]} == {("succeeded", "request")}
    assert not {job["id"] for job in get(jobs, "/v1/jobs?state=cancelled")["items"]} & set(requested)
    assert not {job["id"] for job in get(jobs, "/v1/jobs?kind=batch")["items"]} & set(requested)
    assert jobs.get("/v1/jobs?state=done").status_code == 400
    assert jobs.get("/v1/jobs?kind=train").status_code == 400


@EVERY_TOPOLOGY
def test_a_job_that_fails_says_why_and_can_be_tried_again(jobs: httpx.Client) -> None:
    direct = refusal(jobs.post("/v1/classify?model=colours", content=TORN), 400)
    job_id = submit(jobs, "/v1/classify?model=colours", content=TORN)
    job = finished(jobs, job_id, state="failed")
    assert (job["error"]["code"], job["error"]["message"]) == direct == ("bad_image", direct[1])
    assert job["counts"] == {"total": 1, "done": 1, "failed": 1, "running": 0}
    assert refusal(jobs.get(f"/v1/jobs/{job_id}/result"), 409) == direct
    again = jobs.post(f"/v1/jobs/{job_id}/retry")
    assert (again.status_code, again.headers["location"]) == (202, f"/v1/jobs/{job_id}")
    assert (again.json()["state"], again.json()["error"]) == ("queued", None)
    job = finished(jobs, job_id, state="failed")
    assert job["attempts"] == 2
    # One that succeeded has nothing to try again.
    good = submit(jobs, "/v1/classify?model=colours", content=RED)
    finished(jobs, good)
    assert refusal(jobs.post(f"/v1/jobs/{good}/retry"), 409)[0] == "conflict"
    assert refusal(jobs.post(f"/v1/jobs/{good}/cancel"), 409)[0] == "conflict"


def test_a_running_job(sam_server: Server, jobs: httpx.Client) -> None:
    """It says how far it is, cannot be removed, is cancelled at once, and goes on when it is asked to."""
    job_id = submit(jobs, "/v1/masks/auto", params=LONG, content=LARGE)
    running(jobs, job_id)
    assert refusal(jobs.get(f"/v1/jobs/{job_id}/result"), 409)[0] == "not_finished"
    assert refusal(jobs.delete(f"/v1/jobs/{job_id}"), 409)[0] == "conflict"
    assert refusal(jobs.post(f"/v1/jobs/{job_id}/retry"), 409)[0] == "conflict"
    assert job_id in [job["id"] for job in get(jobs, "/v1/jobs?state=running")["items"]]
    share = eventually(lambda: get(jobs, f"/v1/jobs/{job_id}/status")["progress"], "progress is made")
    assert 0 < share < 1
    cancelled = jobs.post(f"/v1/jobs/{job_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert cancelled.json()["counts"]["running"] == 0
    assert refusal(jobs.get(f"/v1/jobs/{job_id}/result"), 409)[0] == "cancelled"
    assert refusal(jobs.post(f"/v1/jobs/{job_id}/cancel"), 409)[0] == "conflict"
    # The worker is free for others: the one place for heavy work too.
    started = time.monotonic()
    other = submit(jobs, "/v1/masks/auto?model=sam_toy&points_per_side=4", content=IMAGE)
    finished(jobs, other)
    assert time.monotonic() - started < 5
    assert get(jobs, f"/v1/jobs/{job_id}")["state"] == "cancelled"

    assert jobs.post(f"/v1/jobs/{job_id}/retry").status_code == 202
    running(jobs, job_id)
    assert jobs.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    before = blobs(sam_server.home)
    assert jobs.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert len(before - blobs(sam_server.home)) == 1


def test_a_removed_job_is_gone_with_all_that_it_made(sam_server: Server, jobs: httpx.Client) -> None:
    before = blobs(sam_server.home)
    job_id = submit(jobs, "/v1/segment?model=areas", content=IMAGE)
    finished(jobs, job_id)
    answer = get(jobs, f"/v1/jobs/{job_id}/result")
    assert len(blobs(sam_server.home) - before) == 4  # the image, and what was drawn
    assert jobs.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert blobs(sam_server.home) == before
    for path in ("", "/status", "/items", "/result", "/events"):
        assert jobs.get(f"/v1/jobs/{job_id}{path}").status_code == 404
    for path in (f"predictions/{answer['id']}", f"images/{answer['image']['id']}", *answer["artifacts"].values()):
        assert jobs.get(path if path.startswith("/") else f"/v1/{path}").status_code == 404
    with closing(sqlite3.connect(sam_server.home / "ekiben.db")) as database:
        left = database.execute("SELECT count(*) FROM workflow_status WHERE workflow_uuid LIKE ?", [f"{job_id}%"])
        assert left.fetchone() == (0,)


def everything(client: httpx.Client, job_id: str) -> Iterator[httpx.Response]:
    """What can be asked of one job."""
    for path in ("", "/status", "/items", "/result", "/events"):
        yield client.get(f"/v1/jobs/{job_id}{path}")
    for path in ("/cancel", "/retry"):
        yield client.post(f"/v1/jobs/{job_id}{path}")
    yield client.delete(f"/v1/jobs/{job_id}")


def test_unknown_jobs(waiting: httpx.Client) -> None:
    for unknown in (UNKNOWN, "x", "a" * 300):
        codes = {refusal(answer, 404)[0] for answer in everything(waiting, unknown)}
        assert codes == {"not_found"}


def test_nothing_is_seen_of_others(sam_server: Server, jobs: httpx.Client) -> None:
    job_id = submit(jobs, "/v1/classify?model=colours", content=RED, headers={"Idempotency-Key": "whose"})
    finished(jobs, job_id)
    total = get(jobs, "/v1/jobs")["total"]
    with closing(sqlite3.connect(sam_server.home / "ekiben.db", timeout=30)) as database, database:
        database.execute("UPDATE jobs SET owner = 'another' WHERE id = ?", [job_id])
    assert [answer.status_code for answer in everything(jobs, job_id)] == [404] * 8
    assert get(jobs, "/v1/jobs")["total"] == total - 1
    assert job_id not in [job["id"] for job in get(jobs, "/v1/jobs")["items"]]
    # A key is its owner's.
    assert submit(jobs, "/v1/classify?model=colours", content=RED, headers={"Idempotency-Key": "whose"}) != job_id


def test_a_queued_job(toy_server: Server, waiting: httpx.Client) -> None:
    before = blobs(toy_server.home)
    job_id = submit(waiting, "/v1/classify?model=colours&priority=9&timeout_s=60", content=RED)
    job = get(waiting, f"/v1/jobs/{job_id}")
    assert (job["state"], job["attempts"], job["started_at"]) == ("queued", 0, None)
    assert (job["priority"], job["timeout_s"], job["progress"]) == (9, 60, 0)
    assert refusal(waiting.get(f"/v1/jobs/{job_id}/result"), 409)[0] == "not_finished"
    assert waiting.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    (item,) = get(waiting, f"/v1/jobs/{job_id}/items")["items"]
    assert (item["state"], item["attempts"], item["result"]) == ("cancelled", 0, None)
    assert waiting.post(f"/v1/jobs/{job_id}/retry").json()["state"] == "queued"
    assert waiting.delete(f"/v1/jobs/{job_id}").status_code == 409
    waiting.post(f"/v1/jobs/{job_id}/cancel")
    assert len(blobs(toy_server.home) - before) == 1
    assert waiting.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert blobs(toy_server.home) == before


def test_an_answer_that_was_removed_since(jobs: httpx.Client) -> None:
    job_id = submit(jobs, "/v1/classify?model=colours", content=RED)
    finished(jobs, job_id)
    answer = get(jobs, f"/v1/jobs/{job_id}/result")
    assert jobs.delete(f"/v1/predictions/{answer['id']}").status_code == 204
    assert "deleted" in refusal(jobs.get(f"/v1/jobs/{job_id}/result"), 404)[1]
    (item,) = get(jobs, f"/v1/jobs/{job_id}/items")["items"]
    assert (item["state"], item["result"], item["prediction_id"]) == ("succeeded", None, None)
    assert jobs.delete(f"/v1/jobs/{job_id}").status_code == 204
