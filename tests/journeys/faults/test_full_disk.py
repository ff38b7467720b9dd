"""A disk without space: everything that writes is 503, and goes on once there is some again; nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import toy_models
from tests.conftest import publish
from tests.journeys.datasets.dataset_client import discs
from tests.serving import serving
from tests.waiting import eventually

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))
BATCH = {"operation": "classify", "parameters": json.dumps({"model": "colours"})}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is left."""
    path = disk / "fill"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return path


def refused(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.json()["error"]["code"] == "storage_full"
    assert response.headers["retry-after"] == "10"


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_what_writes_waits_and_goes_on(toy_artifacts: dict[str, Path], disk: Path, tmp_path: Path) -> None:
    home = disk / "var"
    for name, artifact in toy_artifacts.items():
        publish(home, name, artifact)
    files = [("files", (f"{number}.png", RED, "image/png")) for number in range(400)]
    with serving(home, EKIBEN_WORKERS="1", EKIBEN_MIN_FREE_MB="5") as server, server.client() as client:
        kept = client.post("/v1/segment?model=areas", content=RED).json()
        assert client.get("/healthz").json()["parts"]["disk"]["ok"]
        batch = client.post("/v1/batches", data=BATCH, files=files)
        assert batch.status_code == 202, batch.text
        brought = client.post("/v1/datasets", data={"name": "a"}, files={"file": ("a.zip", discs(range(10)))}).json()
        taken = fill(disk)

        large = {"archive": ("a.zip", os.urandom(2_000_000))}
        upload = {"file": ("a.zip", discs(range(20)))}
        refused(client.post("/v1/segment?model=areas", content=RED))
        refused(client.post("/v1/images", content=RED))
        refused(client.post("/v1/classify?model=colours", content=RED, headers={"prefer": "respond-async"}))
        refused(client.post("/v1/batches", data=BATCH, files=files[:5]))
        refused(client.post("/v1/batches", data=BATCH, files=large))
        refused(client.post("/v1/datasets", data={"name": "b"}, files=upload))
        refused(
            client.post("/v1/datasets?name=b", content=upload["file"][1], headers={"content-type": "application/zip"})
        )
        assert client.post("/v1/classify?model=colours&store=false", content=RED).status_code == 200
        assert client.get(kept["artifacts"]["mask"]).status_code == 200

        eventually(lambda: client.get("/readyz").status_code == 503)
        health = client.get("/healthz").json()["parts"]
        assert health["store"] == {"ok": False, "detail": "the blob store has no space left"}
        assert health["disk"]["detail"].startswith("0 MB free for the home")
        assert 'ekiben_disk_free_bytes{of="store"} 0.0' in client.get("/metrics").text

        taken.unlink()
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/segment?model=areas", content=RED).status_code == 200
        for job_id in (batch.json()["job_id"], brought["job_id"]):
            eventually(
                lambda job_id=job_id: client.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded", limit_s=240
            )
        assert client.get(f"/v1/jobs/{batch.json()['job_id']}").json()["counts"]["failed"] == 0
        assert client.get(f"/v1/predictions/{kept['id']}").status_code == 200
        assert client.get("/v1/predictions?model=colours&limit=1").json()["total"] == 400
        assert "Traceback" not in "".join(line for line in server.logs().splitlines() if "services" in line)
