"""Fixtures: a server with models of every family, and tritonclient's clients beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests import toy_models
from tests.conftest import publish
from tests.journeys.open_inference.client_processes import Client, Clients
from tests.serving import Server

NAMES = ("oip_colours", "oip_cells", "oip_mine")
"""A classifier of two versions, a tiled unet of two classes, a user's file that was imported over HTTP."""


@pytest.fixture(scope="package")
def oip_server(sam_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """``sam_server`` with NAMES besides, which no other test asks."""
    folder = tmp_path_factory.mktemp("oip")
    toy_models.classifier(folder / "colours")
    toy_models.unet(folder / "cells", binary=True, overlap=0.5)
    for name, artifact in (("oip_colours", "colours"), ("oip_colours", "colours"), ("oip_cells", "cells")):
        publish(sam_server.home, name, folder / artifact)
    with sam_server.client() as client:
        made = client.post(
            "/v1/models",
            data={"name": "oip_mine", "task": "classify", "output": "logits"},
            files={
                "file": ("mine.onnx", (folder / "colours" / "model.onnx").read_bytes()),
                "labels": ("labels.txt", "\n".join(toy_models.CLASSES).encode()),
            },
        )
        assert made.status_code == 201, made.text
    end = time.monotonic() + 10
    while not _seen_by_all(sam_server):
        assert time.monotonic() < end, "the models were not seen in time"
        time.sleep(0.1)
    return sam_server


def _seen_by_all(server: Server) -> bool:
    """Whether every gateway knows them: connections of their own reach either."""
    for _ in range(6):
        with httpx.Client(base_url=server.url) as client:
            if any(client.get(f"/v2/models/{name}/ready").status_code != 200 for name in NAMES):
                return False
    return True


@pytest.fixture(scope="package")
def oip_clients(oip_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    clients = Clients(oip_server, tmp_path_factory.mktemp("clients"))
    yield clients
    clients.close()


@pytest.fixture
def oip(request: pytest.FixtureRequest, oip_clients: Clients) -> Client:
    """EACH_CLIENT."""
    return Client(oip_clients, request.param)
