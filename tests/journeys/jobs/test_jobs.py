"""An inference request as a job: what it answers, what is refused, cancel, retry, remove."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx

from models.engine.session_options import cores
from tests import toy_models
from tests.journeys.jobs.job_client import (
    ASYNC,
    EMBEDDED_ONLY,
    LONG,
    SECRET,
    batch,
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
from tests.toy_sam import shapes

IMAGE = toy_models.encoded(shapes(320, 240))
LARGE = toy_models.encoded(shapes(900, 700))
RED = toy_models.encoded(toy_models.solid((255, 0, 0)))
UNKNOWN = "01890000-0000-7000-8000-000000000000"
TORN = toy_models.encoded(toy_models.noise(64, 64), "JPEG")[:400]
"""Its first bytes are a JPEG's: only who decodes it finds out."""

POINT = json.dumps([{"points": [[70, 60, 1]]}, {"box": [20, 20, 150, 120]}])
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("/v1/classify", {"model": "colours", "top_k": 2}),
    "segment": ("/v1/segment", {"model": "areas"}),
    "masks": ("/v1/masks", {"model": "sam_toy", "prompts": POINT, "format": "polygons"}),
    "auto_masks": ("/v1/masks/auto", {"model": "sam_toy", "points_per_side": 6}),
    "cutouts": ("/v1/cutouts", {"model": "sam_toy", "prompts": POINT, "padding_px": 3}),
}


def files_of(client: httpx.Client, prediction_id: str) -> list[tuple[str, str]]:
    """Kind and SHA-256 of the files of a prediction, in the order in which they were made."""
    row = get(client, f"/v1/predictions/{prediction_id}")
    return sorted((artifact["kind"], artifact["sha256"]) for artifact in row["artifacts"])


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
    assert answer["image"] == {"id": image_id, "width": 50, "height": 40}
    assert answer["predictions"][0]["class_name"] == "green"
    assert finished(jobs, unstored)["store"] is False
    answer = get(jobs, f"/v1/jobs/{unstored}/result")
    assert (answer["id"], answer["artifacts"], answer["image"]) == (None, None, {"id": None, "width": 50, "height": 40})
    assert plain(answer) == plain(jobs.post("/v1/segment?model=areas&store=false", content=photo).json())


@EMBEDDED_ONLY
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


@EMBEDDED_ONLY
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


@EMBEDDED_ONLY
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


@EMBEDDED_ONLY
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


@EMBEDDED_ONLY
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


def test_what_can_be_refused_at_once_is(toy_server: Server, waiting: httpx.Client) -> None:
    before, total = blobs(toy_server.home), get(waiting, "/v1/jobs")["total"]

    def refused(status: int, query: str = "model=colours", path: str = "classify", **more: Any) -> tuple[str, str]:
        more.setdefault("content", RED)
        return refusal(waiting.post(f"/v1/{path}?{query}", headers=ASYNC, **more), status)

    assert refused(400, content=b"no image")[0] == "bad_image"
    assert refused(400, content=b"")[0] == "bad_request"
    assert refused(415, content=b"<svg xmlns='http://www.w3.org/2000/svg'/>")[0] == "unsupported_image"
    assert refused(404, "model=nobody")[0] == "not_found"
    assert refused(404, "model=colours&version=7")[0] == "not_found"
    assert refused(404, f"model=colours&image_id={UNKNOWN}", content=b"")[0] == "not_found"
    assert "not both" in refused(400, f"model=colours&image_id={UNKNOWN}")[1]
    assert refused(400, "model=areas")[0] == "bad_request"  # it segments
    assert "top_k" in refused(400, "model=colours&top_k=5")[1]  # of four classes
    assert "topk" in refused(400, "model=colours&topk=2")[1]
    for wrong in ("priority=10", "priority=-1", "priority=x", "timeout_s=0", "timeout_s=nan", "timeout_s=1e9"):
        assert wrong.partition("=")[0] in refused(400, f"model=colours&{wrong}")[1]
    assert "EKIBEN_WEBHOOK_SECRET" in refused(400, "model=colours&webhook=http://127.0.0.1:1/x")[1]
    for wrong in ("ftp://x/y", "x", "http://", "http://user:word@x/"):
        assert "webhook" in refused(400, f"model=colours&webhook={wrong}")[1]
    for name in ("priority=5", "timeout_s=5", "webhook=http://x/"):
        said = refusal(waiting.post(f"/v1/classify?model=colours&{name}", content=RED), 400)[1]
        assert "Prefer: respond-async" in said and name.partition("=")[0] in said
    for key in ("", "a" * 256, "two words"):
        answer = waiting.post("/v1/classify?model=colours", content=RED, headers={**ASYNC, "Idempotency-Key": key})
        assert "Idempotency-Key" in refusal(answer, 400)[1]
    assert get(waiting, "/v1/jobs")["total"] == total
    assert blobs(toy_server.home) == before


