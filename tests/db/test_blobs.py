"""What every blob store promises, asked of a folder and of a real S3 server."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from db.blobs import BlobStore, new_key, open_store
from db.s3_store import S3Store
from ekiben.errors import BadInput, Conflict, NotFound, Refusal, Unavailable
from tests.servers import Server, free_port, rclone_s3


@pytest.fixture
def key() -> str:
    return f"images/2026/11/20/{uuid.uuid4()}.jpg"


def fetch(url: str) -> tuple[bytes, dict[str, str]]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read(), {name.lower(): value for name, value in answer.headers.items()}


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
def test_gives_back_what_was_put(store: BlobStore, key: str, data: bytes) -> None:
    store.put(key, data, "image/jpeg")
    assert store.get(key) == data
    assert b"".join(store.stream(key)) == data
    assert store.size(key) == len(data)
    assert store.exists(key)


def test_putting_again_replaces(store: BlobStore, key: str) -> None:
    store.put(key, b"a longer first one", "image/jpeg")
    store.put(key, b"second", "image/jpeg")
    assert store.get(key) == b"second"
    assert list(store.list(key)) == [key]


def test_put_file_of_several_parts(store: BlobStore, key: str, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(random.Random(1).randbytes(20 * 1024 * 1024 + 17))  # more than one part of an S3 upload
    store.put_file(key, source, "application/octet-stream")
    digest = hashlib.sha256()
    for piece in store.stream(key):
        digest.update(piece)
    assert store.size(key) == source.stat().st_size
    assert digest.hexdigest() == hashlib.sha256(source.read_bytes()).hexdigest()


def test_missing_is_not_found(store: BlobStore, key: str) -> None:
    for ask in (store.get, store.size, store.stream):  # stream: at the call, not at the first piece
        with pytest.raises(NotFound, match=key):
            ask(key)
    assert not store.exists(key)
    store.delete(key)  # no error


def test_delete(store: BlobStore, key: str) -> None:
    store.put(key, b"data", "image/jpeg")
    store.delete(key)
    assert not store.exists(key)
    with pytest.raises(NotFound):
        store.get(key)


def test_list_by_prefix(store: BlobStore) -> None:
    area = f"models/{uuid.uuid4()}"
    names = ["1/manifest.json", "1/model.onnx", "10/model.onnx", "1/labels/größe & co.txt"]
    for name in names:
        store.put(f"{area}/{name}", b"data", "text/plain")
    assert sorted(store.list(f"{area}/")) == sorted(f"{area}/{name}" for name in names)
    assert sorted(store.list(f"{area}/1/")) == sorted(f"{area}/{name}" for name in names if name.startswith("1/"))
    assert sorted(store.list(f"{area}/1/m")) == [f"{area}/1/manifest.json", f"{area}/1/model.onnx"]
    assert list(store.list(f"{area}/2/")) == []


@pytest.mark.parametrize(
    "bad", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/./b", "a/", "a\0b", "a\nb", "a\\b", "a/.tmp-1", "x" * 300]
)
def test_keys_that_are_none(store: BlobStore, bad: str) -> None:
    verbs = [
        lambda: store.put(bad, b"", "text/plain"),
        lambda: store.put_file(bad, Path(__file__), "text/plain"),
        lambda: store.get(bad),
        lambda: store.stream(bad),
        lambda: store.size(bad),
        lambda: store.exists(bad),
        lambda: store.delete(bad),
        lambda: store.local_path(bad),
        lambda: store.presigned_url(bad, 60),
    ]
    for verb in verbs:
        with pytest.raises(BadInput):
            verb()


def test_a_prefix_cannot_leave_the_store(store: BlobStore) -> None:
    for bad in ("../", "/", "a/../../"):
        with pytest.raises(BadInput):
            store.list(bad)


def test_folder_readers_see_whole_blobs_only(tmp_path: Path, key: str) -> None:
    """While one writes, another never reads a mixture or a part. (A bucket has this from its server.)"""
    store = open_store(str(tmp_path))
    versions = [bytes([n]) * 300_000 for n in range(20)]
    store.put(key, versions[0], "image/jpeg")
    done = threading.Event()

    def read() -> set[bytes]:
        seen = set()
        while not done.is_set():
            seen.add(store.get(key))
        return seen

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for version in versions:
            store.put(key, version, "image/jpeg")
        done.set()
    assert reading.result() and reading.result() <= set(versions)


def test_check_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    store.check()
    assert list(store.list("checks/")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_s3_address_for_a_browser(s3_server: Server, key: str) -> None:
    store = open_store(s3_server.url, s3_server.access_key, s3_server.secret_key)
    store.put(key, b"picture", "image/jpeg")
    url = store.presigned_url(key, 60, filename='maß "1".jpg', mime_type="image/x-test")
    assert url is not None
    assert fetch(url)[0] == b"picture"
    assert "response-content-type=image%2Fx-test" in url
    assert "attachment%3B%20filename%3D%22ma_%20_1_.jpg%22%3B%20filename%2A%3DUTF-8%27%27ma%25C3%259F" in url
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(url.replace(key, key.replace("images", "artifacts")))  # signed for another key
    assert refused.value.code in (400, 401, 403)
    soon = store.presigned_url(key, 1)
    assert soon is not None
    time.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(soon)
    assert refused.value.code in (400, 401, 403)
    for expires_s in (0, 8 * 24 * 3600):
        with pytest.raises(BadInput):
            store.presigned_url(key, expires_s)
    assert store.local_path(key) is None


def test_s3_keeps_the_type(s3_server: Server, key: str) -> None:
    store = open_store(s3_server.url, s3_server.access_key, s3_server.secret_key)
    store.put(key, b"picture", "image/webp")
    url = store.presigned_url(key, 60)
    assert url is not None and fetch(url)[1]["content-type"] == "image/webp"


@pytest.mark.parametrize("wrong", ["access", "secret", "none"])
def test_s3_refuses_wrong_credentials(s3_server: Server, key: str, wrong: str) -> None:
    open_store(s3_server.url, s3_server.access_key, s3_server.secret_key).put(key, b"private", "image/jpeg")
    given = {
        "access": ("somebody", s3_server.secret_key),
        "secret": (s3_server.access_key, "wrong-secret"),
        "none": ("", ""),
    }
    store = open_store(s3_server.url, *given[wrong])
    for verb in (store.check, lambda: store.get(key), lambda: store.size(key), lambda: list(store.list("images/"))):
        with pytest.raises(Refusal) as refused:
            verb()
        assert "secret" not in refused.value.message
    with pytest.raises(Unavailable):
        store.check()


def test_s3_down_then_back(tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as server:
        if server.stop is None or server.start is None:
            pytest.skip("the S3 server of EKIBEN_TEST_S3_URL is not ours to stop")
        store = open_store(server.url, server.access_key, server.secret_key)
        store.put("images/a.jpg", b"a", "image/jpeg")
        server.stop()
        began = time.monotonic()
        for verb in (store.check, lambda: store.get("images/a.jpg"), lambda: list(store.list(""))):
            with pytest.raises(Unavailable) as refused:
                verb()
            assert refused.value.message == "the blob store is not available"
        assert time.monotonic() - began < 10
        server.start()
        store.check()
        assert store.get("images/a.jpg") == b"a"


def test_s3_that_never_answers() -> None:
    """An address that takes no connections at all is given up within the time of two attempts."""
    store = S3Store("bucket", "192.0.2.1:9000", False, "us-east-1", "a", "b")  # RFC 5737: nobody is there
    began = time.monotonic()
    with pytest.raises(Unavailable):
        store.get("images/a.jpg")
    assert time.monotonic() - began < 10


def test_folder_gives_paths_not_addresses(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("images/a.jpg", b"a", "image/jpeg")
    path = store.local_path("images/a.jpg")
    assert path == tmp_path / "images" / "a.jpg" and path.read_bytes() == b"a"
    assert store.presigned_url("images/a.jpg", 60) is None
    with pytest.raises(NotFound):
        store.local_path("images/b.jpg")
    with pytest.raises(NotFound):
        store.get("images")  # a folder is no blob
    with pytest.raises(Conflict):
        store.put("images/a.jpg/b", b"b", "image/jpeg")
    with pytest.raises(Conflict):
        store.put("images", b"b", "image/jpeg")


def test_folder_is_synced_before_put_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before its name, and every folder that got a new name: else a power cut takes the blob away again."""
    synced: list[Path] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def recording_replace(source: Path, target: Path) -> None:
        synced.append(Path("replace"))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    open_store(str(tmp_path)).put("a/b/c.jpg", b"data", "image/jpeg")
    assert synced[:2] == [tmp_path, tmp_path / "a"]
    assert synced[2].parent == tmp_path / "a" / "b" and synced[2].name.startswith(".tmp-")
    assert synced[3:] == [Path("replace"), tmp_path / "a" / "b"]


