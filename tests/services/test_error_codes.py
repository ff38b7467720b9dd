"""Disks, databases and stores without space: 503 with a code of its own, wherever the error arose."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from minio.error import InvalidResponseError, S3Error

from db.folder_store import FolderStore
from db.group_commit import GroupCommit
from db.migrate import migrate
from db.s3_store import _refusal
from db.session import connect, reading, writing
from ekiben.errors import BadInput, Damaged, StorageFull, Unavailable
from services.error_codes import grpc_code_of, presentable, status_of
from services.rest.error_handlers import response_for
from tests.db import rows


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number: int) -> None:
    shown = presentable(OSError(number, "full"))
    assert isinstance(shown, StorageFull)
    assert (shown.code, status_of(shown), grpc_code_of(shown)) == ("storage_full", 503, "UNAVAILABLE")
    response = response_for(OSError(number, "full"))
    assert (response.status_code, response.headers["retry-after"]) == (503, "10")
    assert b"storage_full" in bytes(response.body)


def test_an_error_that_comes_of_a_full_disk() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            raise BadInput("the archive is damaged") from None
    except BadInput as error:
        assert isinstance(presentable(error), StorageFull)
    kept = BadInput("the archive is damaged")
    assert presentable(kept) is kept
    other = OSError(errno.EIO, "broken")
    assert presentable(other) is other


def test_a_damaged_file_is_no_fault_of_the_request() -> None:
    damaged = Damaged("the stored file is damaged")
    assert (damaged.code, status_of(damaged), grpc_code_of(damaged)) == ("damaged", 500, "DATA_LOSS")
    assert "retry-after" not in response_for(damaged).headers


def test_a_folder_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = FolderStore(tmp_path)
    monkeypatch.setattr("os.fsync", full)
    for write in (lambda: store.put("images/a", b"1", "image/png"), store.check):
        with pytest.raises(StorageFull, match="the blob store has no space left"):
            write()
    monkeypatch.undo()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no part of it stays


@pytest.mark.parametrize(
    "error",
    [
        S3Error(None, "XMinioStorageFull", "Storage backend is full.", "/", "", ""),  # type: ignore[arg-type]
        S3Error(None, "QuotaExceeded", "", "/", "", ""),  # type: ignore[arg-type]
        S3Error(None, "InternalError", "write: no space left on device", "/", "", ""),  # type: ignore[arg-type]
        InvalidResponseError(507, "text/xml", "<Error><Code>InsufficientStorage</Code></Error>"),
    ],
)
def test_a_full_bucket(error: Exception) -> None:
    assert isinstance(_refusal(error, "images/a"), StorageFull)


def test_a_bucket_that_is_away_is_not_full() -> None:
    refusal = _refusal(S3Error(None, "SlowDown", "Please reduce your request rate.", "/", "", ""), "images/a")  # type: ignore[arg-type]
    assert isinstance(refusal, Unavailable) and not isinstance(refusal, StorageFull)


def test_sqlite_without_space(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    engine = connect(url)

    @sa.event.listens_for(engine, "connect")
    def limit(connection: sqlite3.Connection, record: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")

    with pytest.raises(StorageFull, match="the database has no space left"), writing(engine) as session:
        session.add_all([rows.image(filename="x" * 200) for _ in range(200)])
    with reading(engine) as session:
        assert session.execute(sa.text("SELECT count(*) FROM images")).scalar_one() == 0
    records = GroupCommit(engine)
    futures = [records.save([rows.image(filename="x" * 3000)]) for _ in range(20)]
    ends = [future.exception(60) for future in futures]
    records.close()
    assert any(isinstance(end, StorageFull) for end in ends)
    assert all(end is None or isinstance(end, StorageFull) for end in ends)
    with reading(engine) as session:  # exactly those that were told to be stored
        assert session.execute(sa.text("SELECT count(*) FROM images")).scalar_one() == ends.count(None)
    engine.dispose()
