"""What is stored can be listed, fetched and removed; nothing goes before its last reference."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import toy_models
from tests.conftest import publish
from tests.serving import Server, serving

RED = toy_models.encoded(toy_models.solid((255, 0, 0), 40, 30))


def blobs(home: Path) -> set[str]:
    return {
        p.relative_to(home / "blobs").as_posix()
        for p in (home / "blobs").rglob("*")
        if p.is_file() and "models" not in p.parts
    }


@pytest.fixture(scope="module")
def server(toy_artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("records") / "var"
    for name, artifact in toy_artifacts.items():
        publish(home, name, artifact)
    with serving(home) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """Of the server of this file. Every test finds it without a row or file, and removes what it stored."""
    with server.client() as client:
        yield client
        for row in client.get("/v1/predictions?limit=200").json()["items"]:
            assert client.delete(f"/v1/predictions/{row['id']}").status_code == 204
        for image in client.get("/v1/images?limit=200").json()["items"]:
            assert client.delete(f"/v1/images/{image['id']}").status_code == 204
        assert blobs(server.home) == set()


def request(client: httpx.Client, path: str, **more: Any) -> dict[str, Any]:
    answer = client.post(path, **more)
    assert answer.status_code in (200, 201), answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_an_answer_is_remembered_whole(server: Server, client: httpx.Client) -> None:
    answer = request(client, "/v1/classify?model=colours&top_k=2", files={"file": ("C:\\photos\\red one.png", RED)})
    row = client.get(f"/v1/predictions/{answer['id']}").json()
    assert row["task"] == "classify"
    assert row["status"] == "succeeded"
    assert row["model"] == answer["model"] == {"name": "colours", "version": 1}
    assert row["image"] == answer["image"]
    assert row["parameters"] == {"top_k": 2}
    assert row["result"] == {"predictions": answer["predictions"]}
    assert row["top_class"] == "red"
    assert row["top_confidence"] == answer["predictions"][0]["confidence"]
    assert row["timing"]["batch_size"] == 1
    assert row["artifacts"] == []
    age = datetime.now(UTC) - datetime.fromisoformat(row["created_at"])
    assert 0 <= age.total_seconds() < 60

    image = client.get(f"/v1/images/{answer['image']['id']}").json()
    assert image["filename"] == "red one.png"
    assert (image["width"], image["height"], image["bytes"]) == (40, 30, len(RED))
    assert image["sha256"] == hashlib.sha256(RED).hexdigest()
    day = datetime.now(UTC).strftime("%Y/%m/%d")
    assert blobs(server.home) == {f"images/{day}/{image['id']}.png"}
    content = client.get(image["url"])
    assert content.content == RED
    assert content.headers["content-type"] == "image/png"
    assert content.headers["etag"] == f'"{image["sha256"]}"'
    assert "immutable" in content.headers["cache-control"]
    assert client.get(image["url"], headers={"if-none-match": content.headers["etag"]}).status_code == 304

    # Ids are UUIDv7: time-ordered, so that the newest comes first without a second sort.
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", answer["id"])

    # Without the store nothing is left, and the answer is the same.
    again = request(client, "/v1/classify?model=colours&top_k=2&store=false", content=RED)
    assert again["predictions"] == answer["predictions"]
    assert again["id"] is None
    assert again["image"] == {"id": None, "width": 40, "height": 30, "range": [0, 255]}
    assert client.get("/v1/predictions").json()["total"] == 1
    assert len(blobs(server.home)) == 1

    # Removed: row and file.
    assert client.delete(f"/v1/predictions/{answer['id']}").status_code == 204
    assert client.get(f"/v1/predictions/{answer['id']}").status_code == 404
    assert client.get(f"/v1/images/{answer['image']['id']}").status_code == 404
    assert blobs(server.home) == set()


def test_lists_and_pages(server: Server, client: httpx.Client) -> None:
    ids = [request(client, "/v1/classify?model=colours", content=RED)["id"] for _ in range(5)]
    segmented = request(client, "/v1/segment?model=areas", content=RED)
    listed = client.get("/v1/predictions?limit=4").json()
    assert (listed["total"], listed["page"], listed["limit"]) == (6, 1, 4)
    assert [row["id"] for row in listed["items"]] == [segmented["id"], *reversed(ids[2:])]
    rest = client.get("/v1/predictions?limit=4&page=2").json()
    assert [row["id"] for row in rest["items"]] == [ids[1], ids[0]]
    assert client.get("/v1/predictions?limit=4&page=3").json()["items"] == []
    assert client.get("/v1/predictions?task=segment").json()["total"] == 1
    assert client.get("/v1/predictions?model=colours").json()["total"] == 5
    assert client.get("/v1/predictions?model=areas&task=classify").json()["total"] == 0

    first = listed["items"][0]
    assert {a["kind"]: a["url"] for a in first["artifacts"]} == segmented["artifacts"]
    for artifact in first["artifacts"]:
        data = client.get(artifact["url"]).content
        assert len(data) == artifact["bytes"]
        assert hashlib.sha256(data).hexdigest() == artifact["sha256"]
    assert client.delete(f"/v1/predictions/{segmented['id']}").status_code == 204
    assert all(client.get(a["url"]).status_code == 404 for a in first["artifacts"])
    assert not any(key.startswith("artifacts/") for key in blobs(server.home))


def test_an_image_goes_with_its_last_reference(server: Server, client: httpx.Client) -> None:
    # Kept for itself: it stays when its predictions go.
    kept = request(client, "/v1/images", files={"file": ("red.png", RED)})
    answer = request(client, f"/v1/classify?model=colours&image_id={kept['id']}")
    assert answer["image"]["id"] == kept["id"]
    assert len(blobs(server.home)) == 1
    refused = client.delete(f"/v1/images/{kept['id']}")
    assert refused.status_code == 409
    assert "1 prediction" in refused.json()["error"]["message"]
    client.delete(f"/v1/predictions/{answer['id']}")
    assert client.get(kept["url"]).content == RED
    assert client.delete(f"/v1/images/{kept['id']}").status_code == 204
    assert blobs(server.home) == set()

    # Came with a prediction: it goes with the last one that refers to it.
    one = request(client, "/v1/classify?model=colours", content=RED)
    two = request(client, f"/v1/segment?model=areas&image_id={one['image']['id']}")
    client.delete(f"/v1/predictions/{one['id']}")
    assert client.get(f"/v1/images/{one['image']['id']}/content").content == RED
    client.delete(f"/v1/predictions/{two['id']}")
    assert blobs(server.home) == set()

    # Or all at once.
    three = request(client, "/v1/segment?model=areas", content=RED)
    assert client.delete(f"/v1/images/{three['image']['id']}?cascade=true").status_code == 204
    assert client.get(f"/v1/predictions/{three['id']}").status_code == 404
    assert blobs(server.home) == set()
    assert client.get("/v1/images").json()["total"] == 0


def test_bytes_are_kept_as_they_came_and_sizes_are_those_of_the_turned_image(client: httpx.Client) -> None:
    image = toy_models.noise(40, 30)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = toy_models.encoded(image, "JPEG", exif=exif)
    stored = request(client, "/v1/images", content=turned)
    assert (stored["width"], stored["height"]) == (30, 40)
    assert client.get(stored["url"]).content == turned
    segmented = request(client, f"/v1/segment?model=areas&image_id={stored['id']}")
    assert (segmented["image"]["width"], segmented["image"]["height"]) == (30, 40)
    assert sum(c["pixels"] for c in segmented["classes"]) == 1200
