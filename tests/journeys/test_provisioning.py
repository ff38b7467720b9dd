"""A model is provided by a running server: fetched, exported in a child, and answered without a restart."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import bentoml
import grpc
import httpx
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from ekiben.client import Client
from ekiben.v1 import ekiben_pb2 as pb
from tests import toy_models
from tests.journeys.rpc.grpc_calls import connected
from tests.serving import Server, serving
from tests.waiting import eventually

RED = toy_models.encoded(toy_models.solid((255, 0, 0), 60, 50))
NAME = "efficientnet_b0"
LIMIT_S = 600.0


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None: ...


@contextmanager
def published(folder: Path) -> Iterator[str]:
    """The address of a server with the files of ``folder``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of NAME as ``mine.pth``."""
    torch = pytest.importorskip("torch")
    from export import recipe
    from export.zoo import ZOO

    folder = tmp_path_factory.mktemp("published")
    torch.save(recipe.random(ZOO[NAME], seed=0).network.state_dict(), folder / "mine.pth")
    return folder


def settings(address: str, weights: Path) -> dict[str, str]:
    digest = hashlib.sha256((weights / "mine.pth").read_bytes()).hexdigest()
    return {
        "EKIBEN_WORKERS": "1",
        "EKIBEN_TRAINING_PYTHON": sys.executable,
        "EKIBEN_WEIGHTS_URL": f"{address}/mirror,{NAME}={address}/mine.pth#sha256={digest}",
        "no_proxy": "127.0.0.1",
    }


def over(client: httpx.Client, job_id: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        return job if job["state"] in ("succeeded", "failed", "cancelled") else None

    ended_job: dict[str, Any] = eventually(ended, f"the end of job {job_id}", LIMIT_S)
    return ended_job


def phases(client: httpx.Client, job_id: str) -> list[str]:
    """Of the events so far."""
    found: list[str] = []
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        for line in stream.iter_lines():
            if '"phase":' in line:
                found.append(line.split('"phase":"')[1].split('"')[0])
            if '"succeeded"' in line or '"failed"' in line:
                break
    return list(dict.fromkeys(found))


def metadata(error: grpc.RpcError) -> dict[str, str]:
    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = ErrorInfo()
    status.details[0].Unpack(info)
    return {"reason": info.reason, **info.metadata}


def test_the_first_request_over_every_protocol(weights: Path, tmp_path: Path) -> None:
    image = tmp_path / "red.png"
    image.write_bytes(RED)
    with (
        published(weights) as address,
        serving(tmp_path / "var", EKIBEN_PROVISION_ON_FIRST_USE="true", **settings(address, weights)) as server,
        server.client() as client,
        connected(server.grpc) as stubs,
    ):
        refused = client.post("/v1/classify", content=RED)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
        job_id = refused.json()["error"]["job_id"]
        with (
            bentoml.SyncHTTPClient(server.url) as bento,
            pytest.raises(bentoml.exceptions.BentoMLException, match=job_id),
        ):
            bento.classify(image=image)
        with pytest.raises(grpc.RpcError) as over_grpc:
            stubs.vision.Classify(pb.ClassifyRequest(image={"data": RED}))
        assert over_grpc.value.code() == grpc.StatusCode.UNAVAILABLE
        assert metadata(over_grpc.value)["job_id"] == job_id
        assert metadata(over_grpc.value)["reason"] == "model_loading"
        assert client.post(f"/v1/models/{NAME}/provision").json()["job_id"] == job_id
        assert [job.id for job in stubs.jobs.ListJobs(pb.ListJobsRequest(kind="provision")).items] == [job_id]
        # Followed to its end by the client, over gRPC.
        with Client(f"grpc://{server.grpc}") as watching:
            job = watching.wait(job_id, timeout_s=LIMIT_S)
        assert job.state == "succeeded", (job.error, server.logs()[-3000:])
        assert phases(client, job_id) == ["environment", "download", "export", "publish"]
        answer = client.post("/v1/classify", content=RED)
        assert answer.json()["model"] == {"name": NAME, "version": 1}
        assert stubs.vision.Classify(pb.ClassifyRequest(image={"data": RED})).model.name == NAME
        model = client.get(f"/v1/models/{NAME}").json()
        assert (model["weights"], model["licence"]) == ("checkpoint (mine.pth)", "unknown")
        (version,) = model["versions"]
        assert version["lineage"]["url"] == f"{address}/mine.pth"
        assert version["lineage"]["job_id"] == job_id
        assert client.post(f"/v1/models/{NAME}/provision").status_code == 409
        with Client(server.url) as http:
            assert http.result(job_id).name == NAME
        assert [path.name for path in (server.home / "downloads").iterdir()] == ["mine.pth"]
        assert list((server.home / "work").glob("*/*")) == []


@pytest.mark.acceptance  # three servers, one after another
def test_what_cannot_be_had_says_why_and_can_be_tried_again(weights: Path, tmp_path: Path) -> None:
    with published(weights) as address:
        given = settings(address, weights)
        with serving(tmp_path / "var", **given) as server, server.client() as client:
            # Not there, then not what was published.
            for content, reason in ((None, "HTTP 404"), (b"tampered with", "what came has the SHA-256")):
                if content is not None:
                    (weights / "mirror").mkdir(exist_ok=True)
                    (weights / "mirror" / "sam_vit_b_01ec64.pth").write_bytes(content)
                job = over(client, client.post("/v1/models/sam_vit_b/provision").json()["job_id"])
                assert (job["state"], job["error"]["code"]) == ("failed", "weights_unavailable")
                message = job["error"]["message"]
                assert f"{address}/mirror/sam_vit_b_01ec64.pth ({reason}" in message
                assert f"put the file by hand at {server.home / 'downloads' / 'sam_vit_b_01ec64.pth'}" in message
                listed = client.get("/v1/models/sam_vit_b").json()
                assert (listed["state"], listed["reason"]) == ("unavailable", message)
                retried = client.post(f"/v1/jobs/{job['id']}/retry")
                assert retried.status_code == 202
                assert over(client, job["id"])["error"]["message"] == message
            assert client.post("/v1/masks", content=RED).status_code == 503
        # Nobody there at all.
        given["EKIBEN_WEIGHTS_URL"] = "http://127.0.0.1:9"
        with serving(tmp_path / "var", **given) as server, server.client() as client:
            job = over(client, client.post(f"/v1/models/{NAME}/provision").json()["job_id"])
            assert "127.0.0.1:9/efficientnet_b0_rwightman-7f5810bc.pth (Connection refused)" in job["error"]["message"]
        given["EKIBEN_TRAINING_PYTHON"] = "/nowhere/python"
        with serving(tmp_path / "var", **given) as server, server.client() as client:
            job = over(client, client.post(f"/v1/models/{NAME}/provision").json()["job_id"])
            assert job["error"]["code"] == "provision_unavailable"
            assert "EKIBEN_TRAINING_PYTHON is /nowhere/python" in job["error"]["message"]


def exporting(server: Server) -> list[int]:
    return [pid for pid in server.pids() if "export.provide" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.acceptance
def test_a_killed_worker_and_a_cancelled_job(weights: Path, tmp_path: Path) -> None:
    with (
        published(weights) as address,
        serving(tmp_path / "var", **settings(address, weights)) as server,
        server.client() as client,
    ):
        job_id = client.post(f"/v1/models/{NAME}/provision").json()["job_id"]
        (child,) = eventually(lambda: exporting(server), "the child", LIMIT_S)
        assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
        eventually(lambda: not Path(f"/proc/{child}").exists(), "the end of the child")
        job_id = client.post(f"/v1/models/{NAME}/provision").json()["job_id"]
        (child,) = eventually(lambda: exporting(server), "the child", LIMIT_S)
        (worker,) = server.job_worker_pids()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{child}").exists(), "the end of the child")
        job = over(client, job_id)
        assert (job["state"], job["attempts"]) == ("succeeded", 2)
        assert [row["version"] for row in client.get(f"/v1/models/{NAME}/versions").json()["items"]] == [1]
        assert client.post("/v1/classify", content=RED).status_code == 200
