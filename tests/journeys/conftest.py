"""What journeys share: servers with the toy Segment Anything and a worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.artifact import Weights
from tests import servers, toy_sam
from tests.conftest import publish
from tests.journeys.jobs.job_client import SECRET
from tests.journeys.jobs.job_home import Place
from tests.serving import SOME_TOPOLOGIES, TOPOLOGIES, Server, serving


@pytest.fixture(scope="session")
def sam_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam") / "sam_toy"
    toy_sam.sam(folder)
    return folder


@pytest.fixture
def sam_home(sam_artifact: Path, tmp_path: Path) -> Path:
    """A fresh home with ``sam_toy``."""
    home = tmp_path / "var"
    publish(home, "sam_toy", sam_artifact)
    return home


@pytest.fixture(scope="package", params=["embedded"])
def sam_server(
    request: pytest.FixtureRequest,
    sam_artifact: Path,
    toy_artifacts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The three toys and a worker, embedded unless the test is marked EVERY_TOPOLOGY: one test of each behaviour that
    crosses a process boundary is. The embeddings it holds are shared: use images of your own where that matters.

    It ends with the last journey, not with the last test: an idle server takes processor time from what is left.
    """
    home = tmp_path_factory.mktemp("sam-server") / "var"
    for name, artifact in {**toy_artifacts, "sam_toy": sam_artifact}.items():
        publish(home, name, artifact)
    hooks = {"EKIBEN_WEBHOOK_SECRET": SECRET, "EKIBEN_PRIVATE_URLS": "true"}  # the tests listen on this machine
    with serving(home, EKIBEN_WORKERS="1", **hooks, **TOPOLOGIES[request.param]) as server:
        yield server


@pytest.fixture(scope="package", params=SOME_TOPOLOGIES)
def topology_server(
    request: pytest.FixtureRequest, home_with_real_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with the real models in every topology, for tests that leave no state that others would mind."""
    home = tmp_path_factory.mktemp("topology") / "var"
    shutil.copytree(home_with_real_models, home)
    with serving(home, **TOPOLOGIES[request.param]) as server:
        yield server


@pytest.fixture
def client(sam_server: Server) -> Iterator[httpx.Client]:
    """One connection, so that with several gateways the same one answers all along."""
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(base_url=sam_server.url, timeout=60.0, limits=limits) as client:
        yield client


@pytest.fixture
def jobs(sam_server: Server) -> Iterator[httpx.Client]:
    """Connections that are not kept: with several gateways any of them may answer."""
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=sam_server.url, timeout=60.0, limits=limits) as client:
        yield client


@pytest.fixture
def waiting(toy_server: Server) -> Iterator[httpx.Client]:
    """A server without a worker: jobs wait. They are removed at the end of the test."""
    with toy_server.client() as client:
        yield client
        for job in client.get("/v1/jobs?limit=200").json()["items"]:
            if job["state"] == "queued":
                client.post(f"/v1/jobs/{job['id']}/cancel")
            client.delete(f"/v1/jobs/{job['id']}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[servers.Server]:
    with servers.postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Empty, over each kind of database."""
    if request.param == "sqlite":
        yield Place(tmp_path / "var")
        return
    with servers.new_database(request.getfixturevalue("postgres_server").url) as url:
        where = Place(tmp_path / "var", {"EKIBEN_DATABASE_URL": url})
        yield where
        where.database.dispose()


@pytest.fixture
def toys_place(place: Place, sam_artifact: Path, toy_artifacts: dict[str, Path]) -> Place:
    for name, artifact in {**toy_artifacts, "sam_toy": sam_artifact}.items():
        place.publish(name, artifact)
    return place


@pytest.fixture(scope="session")
def vit_b_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published architecture with the random weights that the export gives it."""
    pytest.importorskip("torch")
    from export.sam.artifact import write_artifact
    from export.sam.recipe import SamRecipe, random_sam
    from export.zoo import ZOO

    folder = tmp_path_factory.mktemp("vit_b") / "artifact"
    write_artifact(SamRecipe(ZOO["sam_vit_b"], random_sam("vit_b", 0), Weights(kind="random", detail="seed 0")), folder)
    return folder
