"""The Bento: its endpoints speak to BentoML's own client, and a built one serves the same answers elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest

from db.blobs import BlobStore, open_store
from db.registry import Registry
from db.session import connect
from ekiben.settings import Settings
from services.model_registry.bundled import publish_bundled
from tests import toy_models
from tests.serving import ROOT, Server, environ, free_port, serving, wait_ready

RED = toy_models.encoded(toy_models.solid((200, 10, 10), 48, 36))


def registry_of(home: Path) -> tuple[Registry, BlobStore]:
    settings = Settings.from_environ({"EKIBEN_HOME": str(home)})
    return Registry(connect(settings.resolved_database_url)), open_store(settings.resolved_store_url, "", "")


@pytest.fixture
def red(tmp_path: Path) -> Path:
    path = tmp_path / "red image.png"
    path.write_bytes(RED)
    return path


def test_bento_endpoints(toy_server: Server, red: Path) -> None:
    with toy_server.client() as client, bentoml.SyncHTTPClient(toy_server.url) as bento:
        expected = client.post("/v1/classify?model=colours&top_k=2&store=false", content=RED).json()
        given: dict[str, Any] = bento.classify(image=red, model="colours", top_k=2)
        assert given["predictions"] == expected["predictions"]
        # It recorded like the others.
        assert client.get(f"/v1/predictions/{given['id']}").json()["result"] == {"predictions": expected["predictions"]}
        assert client.get(f"/v1/images/{given['image']['id']}").json()["filename"] == "red image.png"

        segmented: dict[str, Any] = bento.segment(image=red, model="areas")
        assert segmented["classes"][0]["class_name"] == "red"
        assert client.get(segmented["artifacts"]["mask"]).status_code == 200
        assert bento.classify(image=red, model="colours", store=False)["id"] is None

        with pytest.raises(bentoml.exceptions.NotFound, match="nope"):
            bento.classify(image=red, model="nope")
        with pytest.raises(bentoml.exceptions.BentoMLException, match="4 classes"):
            bento.classify(image=red, model="colours", top_k=9)


def test_a_url_in_place_of_a_file_is_refused(toy_server: Server) -> None:
    """BentoML itself would fetch it, from inside this network."""
    requested: list[str] = []

    def error(answer: httpx.Response) -> str:
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"]["message"])

    with toy_server.client() as client:
        url = toy_server.url + "/v1/images?i-was-fetched"
        assert "must be a file" in error(
            client.post("/classify", files={"image": (None, url)}, data={"model": "colours"})
        )
        assert "multipart" in error(client.post("/classify", json={"image": url, "model": "colours"}))
        assert "multipart" in error(client.post("/segment", content=url))
        pickled = client.post("/classify", content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"})
        assert "multipart" in error(pickled)
        # Headers that two parsers read differently: BentoML's would take the body for an address.
        for disposition in ("name=\"image\"; filename*=utf-8''x.png", 'name="zzz"; name="image"'):
            body = f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{url}\r\n--x--\r\n"
            kind = {"content-type": "multipart/form-data; boundary=x"}
            answer = client.post("/classify?model=colours", content=body, headers=kind)
            assert answer.status_code == 400, answer.text
        assert "no option frob" in error(client.post("/classify", files={"image": ("x.png", RED)}, data={"frob": "1"}))
        wrong = client.post("/classify", files={"image": ("x.png", RED)}, data={"model": "colours", "version": "9"})
        assert wrong.status_code == 404
        assert "no 'image'" in error(client.post("/classify", files={"other": (None, "x")}))
        metrics = client.get("/metrics").text
    assert not requested
    assert "i-was-fetched" not in metrics + toy_server.logs()


def test_a_built_bento_serves_the_same_answers(toy_home: Path, red: Path, tmp_path: Path) -> None:
    """bentoml build, export, unpack under an empty BENTOML_HOME and an empty home, serve."""
    bentoml_cli = [sys.executable, "-m", "bentoml"]

    def run(*command: str, cwd: Path = ROOT, home: Path = toy_home, store: Path = tmp_path / "store-1") -> str:
        env = environ(home, BENTOML_HOME=str(store), BENTOML_DO_NOT_TRACK="True")
        done = subprocess.run(
            [*bentoml_cli, *command], cwd=cwd, env=env, text=True, capture_output=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()

    with serving(toy_home) as server, server.client() as client:
        expected = client.post("/v1/classify?model=colours", content=RED).json()["predictions"]
    tag = run("build", "-o", "tag").split("__tag__:")[-1].strip()
    archive = tmp_path / "ekiben.bento"
    run("export", tag, str(archive))

    elsewhere, second = tmp_path / "elsewhere", tmp_path / "store-2"
    elsewhere.mkdir()
    run("import", str(archive), cwd=elsewhere, store=second)
    folder = next(p for p in (second / "bentos" / "ekiben").iterdir() if p.is_dir())
    rooms = {p.name for p in (folder / "src").iterdir()}
    assert {"services", "models", "db", "ekiben"} <= rooms
    assert not rooms & {"export", "tests", "training", "bench", "docs", ".git", ".venv", "var"}
    requirements = (folder / "env" / "python" / "requirements.txt").read_text()
    assert "onnxruntime" in requirements
    assert "torch" not in requirements

    port, home = free_port(), tmp_path / "second-home"
    env = environ(home, BENTOML_HOME=str(second), BENTOML_DO_NOT_TRACK="True")
    env.pop("PYTHONPATH", None)
    log = tmp_path / "served.log"
    with log.open("wb") as out:
        command = [*bentoml_cli, "serve", tag, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, cwd=elsewhere, env=env, stdout=out, stderr=subprocess.STDOUT)
    bento_server = Server(f"http://127.0.0.1:{port}", "", process, home, log)
    try:
        wait_ready(bento_server)
        sources = {os.readlink(f"/proc/{pid}/cwd") for pid in bento_server.worker_pids()}
        assert sources, "no worker found"
        with bento_server.client() as client:
            assert {m["name"] for m in client.get("/v1/models").json()["items"]} == {"colours", "areas"}
            assert client.post("/v1/classify?model=colours", content=RED).json()["predictions"] == expected
            assert client.post("/v1/segment?model=areas", content=RED).status_code == 200
        # What the Bento carries is published once: a later start does not bring it back over a newer version.
        for _ in range(2):
            publish_bundled(next((second / "models" / "ekiben-models").glob("*/")), *registry_of(home))
        assert [row.version for row in registry_of(home)[0].versions("colours")] == [1]
    finally:
        process.terminate()
        process.wait(40)
