"""Refusals over gRPC are those of HTTP, said as gRPC says them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tritonclient.grpc import service_pb2

from ekiben.v1 import ekiben_pb2 as pb
from tests import toy_models
from tests.journeys.faults.test_bad_input import gif, png_that_says
from tests.journeys.jobs.job_client import get
from tests.journeys.rpc.grpc_calls import Stubs, as_json, connected, failing, image
from tests.serving import Server

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))
UNKNOWN = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
def rpc(toy_server: Server) -> Iterator[Stubs]:
    with connected(toy_server.grpc) as stubs:
        yield stubs


@pytest.fixture
def client(waiting: httpx.Client) -> httpx.Client:
    """Of a server without a worker, on which no job stays."""
    return waiting


def _classify(**more: Any) -> Callable[[Stubs], Any]:
    return lambda rpc: rpc.vision.Classify(pb.ClassifyRequest(**{"image": image(RED), "model": "colours", **more}))


def _segment(**more: Any) -> Callable[[Stubs], Any]:
    return lambda rpc: rpc.vision.Segment(pb.SegmentRequest(**{"image": image(RED), "model": "areas", **more}))


def _post(path: str, content: bytes = RED, **params: Any) -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.post(path, params=params, content=content)


def _get(path: str) -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.get(path)


BAD, GONE = "INVALID_ARGUMENT", "NOT_FOUND"
REFUSALS: dict[str, tuple[Callable[[Stubs], Any], Callable[[httpx.Client], httpx.Response], str, str]] = {
    "no options": (
        lambda rpc: rpc.vision.Classify(pb.ClassifyRequest(image=image(RED))),
        _post("/v1/classify"),
        GONE,
        "not_found",
    ),
    "no model to segment": (
        lambda rpc: rpc.vision.Segment(pb.SegmentRequest(image=image(RED))),
        _post("/v1/segment"),
        GONE,
        "not_found",
    ),
    "no model for masks": (
        lambda rpc: rpc.vision.PromptMasks(pb.PromptMasksRequest(image=image(RED))),
        _post("/v1/masks"),
        GONE,
        "not_found",
    ),
    "no model for automatic masks": (
        lambda rpc: list(rpc.vision.AutoMasks(pb.AutoMasksRequest(image=image(RED)))),
        _post("/v1/masks/auto"),
        GONE,
        "not_found",
    ),
    "another task": (_classify(model="areas"), _post("/v1/classify", model="areas"), BAD, "bad_request"),
    "no version": (_classify(version=7), _post("/v1/classify", model="colours", version=7), GONE, "not_found"),
    "nothing": (_classify(image=None), _post("/v1/classify", b"", model="colours"), BAD, "bad_request"),
    "no bytes": (_classify(image=image(b"")), _post("/v1/classify", b"", model="colours"), BAD, "bad_request"),
    "no image": (
        _classify(image=image(b"hello")),
        _post("/v1/classify", b"hello", model="colours"),
        BAD,
        "bad_image",
    ),
    "no image to segment": (
        _segment(image=image(b"hello")),
        _post("/v1/segment", b"hello", model="areas"),
        BAD,
        "bad_image",
    ),
    "a GIF": (
        _classify(image=image(gif())),
        _post("/v1/classify", gif(), model="colours"),
        BAD,
        "unsupported_image",
    ),
    "too many pixels": (
        _classify(image=image(png_that_says(20_000, 20_000))),
        _post("/v1/classify", png_that_says(20_000, 20_000), model="colours"),
        BAD,
        "too_large",
    ),
    "too many bytes": (
        _classify(image=image(RED + bytes(51 * 1024 * 1024))),
        _post("/v1/classify", RED + bytes(51 * 1024 * 1024), model="colours"),
        BAD,
        "too_large",
    ),
    "an unknown image": (
        _classify(image=pb.Picture(image_id=UNKNOWN)),
        _post("/v1/classify", b"", model="colours", image_id=UNKNOWN),
        GONE,
        "not_found",
    ),
    "an option out of bounds": (
        _classify(top_k=0),
        _post("/v1/classify", model="colours", top_k=0),
        BAD,
        "bad_request",
    ),
    "no such rendering": (
        _segment(render="sketch"),
        _post("/v1/segment", model="areas", render="sketch"),
        BAD,
        "bad_request",
    ),
    "flips of what is no unet": (
        _segment(flips=True),
        _post("/v1/segment", model="areas", flips=True),
        BAD,
        "bad_request",
    ),
    "a model's name": (_classify(model="../x"), _post("/v1/classify", model="../x"), BAD, "bad_request"),
    "an unknown model": (
        lambda rpc: rpc.models.GetModel(pb.GetModelRequest(name="nope")),
        _get("/v1/models/nope"),
        GONE,
        "not_found",
    ),
    "an unknown job": (
        lambda rpc: rpc.jobs.GetJob(pb.GetJobRequest(id=UNKNOWN)),
        _get(f"/v1/jobs/{UNKNOWN}"),
        GONE,
        "not_found",
    ),
    "events of an unknown job": (
        lambda rpc: list(rpc.jobs.WatchJob(pb.WatchJobRequest(id=UNKNOWN))),
        _get(f"/v1/jobs/{UNKNOWN}/events"),
        GONE,
        "not_found",
    ),
    "items of an unknown job": (
        lambda rpc: rpc.jobs.ListJobItems(pb.ListJobItemsRequest(id=UNKNOWN)),
        _get(f"/v1/jobs/{UNKNOWN}/items"),
        GONE,
        "not_found",
    ),
    "an unknown artifact": (
        lambda rpc: list(rpc.artifacts.GetArtifact(pb.GetArtifactRequest(id=UNKNOWN))),
        _get(f"/v1/artifacts/{UNKNOWN}"),
        GONE,
        "not_found",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_those_of_http(rpc: Stubs, client: httpx.Client, case: str) -> None:
    call, request, code, reason = REFUSALS[case]
    refusal, over_http = failing(lambda: call(rpc)), request(client).json()["error"]
    assert (refusal.code, refusal.reason) == (code, reason)
    assert over_http["code"] == reason
    if case != "too many bytes":  # over HTTP the request is too large, and not the image
        # A number of a query is text.
        assert refusal.message.replace("'", "") == over_http["message"].replace("'", "")
    assert refusal.retry_s is None


def test_what_only_grpc_can_get_wrong(rpc: Stubs) -> None:
    for call, words in (
        (lambda: rpc.jobs.SubmitJob(pb.SubmitJobRequest()), "what is asked is missing"),
        (lambda: rpc.jobs.GetJob(pb.GetJobRequest()), "id is missing"),
        (lambda: rpc.models.LoadModel(pb.LoadModelRequest()), "name is missing"),
        (lambda: rpc.jobs.ListJobs(pb.ListJobsRequest(state="odd")), "state"),
        (lambda: rpc.jobs.ListJobs(pb.ListJobsRequest(limit=501)), "limit"),
    ):
        refusal = failing(call)
        assert (refusal.code, refusal.reason) == (BAD, "bad_request")
        assert words in refusal.message


def test_what_is_not_offered(rpc: Stubs, client: httpx.Client) -> None:
    refusal = failing(lambda: rpc.inference.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest()))
    assert (refusal.code, refusal.reason) == ("UNIMPLEMENTED", "unsupported")
    assert client.get("/v2/systemsharedmemory/status").status_code == 501
    for method in ("/ekiben.v1.Vision/Guess", "/nowhere.Service/Method", "/grpc.reflection.v1.ServerReflection/X"):
        assert failing(lambda m=method: rpc.channel.unary_unary(m)(b"")).code == "UNIMPLEMENTED"  # type: ignore[misc]


def test_jobs_that_conflict(rpc: Stubs, client: httpx.Client) -> None:
    """There is no worker: the jobs wait."""
    requested = pb.ClassifyRequest(image=image(RED), model="colours")
    first = rpc.jobs.SubmitJob(pb.SubmitJobRequest(classify=requested, idempotency_key="one"))
    again = rpc.jobs.SubmitJob(pb.SubmitJobRequest(classify=requested, idempotency_key="one"))
    assert (first.replayed, again.replayed, again.job_id) == (False, True, first.job_id)
    over_http = client.post(
        "/v1/classify?model=colours", content=RED, headers={"Prefer": "respond-async", "Idempotency-Key": "one"}
    )
    assert over_http.json() == {"job_id": first.job_id}
    requested.top_k = 1
    refusal = failing(lambda: rpc.jobs.SubmitJob(pb.SubmitJobRequest(classify=requested, idempotency_key="one")))
    theirs = client.post(
        "/v1/classify?model=colours&top_k=1",
        content=RED,
        headers={"Prefer": "respond-async", "Idempotency-Key": "one"},
    ).json()["error"]
    assert (refusal.code, refusal.reason, refusal.message) == (
        "FAILED_PRECONDITION",
        theirs["code"],
        theirs["message"],
    )

    cancelled = rpc.jobs.CancelJob(pb.CancelJobRequest(id=first.job_id))
    assert cancelled.state == "cancelled"
    assert as_json(cancelled) == get(client, f"/v1/jobs/{first.job_id}")
    assert failing(lambda: rpc.jobs.CancelJob(pb.CancelJobRequest(id=first.job_id))).code == "FAILED_PRECONDITION"
    assert [event.kind for event in rpc.jobs.WatchJob(pb.WatchJobRequest(id=first.job_id))][-1] == "state"


def test_the_default_of_a_job_is_that_of_http(rpc: Stubs, client: httpx.Client) -> None:
    requested = pb.ClassifyRequest(image=image(RED), model="colours")
    mine = rpc.jobs.SubmitJob(pb.SubmitJobRequest(classify=requested)).job_id
    theirs = client.post("/v1/classify?model=colours", content=RED, headers={"Prefer": "respond-async"}).json()
    jobs = [get(client, f"/v1/jobs/{id}") for id in (mine, theirs["job_id"])]
    for job in jobs:
        client.post(f"/v1/jobs/{job['id']}/cancel")
        del job["id"], job["created_at"]
    assert jobs[0] == jobs[1]


def test_an_internal_error_says_nothing(toy_server: Server, rpc: Stubs, client: httpx.Client) -> None:
    """Something that nobody thought of: a row that cannot be read."""
    requested = pb.ClassifyRequest(image=image(RED), model="colours")
    id = rpc.jobs.SubmitJob(pb.SubmitJobRequest(classify=requested)).job_id
    rpc.jobs.CancelJob(pb.CancelJobRequest(id=id))
    with contextlib.closing(sqlite3.connect(toy_server.home / "ekiben.db", timeout=20)) as database, database:
        assert database.execute("UPDATE jobs SET parameters = '[\"secret\"]' WHERE id = ?", (id,)).rowcount == 1
    try:
        refusal, over_http = failing(lambda: rpc.jobs.GetJob(pb.GetJobRequest(id=id))), client.get(f"/v1/jobs/{id}")
    finally:
        with contextlib.closing(sqlite3.connect(toy_server.home / "ekiben.db", timeout=20)) as database, database:
            database.execute("UPDATE jobs SET parameters = '{}' WHERE id = ?", (id,))
    assert over_http.status_code == 500
    theirs = over_http.json()["error"]
    assert (refusal.code, refusal.reason, refusal.message) == ("INTERNAL", theirs["code"], theirs["message"])
    assert "secret" not in str(refusal.trailing) and "JSON" not in refusal.message
    assert refusal.request_id is not None and refusal.request_id in toy_server.logs()
    assert refusal.retry_s is None
