"""What every blob store promises, asked of a folder and of a real S3 server."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from db.blobs import BlobStore, new_key, open_store
from ekiben.errors import BadInput, NotFound


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
    for request in (store.get, store.size, store.stream):  # stream: at the call, not at the first piece
        with pytest.raises(NotFound, match=key):
            request(key)
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
    verbs: list[Callable[[], object]] = [
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


def test_check_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    store.check()
    assert list(store.list("checks/")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


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


def test_keys_carry_the_day_in_utc() -> None:
    late = datetime(2026, 11, 20, 23, 30, tzinfo=timezone(-timedelta(hours=5)))
    assert new_key("images", "id", "jpg", late) == "images/2026/11/21/id.jpg"
    assert new_key("artifacts", "id", ".png", datetime(2026, 1, 2, tzinfo=UTC)) == "artifacts/2026/01/02/id.png"
