"""How a job is submitted: what is refused at once, idempotency keys, webhooks and time limits."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx

from models.engine.session_options import cores
from tests import toy_models
from tests.journeys.jobs.inputs import LARGE, RED, ROUTES, TORN, UNKNOWN
from tests.journeys.jobs.job_client import (
    ASYNC,
    EVERY_TOPOLOGY,
    LONG,
    SECRET,
    batch,
    blobs,
    eventually,
    finished,
    get,
    refusal,
    submit,
)
from tests.serving import Server


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


@EVERY_TOPOLOGY
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


@EVERY_TOPOLOGY
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
