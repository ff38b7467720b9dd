"""What only a folder has: files that are synced, replaced and found by path."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from db.blobs import open_store
from ekiben.errors import Conflict, NotFound, Refusal, Unavailable
from ekiben.temporary_files import FOLDER


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
    assert synced[:3] == [tmp_path, tmp_path / "a", tmp_path]  # the last one for the folder of temporary files
    assert synced[3].parent == tmp_path / FOLDER and synced[3].name.startswith(".tmp-")
    assert synced[4:] == [Path("replace"), tmp_path / "a" / "b"]


def test_a_full_disk_leaves_the_old_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    store.put("images/a.jpg", b"old", "image/jpeg")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable) as refused:
        store.put("images/a.jpg", b"new", "image/jpeg")
    assert (refused.value.code, refused.value.message) == ("storage_full", "the blob store has no space left")
    with pytest.raises(Unavailable):
        store.check()
    monkeypatch.undo()
    assert store.get("images/a.jpg") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.jpg"]


def test_a_folder_that_is_mounted_from_the_same_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its device number is that of the store, and yet nothing can be moved there (a bind mount, a volume)."""
    replace = os.replace

    def mounted(source: Path, target: Path) -> None:
        if ("images" in source.parts) != ("images" in target.parts):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target)

    monkeypatch.setattr(os, "replace", mounted)
    store = open_store(str(tmp_path))
    (tmp_path / "source").write_bytes(b"b" * 1_000_000)
    store.put("images/a.jpg", b"a" * 1_000_000, "image/jpeg")
    store.put_file("images/b.jpg", tmp_path / "source", "image/jpeg")
    store.put("artifacts/c.png", b"c", "image/png")
    assert (store.get("images/a.jpg"), store.get("images/b.jpg")) == (b"a" * 1_000_000, b"b" * 1_000_000)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.jpg", "b.jpg", "c.png", "source"]


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file" / "blobs"))
    with pytest.raises(Refusal):
        store.check()
