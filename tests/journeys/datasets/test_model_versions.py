"""The versions of a model over HTTP: listed, activated, downloaded, removed."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.artifact import read_manifest
from tests import toy_models
from tests.conftest import publish
from tests.journeys.datasets.dataset_client import as_openapi_says
from tests.journeys.jobs.job_client import eventually, get, refusal
from tests.serving import Server


def test_versions_of_a_model(server: Server, client: httpx.Client, openapi: dict[str, Any], tmp_path: Path) -> None:
    for seed in range(3):
        toy_models.segmenter(tmp_path / str(seed))
        publish(server.home, "many", tmp_path / str(seed))
    eventually(lambda: client.get("/v1/models/many").status_code == 200, "it is listed", 5)

    listed = get(client, "/v1/models/many/versions")
    as_openapi_says(openapi, "/v1/models/{name}/versions", listed)
    assert [(one["version"], one["active"]) for one in listed["items"]] == [(3, True), (2, False), (1, False)]
    assert refusal(client.delete("/v1/models/many/versions/3"), 409)
    activated = client.post("/v1/models/many/activate", json={"version": 2})
    assert activated.status_code == 200
    as_openapi_says(openapi, "/v1/models/{name}/activate", activated.json(), "post")
    assert activated.json()["version"] == 2
    red = toy_models.encoded(toy_models.solid((255, 0, 0)))
    assert client.post("/v1/segment?model=many", content=red).json()["model"]["version"] == 2

    answer = client.get("/v1/models/many/versions/1/files")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="many-1.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "taken")
    manifest = read_manifest(tmp_path / "taken")
    assert manifest.digest == listed["items"][2]["digest"]
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == ["manifest.json", "model.onnx"]
    for name, info in manifest.files.items():
        data = (tmp_path / "taken" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == info.sha256
        assert data == (tmp_path / "0" / name).read_bytes()

    where = server.home / "blobs" / "models" / "many"
    assert sorted(path.name for path in where.iterdir()) == ["1", "2", "3"]
    assert client.delete("/v1/models/many/versions/3").status_code == 204
    assert [one["version"] for one in get(client, "/v1/models/many/versions")["items"]] == [2, 1]
    assert not [path for path in (where / "3").rglob("*") if path.is_file()]
    refusal(client.post("/v1/segment?model=many&version=3", content=red), 404)
    refusal(client.delete("/v1/models/many/versions/3"), 404)
    refusal(client.get("/v1/models/many/versions/3/files"), 404)
    refusal(client.post("/v1/models/many/activate", json={"version": 3}), 404)


@pytest.mark.parametrize("version", ["0", "-1", "x", str(2**31), str(2**63), "9" * 30])
def test_versions_that_there_are_not(client: httpx.Client, version: str) -> None:
    for method, path in (("GET", f"/v1/models/areas/versions/{version}/files"),
                         ("DELETE", f"/v1/models/areas/versions/{version}")):  # fmt: skip
        assert client.request(method, path).status_code in (400, 404), (method, path)
    number = int(version) if version != "x" else version
    assert client.post("/v1/models/areas/activate", json={"version": number}).status_code in (400, 404)
    assert client.get("/v1/models/areas/versions").status_code == 200


def test_activate_and_its_bodies(client: httpx.Client, openapi: dict[str, Any]) -> None:
    bodies: list[Any] = [{}, {"version": None}, {"version": 1, "more": 2}, {"version": 1.5}, []]
    for body in bodies:
        refusal(client.post("/v1/models/areas/activate", json=body), 400)
    refusal(client.post("/v1/models/nobody/activate", json={"version": 1}), 404)
    refusal(client.get("/v1/models/nobody/versions"), 404)
    assert client.post("/v1/models/areas/activate", json={"version": 1}).json()["version"] == 1
    described = openapi["paths"]["/v1/models/{name}/activate"]["post"]["requestBody"]["content"]["application/json"]
    assert described["schema"]["required"] == ["version"]
    for path in ("/v1/datasets", "/v1/trainings"):
        body = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        text = json.dumps(body)
        for name in (part.split('"')[0] for part in text.split('"#/')[1:]):
            assert (
                name.startswith("components/schemas/") and name.rpartition("/")[2] in (openapi["components"]["schemas"])
            ), f"{path} refers to {name}, which is nowhere in the document"