def test_prefer_is_read_as_the_standard_says(waiting: httpx.Client) -> None:
    """RFC 7240: a list of preferences, their names in any case, with parameters; others are passed over."""
    for value in ("respond-async", "wait=10, Respond-Async", "respond-async; foo=bar", "x, respond-async,y"):
        assert waiting.post("/v1/classify?model=colours", content=RED, headers={"Prefer": value}).status_code == 202
    for value in ("wait=10", "respond-asynchronously", ""):
        answer = waiting.post("/v1/classify?model=colours&store=false", content=RED, headers={"Prefer": value})
        assert answer.status_code == 200
    answer = waiting.post("/v1/classify?model=colours", content=RED, headers=ASYNC)
    assert answer.headers["preference-applied"] == "respond-async"


def test_a_key_gives_one_job(toy_server: Server, waiting: httpx.Client) -> None:
    before = blobs(toy_server.home)
    key = {**ASYNC, "Idempotency-Key": "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d"}

    def request(_: int = 0, content: bytes = RED, query: str = "model=colours&top_k=2") -> httpx.Response:
        return httpx.post(f"{toy_server.url}/v1/classify?{query}", content=content, headers=key, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(request, range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert sorted("idempotency-replayed" in answer.headers for answer in answers) == [False] + [True] * 7
    again = request()
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == answers[0].json()
    # Also when it is over.
    waiting.post(f"/v1/jobs/{again.json()['job_id']}/cancel")
    assert request().json() == again.json()
    for other in (
        request(query="model=colours&top_k=3"),
        request(content=toy_models.encoded(toy_models.solid((254, 0, 0)))),
    ):
        assert refusal(other, 409)[0] == "idempotency_key_reused"
    assert len(blobs(toy_server.home) - before) == 1
    waiting.delete(f"/v1/jobs/{again.json()['job_id']}")
    fresh = request()
    assert "idempotency-replayed" not in fresh.headers
    assert fresh.json() != again.json()


@contextmanager
def listening(*statuses: int) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """An address that answers with one status after the other, then 204; and what it was told."""
    heard: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(statuses[len(heard) - 1] if len(heard) <= len(statuses) else 204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?a=b", heard
    finally:
        server.shutdown()
        server.server_close()


def told(client: httpx.Client, job_id: str, state: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        webhook: dict[str, Any] = get(client, f"/v1/jobs/{job_id}")["webhook"]
        return webhook if webhook["state"] == state else None

    return eventually(look, f"webhook {state}")


@EMBEDDED_ONLY
def test_a_webhook(jobs: httpx.Client) -> None:
    with listening(503) as (url, heard):
        query = {"model": "colours", "webhook": url}
        job_id = submit(jobs, "/v1/classify", params=query, content=RED)
        assert told(jobs, job_id, "delivered") == {"url": url, "state": "delivered", "tries": 2}
        failed = submit(jobs, "/v1/classify", params=query, content=TORN)
        assert told(jobs, failed, "delivered")["tries"] == 1
        assert len(heard) == 3  # refused once, then taken; the other once
        jobs.post(f"/v1/jobs/{failed}/retry")  # it ends once more, which is news
        eventually(lambda: len(heard) == 4, "told again")
    assert heard[0][1] == heard[1][1]
    idents = [headers["webhook-id"] for headers, _ in heard]
    assert idents[0] == idents[1]
    assert len(set(idents)) == 3
    for number, (headers, body) in enumerate(heard):
        ident = headers["webhook-id"]
        assert ident.startswith(job_id if number < 2 else failed)
        assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
        signed = f"{ident}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert headers["content-type"] == "application/json"
    first, last = json.loads(heard[0][1]), json.loads(heard[2][1])
    job = get(jobs, f"/v1/jobs/{job_id}")
    assert (first["type"], last["type"]) == ("job.succeeded", "job.failed")
    assert first["timestamp"] == job["finished_at"]
    assert first["data"] == {
        "id": job_id,
        "kind": "request",
        "operation": "classify",
        "state": "succeeded",
        "counts": {"total": 1, "done": 1, "failed": 0},
        "error": None,
        "url": f"/v1/jobs/{job_id}",
    }
    assert last["data"]["error"]["code"] == "bad_image"


@EMBEDDED_ONLY
def test_a_job_has_its_time(jobs: httpx.Client) -> None:
    """What is begun when the time is up may end; the rest is never begun."""
    images = [(f"{n}.png", LARGE) for n in range(6)]
    job_id = batch(jobs, images, "auto_masks", **{**LONG, "points_per_side": "20", "timeout_s": "0.2"})
    job = finished(jobs, job_id, state="failed")
    assert job["error"]["code"] == "timed_out"
    states = [item["state"] for item in get(jobs, f"/v1/jobs/{job_id}/items")["items"]]
    assert states.count("succeeded") == job["counts"]["done"] <= max(1, cores() // 2)
    assert states.count("cancelled") == 6 - job["counts"]["done"]


def test_openapi_tells_of_jobs(toy_server: Server) -> None:
    document = httpx.get(f"{toy_server.url}/openapi.json").json()
    paths = document["paths"]
    for path in ("", "/{id}", "/{id}/status", "/{id}/items", "/{id}/result", "/{id}/events"):
        assert "200" in paths[f"/v1/jobs{path}"]["get"]["responses"]
    assert "202" in paths["/v1/jobs/{id}/retry"]["post"]["responses"]
    assert "200" in paths["/v1/jobs/{id}/cancel"]["post"]["responses"]
    assert "204" in paths["/v1/jobs/{id}"]["delete"]["responses"]
    content = paths["/v1/batches"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json", "application/zip"}
    for path, _ in ROUTES.values():
        described = paths[path]["post"]
        assert "202" in described["responses"]
        named = {(parameter["in"], parameter["name"]) for parameter in described["parameters"]}
        assert {("header", "Prefer"), ("header", "Idempotency-Key")} <= named
        assert {("query", name) for name in ("priority", "timeout_s", "webhook")} <= named


@EMBEDDED_ONLY
def test_an_answer_that_was_removed_since(jobs: httpx.Client) -> None:
    job_id = submit(jobs, "/v1/classify?model=colours", content=RED)
    finished(jobs, job_id)
    answer = get(jobs, f"/v1/jobs/{job_id}/result")
    assert jobs.delete(f"/v1/predictions/{answer['id']}").status_code == 204
    assert "deleted" in refusal(jobs.get(f"/v1/jobs/{job_id}/result"), 404)[1]
    (item,) = get(jobs, f"/v1/jobs/{job_id}/items")["items"]
    assert (item["state"], item["result"], item["prediction_id"]) == ("succeeded", None, None)
    assert jobs.delete(f"/v1/jobs/{job_id}").status_code == 204
