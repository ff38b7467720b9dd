"""A process that was killed is back within seconds, whichever it is; what it had to import and load comes on top."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests import toy_models
from tests.serving import TOPOLOGIES, Server, serving
from tests.waiting import eventually

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))
BACK_S = 5.0


def running(server: Server, *words: str) -> dict[int, float]:
    """When each process of the server whose command line has all ``words`` was started, by its pid."""
    found = {}
    for pid in server.pids():
        try:
            process = psutil.Process(pid)
            if all(word in " ".join(process.cmdline()) for word in words):
                found[pid] = process.create_time()
        except psutil.Error:
            continue
    return found


def classify(server: Server) -> int:
    with server.client() as client:
        return client.post("/v1/classify?model=colours", content=RED).status_code


def answers(server: Server) -> bool:
    try:
        return classify(server) == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("topology", ["embedded", pytest.param("split", marks=pytest.mark.acceptance)])
def test_a_killed_process_is_back(toy_home: Path, topology: str) -> None:
    began = time.time()
    with serving(toy_home, EKIBEN_WORKERS="1", **TOPOLOGIES[topology]) as server:
        start_s = time.time() - began  # of all processes after each other: more than any one takes
        eventually(lambda: bool(server.job_worker_pids()))
        serve, worker = "bentoml serve", "_bentoml_impl.worker.service"
        kinds = [("services.worker", "--id"), (worker, "services.gateway"), (serve, "services.gateway")]
        if topology == "split":
            kinds += [(worker, "services.runner_service"), (serve, "services.runner_service")]
        for words in kinds:
            eventually(lambda words=words: bool(running(server, *words)))
            (pid,) = running(server, *words)
            killed = time.time()
            os.kill(pid, signal.SIGKILL)
            eventually(lambda words=words, pid=pid: bool(running(server, *words).keys() - {pid}))
            back = max(running(server, *words).values())
            # What served for a supervising process has to give the ports back first.
            limit_s = BACK_S + (start_s if words[0] == serve else 0)
            assert back - killed < limit_s, (words, server.logs()[-3000:])
            # The connections that came meanwhile wait for it.
            eventually(lambda: answers(server), f"an answer after {words}", BACK_S + 3 * start_s)
        assert server.process.poll() is None
        log = server.logs()
        assert log.count("is started again in") == log.count("was killed by signal 9") == len(kinds) // 2
        assert "Traceback" not in log
