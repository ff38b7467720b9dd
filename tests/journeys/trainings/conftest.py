"""One server with a worker, and a dataset of forty discs on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import publish
from tests.journeys.datasets.dataset_client import (
    discs,
    ready,
)
from tests.serving import Server, serving


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, toy_artifacts: dict[str, Path]) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("training") / "var"
    publish(home, "areas", toy_artifacts["areas"])
    with serving(home, EKIBEN_WORKERS="1") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client(timeout=120) as client:
        yield client


@pytest.fixture(scope="package")
def dataset_id(server: Server) -> str:
    with server.client(timeout=120) as client:
        return ready(client, discs(range(40)))
