"""Stored files are given as they were stored, or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from db.folder_store import FolderStore
from db.stored_files import check_file, read_whole, stream_whole
from ekiben.errors import Damaged, NotFound

KEY = "artifacts/2026/11/29/a.png"
DATA = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[:5] + b"x" + DATA[6:]


class Far(FolderStore):
    """A store without files of this machine."""

    def local_path(self, key: str) -> Path | None:  # type: ignore[override]
        return None


@pytest.fixture(params=[FolderStore, Far])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FolderStore:
    made: FolderStore = request.param(tmp_path)
    made.put(KEY, DATA, "image/png")
    return made


def test_whole_files(store: FolderStore) -> None:
    check_file(store, KEY, len(DATA), SHA256)
    assert read_whole(store, KEY, len(DATA), SHA256) == DATA
    assert b"".join(stream_whole(store, KEY, len(DATA), SHA256)) == DATA
    assert read_whole(store, KEY, len(DATA), None) == DATA


@pytest.mark.parametrize("data", [DATA[:-1], b"", DATA + b"\n"])
def test_another_size_is_told_before_the_first_byte(store: FolderStore, data: bytes) -> None:
    (store.root / KEY).write_bytes(data)
    expected = f"it has {len(data)} bytes instead of {len(DATA)}"
    for read in (check_file, read_whole, stream_whole):
        with pytest.raises(Damaged, match=expected):
            read(store, KEY, len(DATA), SHA256)


def test_other_bytes_are_told_before_the_end(store: FolderStore) -> None:
    (store.root / KEY).write_bytes(OTHER)
    with pytest.raises(Damaged, match="not those that were stored"):
        read_whole(store, KEY, len(DATA), SHA256)
    pieces = stream_whole(store, KEY, len(DATA), SHA256)
    with pytest.raises(Damaged):
        list(pieces)
    if not isinstance(store, Far):
        with pytest.raises(Damaged):
            check_file(store, KEY, len(DATA), SHA256)


def test_a_file_is_hashed_again_only_when_it_was_written(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put(KEY, DATA, "image/png")
    path = tmp_path / KEY
    check_file(store, KEY, len(DATA), SHA256)
    was = path.stat()
    path.write_bytes(OTHER)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    check_file(store, KEY, len(DATA), SHA256)  # not told apart: it was not hashed again
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    with pytest.raises(Damaged):
        check_file(store, KEY, len(DATA), SHA256)


def test_a_missing_file_is_not_found(store: FolderStore) -> None:
    for read in (check_file, read_whole, stream_whole):
        with pytest.raises(NotFound):
            read(store, "artifacts/gone", 3, None)
