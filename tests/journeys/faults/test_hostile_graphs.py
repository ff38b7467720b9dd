"""Graphs whose time depends on the pixels: refused when they are imported; disabled where one came in otherwise."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import toy_hostile, toy_models
from tests.conftest import publish
from tests.serving import TOPOLOGIES, Server, first_in, serving, wait_ready
from tests.waiting import eventually

WHITE = toy_models.encoded(toy_models.solid((255, 255, 255)))
GREY = toy_models.encoded(toy_models.solid((100, 100, 100)))


@pytest.fixture
def home(toy_home: Path, tmp_path: Path) -> Path:
    """The toys, and a model that was published without a trial and never ends on white images."""
    file = toy_hostile.looping(tmp_path / "loop.onnx", above=0.9)
    toy_hostile.artifact(tmp_path / "endless", file)
    publish(toy_home, "endless", tmp_path / "endless")
    return toy_home


def _ask(server: Server, image: bytes, model: str = "endless") -> httpx.Response:
    return httpx.post(f"{server.url}/v1/classify?model={model}&store=false", content=image, timeout=300)


def _model(server: Server) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(server.url + "/v1/models/endless", timeout=60).json()
    return body


def test_an_import_is_refused_by_its_trial(home: Path, tmp_path: Path) -> None:
    with serving(home) as server, server.client(timeout=300) as client:
        refused = client.post(
            "/v1/models",
            files={"file": ("loop.onnx", (tmp_path / "loop.onnx").read_bytes())},
            data={"name": "loop", "task": "classify", "labels": "\n".join(toy_hostile.LABELS)},
        )
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "bad_model_file"
        assert "how long it runs depends on the pixels" in refused.json()["error"]["message"]
        assert client.get("/v1/models/loop").status_code == 404


@pytest.mark.parametrize("topology", first_in("embedded"))
def test_a_version_that_does_not_end_is_disabled(home: Path, topology: str) -> None:
    """Its limit is 20 s, longer on a busy machine. Meanwhile the others answer, and a restart does not begin again."""
    settings = {**TOPOLOGIES[topology], "EKIBEN_TIMEOUT_S": "300", "EKIBEN_PRELOAD": "endless"}
    with serving(home, wait=False, **settings) as server:
        wait_ready(server, 120)
        assert _ask(server, GREY).status_code == 200
        answers: list[httpx.Response] = []
        # As many as there are threads, and more.
        asking = [threading.Thread(target=lambda: answers.append(_ask(server, WHITE))) for _ in range(6)]
        for thread in asking:
            thread.start()
        time.sleep(1)
        for name in ("colours", "areas"):  # neither is loaded yet
            path = "classify" if name == "colours" else "segment"
            other = httpx.post(f"{server.url}/v1/{path}?model={name}&store=false", content=GREY, timeout=300)
            assert other.status_code == 200
        assert not answers
        for thread in asking:
            thread.join(300)
        assert [answer.status_code for answer in answers] == [503] * 6
        assert {answer.json()["error"]["code"] for answer in answers} == {"model_disabled"}
        eventually(lambda: _model(server)["versions"][0]["disabled_reason"])
        assert _model(server)["state"] == "unavailable" and "took more than 20 s" in _model(server)["reason"]
        assert _ask(server, GREY).json()["error"]["code"] == "model_disabled"
        ready = eventually(lambda: _remark(server))
        assert "endless version 1 is disabled: a run on 1 image took more than 20 s" in ready
        assert "ekiben_models_disabled_total{" in httpx.get(server.url + "/metrics", timeout=60).text
    assert "model disabled" in server.logs()
    with serving(home, wait=False, **settings) as server:
        wait_ready(server, 120)
        assert _ask(server, GREY).json()["error"]["code"] == "model_disabled"
        activated = httpx.post(server.url + "/v1/models/endless/activate", json={"version": 1}, timeout=60)
        assert activated.status_code == 200
        assert _ask(server, GREY).status_code == 200


def _remark(server: Server) -> str:
    body = httpx.get(server.url + "/readyz", timeout=60)
    assert body.status_code == 200
    detail: str = body.json()["parts"]["pinned"]["detail"]
    return detail if detail != "ok" else ""


@pytest.mark.parametrize("topology", first_in("split"))
def test_sigterm_ends_everything_while_a_graph_runs(home: Path, topology: str) -> None:
    settings = {**TOPOLOGIES[topology], "EKIBEN_TIMEOUT_S": "300", "EKIBEN_WORKERS": "1"}
    with serving(home, wait=False, **settings) as server:
        wait_ready(server, 120)
        assert _ask(server, GREY).status_code == 200
        answers: list[httpx.Response] = []
        asking = [threading.Thread(target=lambda: answers.append(_ask(server, WHITE))) for _ in range(3)]
        for thread in asking:
            thread.start()
        job = httpx.post(
            server.url + "/v1/classify?model=endless", content=WHITE, headers={"Prefer": "respond-async"}, timeout=60
        )
        status = server.url + job.headers["location"]
        eventually(lambda: httpx.get(status, timeout=60).json()["counts"]["running"], limit_s=120)
        pids = server.pids()
        assert len(pids) >= 4
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        # Timers end them all after 20 s; the rest is for a machine that is busy.
        assert time.monotonic() - began < 35
        eventually(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])
        for thread in asking:
            thread.join(60)
        assert {answer.status_code for answer in answers} <= {503}