def test_a_full_disk_leaves_the_old_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    store.put("images/a.jpg", b"old", "image/jpeg")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable) as refused:
        store.put("images/a.jpg", b"new", "image/jpeg")
    assert "space" not in refused.value.message
    with pytest.raises(Unavailable):
        store.check()
    monkeypatch.undo()
    assert store.get("images/a.jpg") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.jpg"]


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file" / "blobs"))
    with pytest.raises(Refusal):
        store.check()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1:9000/bucket",
        "s3://",
        "s3://bucket",
        "s3://bucket?endpoint=127.0.0.1:9000",
        "s3://bucket/folder?endpoint=http://127.0.0.1:9000",
        "s3://bucket?endpoint=http://127.0.0.1:9000&regoin=x",
        "s3://B!?endpoint=http://127.0.0.1:9000",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(BadInput):
        open_store(url, "a", "b")


def test_opening_connects_to_nothing() -> None:
    store = open_store(f"s3://bucket?endpoint=http://127.0.0.1:{free_port()}&region=eu-west-1", "a", "b")
    with pytest.raises(Unavailable):
        store.check()


def test_keys_carry_the_day_in_utc() -> None:
    late = datetime(2026, 11, 20, 23, 30, tzinfo=timezone(-timedelta(hours=5)))
    assert new_key("images", "id", "jpg", late) == "images/2026/11/21/id.jpg"
    assert new_key("artifacts", "id", ".png", datetime(2026, 1, 2, tzinfo=UTC)) == "artifacts/2026/01/02/id.png"
