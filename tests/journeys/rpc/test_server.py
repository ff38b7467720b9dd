"""The gRPC server as its clients find it: load, deadlines, callers who leave, health."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from ekiben.v1 import ekiben_pb2 as pb
from tests import toy_hostile, toy_models
from tests.conftest import publish
from tests.journeys.jobs.job_client import eventually, get, plain
from tests.journeys.rpc.grpc_calls import (
    SERVICES,
    Refused,
    Stubs,
    as_json,
    certificate_in,
    connected,
    failing,
    image,
    refused,
)
from tests.serving import Server, serving

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))
BLACK = toy_models.encoded(toy_models.solid((0, 0, 0)))
WHITE = toy_models.encoded(toy_models.solid((255, 255, 255)))
SECONDS = 3e6
"""Rounds of a loop: 4 s on a core of 2024."""
NOISE = toy_models.encoded(toy_models.noise(48, 36, seed=5))
LARGE = toy_models.encoded(toy_models.solid((10, 200, 30), 9000, 7000), "JPEG")
"""Small as a file; making its class map takes seconds."""


@pytest.fixture(scope="module")
def server(toy_artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One slot and a short queue, and TLS; besides the toys a unet of two classes, and a graph that takes seconds for a
    white image; no worker."""
    folder = tmp_path_factory.mktemp("grpc-server")
    certificate, key = certificate_in(folder)
    toy_models.unet(folder / "cells", binary=True)
    toy_hostile.artifact(folder / "seconds", toy_hostile.looping(folder / "seconds.onnx", above=0, trips=SECONDS))
    for name, artifact in {**toy_artifacts, "cells": folder / "cells", "seconds": folder / "seconds"}.items():
        publish(folder / "var", name, artifact)
    settings = {"EKIBEN_GRPC_TLS_CERT": str(certificate), "EKIBEN_GRPC_TLS_KEY": str(key)}
    with serving(folder / "var", EKIBEN_THREADS="1", EKIBEN_QUEUE_MB="1", **settings) as server:
        yield server


@contextlib.contextmanager
def trusting(server: Server) -> Iterator[Stubs]:
    """A connection of somebody who trusts this server's certificate."""
    certificate = (server.home.parent / "certificate.pem").read_bytes()
    with connected(server.grpc, grpc.ssl_channel_credentials(certificate)) as stubs:
        yield stubs


@pytest.fixture
def rpc(server: Server) -> Iterator[Stubs]:
    with trusting(server) as stubs:
        yield stubs


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def test_only_who_trusts_the_certificate_is_served(server: Server, rpc: Stubs) -> None:
    requested = pb.ListModelsRequest()
    assert len(rpc.models.ListModels(requested).items) == 4
    for credentials in (None, grpc.ssl_channel_credentials()):
        with connected(server.grpc, credentials) as stranger:
            assert failing(partial(stranger.models.ListModels, requested)).code == "UNAVAILABLE"


# ---- answers of models that other servers have not ----


@pytest.mark.parametrize("more", [{}, {"flips": True}, {"probability": True}, {"render": "probability"}], ids=str)
def test_a_unet(rpc: Stubs, client: httpx.Client, more: dict[str, Any]) -> None:
    given = rpc.vision.Segment(pb.SegmentRequest(image=image(NOISE), model="cells", **more))
    over_http = client.post("/v1/segment", params={"model": "cells", **more}, content=NOISE)
    assert plain(as_json(given)) == plain(over_http.json())
    probability = bool({"probability", "render"} & set(more))
    assert ("probability" in given.artifacts) == probability
    assert given.rendered.startswith(b"\x89PNG") == ("render" in more)
    if probability:
        (chunk,) = rpc.artifacts.GetArtifact(pb.GetArtifactRequest(id=given.artifacts["probability"].split("/")[-1]))
        assert chunk.data == client.get(over_http.json()["artifacts"]["probability"]).content


