"""One server with the toys and a worker for all tests of datasets over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.journeys.datasets.dataset_client import ready
from tests.journeys.datasets.stored_files import SIX, publish_toys
from tests.serving import Server, serving


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, toy_artifacts: dict[str, Path]) -> Iterator[Server]:
    home = publish_toys(tmp_path_factory.mktemp("datasets") / "var", toy_artifacts)
    with serving(home, EKIBEN_WORKERS="1") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="package")
def six(server: Server) -> str:
    """A dataset of six discs that nobody removes."""
    with server.client() as client:
        return ready(client, SIX, name="six")


@pytest.fixture(scope="package")
def openapi(server: Server) -> dict[str, Any]:
    schema: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return schema
