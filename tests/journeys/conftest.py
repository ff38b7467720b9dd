"""What journeys share: servers with the toy Segment Anything, in every topology."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import toys_sam
from tests.conftest import publish
from tests.serving import TOPOLOGIES, Server, serving


@pytest.fixture(scope="session")
def sam_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam") / "sam_toy"
    toys_sam.sam(folder)
    return folder


@pytest.fixture
def sam_home(sam_artifact: Path, tmp_path: Path) -> Path:
    """A fresh home with ``sam_toy``."""
    home = tmp_path / "var"
    publish(home, "sam_toy", sam_artifact)
    return home


@pytest.fixture(scope="session", params=list(TOPOLOGIES))
def sam_server(
    request: pytest.FixtureRequest,
    sam_artifact: Path,
    toy_artifacts: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """``sam_toy`` and ``colours`` in every topology. The embeddings it holds are shared: ask with pictures of your own
    where that matters."""
    home = tmp_path_factory.mktemp("sam-server") / "var"
    publish(home, "sam_toy", sam_artifact)
    publish(home, "colours", toy_artifacts["colours"])
    with serving(home, **TOPOLOGIES[request.param]) as server:
        yield server


@pytest.fixture
def client(sam_server: Server) -> Iterator[httpx.Client]:
    """One connection, so that with several gateways the same one answers all along."""
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(base_url=sam_server.url, timeout=60.0, limits=limits) as client:
        yield client