def test_models_are_loaded_and_unloaded(rpc: Stubs, client: httpx.Client) -> None:
    for _ in range(2):
        given = rpc.models.LoadModel(pb.LoadModelRequest(name="cells"))
        assert (given.name, given.desired, given.state) == ("cells", "loaded", "ready")
        assert given.memory_bytes > 0
        assert get(client, "/v1/models/cells")["desired"] == "loaded"
        given = rpc.models.UnloadModel(pb.UnloadModelRequest(name="cells"))
        assert (given.name, given.desired) == ("cells", "unloaded")
        # What the process has told the others of itself is known for a second.
        eventually(lambda: get(client, "/v1/models/cells")["state"] == "unloaded", "it is told", 5)


# ---- limits ----


def test_overload_is_refused_at_once(server: Server) -> None:
    """More bytes than may wait: UNAVAILABLE with a time to try again; what was taken is answered."""
    photo = toy_models.encoded(toy_models.noise(900, 700), "JPEG", quality=95)

    def request(_: int) -> Refused | None:
        with trusting(server) as stubs:
            try:
                stubs.vision.Segment(pb.SegmentRequest(image=image(photo), model="areas", store=False))
            except grpc.RpcError as error:
                return refused(error)
            return None

    request(0)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(request, range(24)))
    refusals = [one for one in answers if one is not None]
    assert {(one.code, one.reason) for one in refusals} == {("UNAVAILABLE", "overloaded")}
    assert all(one.retry_s is not None and one.retry_s >= 1 for one in refusals)
    assert answers.count(None) >= 2


# ---- deadlines and callers who leave ----


@contextlib.contextmanager
def the_slot_is_taken(server: Server) -> Iterator[None]:
    """The one slot is busy for some seconds."""
    with trusting(server) as stubs, server.client() as client:
        stubs.vision.Classify(pb.ClassifyRequest(image=image(BLACK), model="seconds", store=False, top_k=1))
        long = stubs.vision.Classify.future(
            pb.ClassifyRequest(image=image(WHITE), model="seconds", store=False, top_k=1)
        )
        try:
            eventually(
                lambda: counters(client, "seconds")["waiting"] == 0 and in_progress(client) >= 2, "it is begun", 5
            )
            time.sleep(0.1)
            yield
            assert not long.done(), "the slot was free too early for this test"
        finally:
            long.result(60)


def counters(client: httpx.Client, model: str) -> dict[str, int]:
    found: dict[str, int] = get(client, f"/v1/models/{model}")["counters"]
    return found


