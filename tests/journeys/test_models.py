"""Models are listed with what they are, loaded, unloaded, imported and replaced while the server answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import toy_models
from tests.conftest import publish, run_module
from tests.serving import SOME_TOPOLOGIES, TOPOLOGIES, Server, serving
from tests.waiting import eventually

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))


@pytest.fixture(scope="module")
def server(toy_artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Embedded. Every test publishes the models that it changes, under names of its own."""
    home = tmp_path_factory.mktemp("models") / "var"
    publish(home, "areas", toy_artifacts["areas"])
    with serving(home) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def listed(client: httpx.Client, name: str) -> bool:
    return client.get(f"/v1/models/{name}").status_code == 200


def model(client: httpx.Client, name: str) -> dict[str, Any]:
    answer = client.get(f"/v1/models/{name}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def check_load_and_unload(client: httpx.Client, name: str, processes: int) -> None:
    assert model(client, name)["state"] == "unloaded"
    loaded = client.post(f"/v1/models/{name}/load").json()
    assert (loaded["state"], loaded["desired"]) == ("ready", "loaded")
    assert loaded["memory_bytes"] > 0
    eventually(lambda: sum(r["state"] == "ready" for r in model(client, name)["replicas"]) == processes)
    assert client.post(f"/v1/classify?model={name}&store=false", content=RED).status_code == 200
    unloaded = client.post(f"/v1/models/{name}/unload").json()
    assert unloaded["desired"] == "unloaded"
    eventually(lambda: model(client, name)["state"] == "unloaded")
    assert model(client, name)["memory_bytes"] == 0
    # Unloaded is no ban: the next request loads it again.
    assert client.post(f"/v1/classify?model={name}&store=false", content=RED).status_code == 200


def test_load_and_unload(server: Server, client: httpx.Client, toy_artifacts: dict[str, Path]) -> None:
    publish(server.home, "switched", toy_artifacts["colours"])
    eventually(lambda: listed(client, "switched"))
    check_load_and_unload(client, "switched", 1)


@pytest.mark.parametrize("topology", SOME_TOPOLOGIES[1:])
def test_every_process_loads_and_unloads(toy_home: Path, topology: str) -> None:
    with serving(toy_home, **TOPOLOGIES[topology]) as server, server.client() as client:
        assert {m["name"]: m["state"] for m in client.get("/v1/models").json()["items"]} == {
            "areas": "unloaded",
            "colours": "unloaded",
        }
        check_load_and_unload(client, "colours", 2 if topology == "two gateways" else 1)


def test_what_a_model_says_of_itself(server: Server, client: httpx.Client, toy_artifacts: dict[str, Path]) -> None:
    publish(server.home, "described", toy_artifacts["colours"])
    eventually(lambda: listed(client, "described"))
    before = model(client, "described")
    assert (before["task"], before["version"], before["classes"]) == ("classify", 1, 4)
    assert before["counters"] == {"predictions": 0, "batches": 0, "loads": 0, "waiting": 0, "batch_size": 1}
    for _ in range(3):
        client.post("/v1/classify?model=described&store=false", content=RED)
    after = model(client, "described")
    assert after["state"] == "ready"
    assert after["counters"]["predictions"] == 3
    assert after["counters"]["loads"] == 1
    assert [v["version"] for v in after["versions"]] == [1]
    assert after["versions"][0]["active"] is True


def test_an_upload_becomes_a_model(client: httpx.Client, toy_artifacts: dict[str, Path]) -> None:
    onnx = (toy_artifacts["colours"] / "model.onnx").read_bytes()
    labels = "\n".join(toy_models.CLASSES)
    fields = {"name": "mine", "task": "classify", "output": "logits"}
    files: dict[str, Any] = {"file": ("mine.onnx", onnx), "labels": ("labels.txt", labels)}
    made = client.post("/v1/models", data=fields, files=files)
    assert made.status_code == 201, made.text
    assert made.headers["location"] == "/v1/models/mine"
    assert made.json()["weights"] == "imported (mine.onnx)"
    answer = client.post("/v1/classify?model=mine&top_k=1", content=RED).json()
    assert answer["predictions"][0]["class_name"] == "red"
    assert answer["model"] == {"name": "mine", "version": 1}
    # Importing again makes a new version; the old one can still be asked for.
    again = client.post("/v1/models", data=fields, files=files).json()
    assert again["version"] == 2
    assert client.post("/v1/classify?model=mine", content=RED).json()["model"]["version"] == 2
    assert client.post("/v1/classify?model=mine&version=1", content=RED).json()["model"]["version"] == 1

    bad = client.post("/v1/models", data=fields, files={"file": ("x.onnx", b"not onnx"), "labels": labels.encode()})
    assert bad.status_code == 400
    assert bad.json()["error"]["code"] == "bad_model_file"
    wrong = client.post("/v1/models", data={**fields, "labels": "one\ntwo"}, files={"file": ("x.onnx", onnx)})
    assert wrong.status_code == 400
    assert "4" in wrong.json()["error"]["message"]
    assert model(client, "mine")["version"] == 2


def test_a_new_version_from_outside_is_served(
    server: Server, client: httpx.Client, toy_artifacts: dict[str, Path]
) -> None:
    publish(server.home, "renewed", toy_artifacts["colours"])
    eventually(lambda: listed(client, "renewed"))

    def version() -> int:
        answer = client.post("/v1/classify?model=renewed&store=false", content=RED)
        assert answer.status_code == 200, answer.text  # no request fails in between
        number: int = answer.json()["model"]["version"]
        return number

    assert version() == 1
    publish(server.home, "renewed", toy_artifacts["colours"])
    eventually(lambda: version() == 2)
    eventually(lambda: [r["version"] for r in model(client, "renewed")["replicas"] if r["state"] == "ready"] == [2])
    publish(server.home, "brand-new", toy_artifacts["colours"])
    assert client.post("/v1/classify?model=brand-new", content=RED).status_code == 200


def test_an_unavailable_model_says_why(tmp_path: Path) -> None:
    home = tmp_path / "var"
    done = run_module(home, "export.provision", "--no-download")
    assert done.returncode == 0, done.stderr
    with serving(home) as server, server.client() as client:
        assert client.get("/readyz").status_code == 200
        health = client.get("/healthz").json()
        assert health["ok"] is True
        assert "efficientnet_b0" in health["parts"]["models"]["detail"]
        listed = model(client, "efficientnet_b0")
        assert listed["state"] == "unavailable"
        assert "make models" in listed["reason"]
        refused = client.post("/v1/classify", content=RED)
        assert refused.status_code == 503
        assert listed["reason"] in refused.json()["error"]["message"]


def test_memory_budget(tmp_path: Path) -> None:
    """Two models of which one fits: they take turns, and one that never fits is refused with the numbers."""
    home = tmp_path / "var"
    for name, bytes_ in (("one", 30), ("two", 30), ("whale", 90)):
        toy_models.classifier(tmp_path / name, ballast_bytes=bytes_ * 1_000_000)
        publish(home, name, tmp_path / name)
    with serving(home, EKIBEN_MODEL_MEMORY_MB="70") as server, server.client() as client:
        for name in ("one", "two", "one"):
            assert client.post(f"/v1/classify?model={name}&store=false", content=RED).status_code == 200
            ready = {m["name"] for m in client.get("/v1/models").json()["items"] if m["state"] == "ready"}
            assert ready == {name}
        refused = client.post("/v1/classify?model=whale", content=RED)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "memory_budget"
        assert "EKIBEN_MODEL_MEMORY_MB" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1


def test_metrics_name_models_and_batches(toy_server: Server) -> None:
    with toy_server.client() as client:
        client.post("/v1/classify?model=colours&store=false", content=RED)
        text = client.get("/metrics").text
    for family in (
        "ekiben_requests_total",
        "ekiben_request_seconds",
        "ekiben_inference_seconds",
        "ekiben_queue_seconds",
        "ekiben_batch_size",
        "ekiben_queue_depth",
        "ekiben_model_memory_bytes",
        "ekiben_registry_lookups_total",
    ):
        assert f"# HELP {family}" in text.replace("_total ", " ") or f"# HELP {family}" in text, family
    assert 'ekiben_batch_size_count{model="colours"}' in text


def test_a_loaded_model_follows_its_versions(
    server: Server, client: httpx.Client, toy_artifacts: dict[str, Path]
) -> None:
    """Kept loaded, the next version is loaded and kept too, and the old one goes, however the news came in."""
    onnx = (toy_artifacts["colours"] / "model.onnx").read_bytes()
    publish(server.home, "followed", toy_artifacts["colours"])
    eventually(lambda: listed(client, "followed"))
    client.post("/v1/models/followed/load")
    fields = {"name": "followed", "task": "classify", "labels": "\n".join(toy_models.CLASSES)}
    made = client.post("/v1/models", data=fields, files={"file": ("x.onnx", onnx)})
    assert made.json()["version"] == 2
    client.post("/v1/classify?model=nobody", content=RED)  # a look-up refreshes this process's copy too
    held = lambda: {(r["version"], r["state"]) for r in model(client, "followed")["replicas"]}  # noqa: E731
    eventually(lambda: (2, "ready") in held() and (1, "ready") not in held())


@pytest.mark.acceptance
def test_a_new_version_fits_where_only_one_does(tmp_path: Path) -> None:
    home = tmp_path / "var"
    toy_models.classifier(tmp_path / "big", ballast_bytes=50_000_000)
    publish(home, "big", tmp_path / "big")
    with serving(home, EKIBEN_MODEL_MEMORY_MB="90", EKIBEN_PRELOAD="big") as server, server.client() as client:
        assert client.post("/v1/classify?model=big&store=false", content=RED).json()["model"]["version"] == 1
        publish(home, "big", tmp_path / "big")

        def served() -> bool:
            answer = client.post("/v1/classify?model=big&store=false", content=RED)
            return answer.status_code == 200 and answer.json()["model"]["version"] == 2

        eventually(served)


def test_ready_means_that_preloaded_models_are_warm(tmp_path: Path) -> None:
    home = tmp_path / "var"
    toy_models.classifier(tmp_path / "big", ballast_bytes=50_000_000)
    publish(home, "big", tmp_path / "big")
    with (
        serving(home, wait=False, EKIBEN_MODEL_MEMORY_MB="20", EKIBEN_PRELOAD="big") as server,
        server.client() as client,
    ):

        def verdict() -> Any:
            try:
                return client.get("/readyz")
            except httpx.TransportError:
                return None

        eventually(lambda: verdict() is not None)
        answer = verdict()
        assert answer.status_code == 503
        assert "big" in answer.json()["parts"]["pinned"]["detail"]
