"""Workers that have stopped polling the queue take the next job, all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toy_models
from tests.conftest import publish
from tests.journeys.jobs.job_client import batch, finished
from tests.serving import Server, serving
from tests.waiting import eventually

IMAGES = [(f"{n}.png", toy_models.encoded(toy_models.noise(40, 30, seed=n))) for n in range(40)]


def said(server: Server, message: str) -> int:
    return server.logs().count(f'"message":"{message}')


@pytest.mark.acceptance
def test_a_job_after_an_idle_minute_is_done(tmp_path: Path) -> None:
    """Two workers, each of which has its own time; several rounds in the life of one process."""
    toy_models.classifier(tmp_path / "colours")
    publish(tmp_path / "var", "colours", tmp_path / "colours")
    with serving(tmp_path / "var", EKIBEN_WORKERS="2") as server, server.client() as client:
        eventually(lambda: said(server, "worker ready") == 2)
        assert said(server, "taking jobs from the queue") == 0
        for rounds in (1, 2):
            job = finished(client, batch(client, IMAGES), seconds=60)
            assert job["counts"]["failed"] == 0
            eventually(lambda n=rounds: said(server, "taking jobs from the queue") == 2 * n)
            eventually(lambda n=rounds: said(server, "on standby") == 2 * n, limit_s=150)
        assert len(server.job_worker_pids()) == 2
        assert '"level":"error"' not in server.logs()