def in_progress(client: httpx.Client) -> int:
    """This question is one of them."""
    lines = client.get("/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("ekiben_requests_in_progress"))


def predictions(client: httpx.Client) -> int:
    return int(get(client, "/v1/predictions?limit=1")["total"])


def test_deadlines_and_callers_who_leave_reach_the_queue(server: Server, rpc: Stubs, client: httpx.Client) -> None:
    """Neither is computed later, nor recorded."""
    requested = {"image": image(NOISE)}
    classify = pb.ClassifyRequest(**requested, model="colours")
    segment = pb.SegmentRequest(**requested, model="cells")
    rpc.vision.Classify(classify)
    rpc.vision.Segment(segment)
    before = [counters(client, name)["batches"] for name in ("colours", "cells")], predictions(client)
    with the_slot_is_taken(server):
        started = time.monotonic()
        assert failing(lambda: rpc.vision.Classify(classify, timeout=0.3)).code == "DEADLINE_EXCEEDED"
        assert time.monotonic() - started < 1.0
        left = rpc.vision.Segment.future(segment)
        eventually(lambda: counters(client, "cells")["waiting"] == 1, "it waits", 2)
        left.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            left.result()
        eventually(lambda: in_progress(client) == 2, "the server lets both go", 2)  # the long one, and this question
    eventually(lambda: sum(counters(client, name)["waiting"] for name in ("colours", "cells")) == 0, "none waits", 5)
    assert ([counters(client, name)["batches"] for name in ("colours", "cells")], predictions(client)) == before
    assert rpc.vision.Classify(classify).HasField("id")
    text = client.get("/metrics").text
    # Whose clock rings first says how the late one ended.
    ends = [f'route="/ekiben.v1.Vision/Classify",status="{end}"' for end in ("CANCELLED", "DEADLINE_EXCEEDED")]
    assert any(f'ekiben_requests_total{{method="gRPC",{end}}}' in text for end in ends)
    assert 'ekiben_requests_total{method="gRPC",route="/ekiben.v1.Vision/Segment",status="CANCELLED"}' in text


def test_the_deadline_of_the_server_has_its_words(rpc: Stubs) -> None:
    """Of the Open Inference Protocol's timeout: the client itself would wait."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    request = service_pb2.ModelInferRequest(
        model_name="areas",
        inputs=[tensor],
        raw_input_contents=[len(LARGE).to_bytes(4, "little") + LARGE],
        parameters={"timeout": service_pb2.InferParameter(int64_param=50_000)},
    )
    refusal = failing(lambda: rpc.inference.ModelInfer(request))
    assert (refusal.code, refusal.reason) == ("DEADLINE_EXCEEDED", "deadline_exceeded")
    assert refusal.retry_s == 1


def test_who_leaves_a_stream_is_let_go(rpc: Stubs, client: httpx.Client) -> None:
    requested = pb.ClassifyRequest(image=image(RED), model="colours")
    id = rpc.jobs.SubmitJob(pb.SubmitJobRequest(classify=requested)).job_id
    watching = rpc.jobs.WatchJob(pb.WatchJobRequest(id=id))
    assert next(watching).kind == "state"
    assert in_progress(client) == 2
    watching.cancel()
    eventually(lambda: in_progress(client) == 1, "the stream is over", 3)
    with pytest.raises(grpc.RpcError) as error:
        list(rpc.jobs.WatchJob(pb.WatchJobRequest(id=id), timeout=0.5))
    assert refused(error.value).code == "DEADLINE_EXCEEDED"
    rpc.jobs.CancelJob(pb.CancelJobRequest(id=id))


# ---- health and reflection ----


def test_health(server: Server, rpc: Stubs, client: httpx.Client) -> None:
    """SERVING; not while the store is away."""
    serving_now = health_pb2.HealthCheckResponse.SERVING

    classify = pb.ClassifyRequest(image=image(RED), model="colours")

    def check(name: str = "") -> Any:
        return rpc.health.Check(health_pb2.HealthCheckRequest(service=name)).status

    for name in ("", *(SERVICES - {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})):
        assert check(name) == serving_now, name
    assert failing(lambda: check("ekiben.v1.Nothing")).code == "NOT_FOUND"
    unknown = rpc.health.Watch(health_pb2.HealthCheckRequest(service="ekiben.v1.Nothing"))
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()

    seen: list[Any] = []
    watch = rpc.health.Watch(health_pb2.HealthCheckRequest(service="ekiben.v1.Vision"))

    def read() -> None:
        with contextlib.suppress(grpc.RpcError):
            seen.extend(one.status for one in watch)

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: seen == [serving_now], "the first verdict", 5)
    blobs = server.home / "blobs"
    blobs.rename(server.home / "away")
    blobs.symlink_to("/proc")  # where nobody may write, root neither
    try:
        eventually(lambda: check() == health_pb2.HealthCheckResponse.NOT_SERVING, "the store is missed", 5)
        assert client.get("/readyz").status_code == 503
        refusal = failing(lambda: rpc.vision.Classify(classify))
        over_http = client.post("/v1/classify?model=colours", content=RED)
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", over_http.json()["error"]["code"])
        assert refusal.retry_s == int(over_http.headers["retry-after"])
        eventually(lambda: len(seen) == 2, "the watcher is told", 5)
    finally:
        blobs.unlink()
        (server.home / "away").rename(blobs)
    eventually(lambda: len(seen) == 3, "the watcher is told again", 5)
    assert seen == [serving_now, health_pb2.HealthCheckResponse.NOT_SERVING, serving_now]
    watch.cancel()
    reader.join(5)
    assert not reader.is_alive()
    assert rpc.vision.Classify(classify).HasField("id")
