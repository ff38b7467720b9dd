"""Stored files that were damaged on the disk: told, and never given as whole."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from ekiben.v1 import ekiben_pb2 as pb
from ekiben.v1 import ekiben_pb2_grpc
from tests import toy_models
from tests.conftest import publish
from tests.serving import Server, serving

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))


@pytest.fixture(scope="module")
def server(toy_artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("damaged") / "var"
    for name in ("colours", "areas"):
        publish(home, name, toy_artifacts[name])
    publish(home, "broken", toy_artifacts["colours"])
    publish(home, "lost", toy_artifacts["colours"])
    with serving(home) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def told(response: httpx.Response) -> str:
    assert response.status_code == 500, response.text
    error = response.json()["error"]
    assert error["code"] == "damaged"
    message: str = error["message"]
    return message


@pytest.mark.parametrize("damage", [changed, truncated])
def test_images_and_masks(server: Server, client: httpx.Client, damage: object) -> None:
    assert callable(damage)
    answer = client.post("/v1/segment?model=areas", content=RED).json()
    mask, image = answer["artifacts"]["mask"], answer["image"]["id"]
    assert client.get(mask).status_code == 200
    assert client.get(f"/v1/images/{image}/content").content == RED
    ident = mask.rpartition("/")[2]
    damage(next((server.home / "blobs").rglob(f"{ident}*")))
    message = told(client.get(mask))
    assert message.startswith("the stored file is damaged: ")
    assert "bytes instead of" in message if damage is truncated else "not those that were stored" in message
    told(client.get(mask, headers={"range": "bytes=0-9"}))

    async def over_grpc() -> grpc.aio.AioRpcError:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in ekiben_pb2_grpc.ArtifactsStub(channel).GetArtifact(pb.GetArtifactRequest(id=ident)):
                    pass
            return refused.value

    assert asyncio.run(over_grpc()).code() == grpc.StatusCode.DATA_LOSS
    # An answer of other pixels than those that were stored would be wrong without a word.
    damage(next((server.home / "blobs" / "images").rglob(f"{image}*")))
    told(client.get(f"/v1/images/{image}/content"))
    told(client.post(f"/v1/segment?model=areas&image_id={image}"))


def test_a_model_whose_file_is_damaged_is_not_loaded(server: Server, client: httpx.Client) -> None:
    model = server.home / "blobs" / "models" / "broken" / "1" / "model.onnx"
    whole = model.read_bytes()
    changed(model)
    for _ in range(2):  # the second is answered without another look
        message = told(client.post("/v1/classify?model=broken", content=RED))
        assert message.startswith("the files of model broken version 1 are damaged: model.onnx")
    shown = client.get("/v1/models/broken").json()
    assert "damaged" in (shown["reason"] or ""), shown
    with pytest.raises(httpx.RemoteProtocolError):  # it has begun: the connection is closed before its end
        client.get("/v1/models/broken/versions/1/files")
    truncated(model)
    assert "bytes instead of" in told(client.get("/v1/models/broken/versions/1/files"))
    model.write_bytes(whole)
    zipped = client.get("/v1/models/broken/versions/1/files")
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert archive.testzip() is None and archive.read("model.onnx") == whole
    loaded = client.post("/v1/models/broken/load")  # a restored file is served without a restart
    assert loaded.status_code == 200, loaded.text
    assert client.post("/v1/classify?model=broken", content=RED).status_code == 200


def test_a_version_without_files_is_no_empty_zip(server: Server, client: httpx.Client) -> None:
    for path in (server.home / "blobs" / "models" / "lost" / "1").iterdir():
        path.unlink()
    assert "manifest.json" in told(client.get("/v1/models/lost/versions/1/files"))
    assert "manifest.json is missing" in told(client.post("/v1/classify?model=lost", content=RED))
    assert client.post("/v1/classify?model=colours", content=RED).status_code == 200  # others are not touched
