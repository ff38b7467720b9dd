"""A database file that is damaged, empty, foreign or gone is refused in words; a new home is not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlmodel import select

from db.folder_store import FolderStore
from db.group_commit import GroupCommit
from db.migrate import migrate
from db.schema.sqlite_file import check_database_file
from db.session import check_writes, connect, ping, reading, writing
from db.tables import Image
from ekiben.errors import Unavailable
from tests.db import rows

SECONDS = 60.0  # for the comparison of a small file, on any machine


class Home:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "ekiben.db"
        self.url = f"sqlite:///{self.path}"
        self.store = FolderStore(folder / "blobs")

    def check(self, seconds: float = SECONDS) -> None:
        check_database_file(self.url, self.store, seconds)

    def refused(self, seconds: float = SECONDS) -> str:
        with pytest.raises(Unavailable) as refused:
            self.check(seconds)
        assert refused.value.code == "database_damaged"
        return refused.value.message

    def write(self, data: bytes) -> None:
        for ending in ("-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        self.path.write_bytes(data)


@pytest.fixture
def new(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def used(new: Home) -> Home:
    """A home with 300 images in the database, and a file in the store."""
    migrate(new.url)
    engine = connect(new.url)
    with writing(engine) as session:
        session.add_all([rows.image(filename="x" * 300) for _ in range(300)])
    engine.dispose()
    new.store.put("images/2026/11/29/a.png", b"pixels", "image/png")
    return new


def test_a_new_home_is_one(new: Home) -> None:
    new.check()
    new.path.touch()  # as a first start leaves it that was killed
    new.check()


def test_a_whole_database_passes(used: Home) -> None:
    used.check()


@pytest.mark.parametrize("data", [b"", b"an SQLite file begins otherwise\n" * 300])
def test_what_is_there_instead_is_refused(used: Home, data: bytes) -> None:
    used.write(data)
    message = used.refused(0)
    assert str(used.path) in message and "restore a backup" in message
    assert "empty (0 bytes)" in message if not data else "is not a SQLite database" in message
    assert used.path.read_bytes() == data  # nothing was made of it


def test_a_file_that_is_gone_is_refused(used: Home) -> None:
    used.write(b"")
    used.path.unlink()
    assert "is missing" in used.refused(0)
    assert not used.path.exists()


def test_the_database_of_another_application_is_refused(used: Home) -> None:
    used.write(b"")
    used.path.unlink()
    with sqlite3.connect(used.path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    assert "none of its tables" in used.refused(0)


def test_tables_without_their_version_are_refused(used: Home) -> None:
    connection = sqlite3.connect(used.path)
    connection.execute("DELETE FROM ekiben_version")
    connection.commit()
    connection.close()
    assert "ekiben_version" in used.refused(0)


def test_a_truncated_file_is_refused_at_every_start(used: Home) -> None:
    data = used.path.read_bytes()
    assert len(data) > 200_000
    used.write(data[:20_480])
    assert "damaged" in used.refused(0)


def test_pages_within_are_compared(used: Home) -> None:
    data = bytearray(used.path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 8192] = b"\xa5" * 8192
    used.write(bytes(data))
    used.check(0)  # what every start reads is whole
    assert str(used.path) in used.refused()


def test_a_folder_is_no_database(new: Home) -> None:
    new.path.mkdir()
    with pytest.raises(Unavailable, match="is no file"):
        new.check()


def test_a_process_that_met_damage_is_not_ready_any_more(used: Home) -> None:
    data = bytearray(used.path.read_bytes())
    for start in range(4096 * 60, len(data), 4096):
        data[start : start + 4096] = b"\xa5" * 4096
    used.write(bytes(data))
    engine = connect(used.url)
    ping(engine)  # the first page is whole
    with pytest.raises(Unavailable) as refused, reading(engine) as session:
        session.exec(select(Image)).all()
    assert refused.value.code == "database_damaged"
    for check in (ping, check_writes):
        with pytest.raises(Unavailable, match="the database is damaged: database disk image is malformed"):
            check(engine)
    with pytest.raises(Unavailable, match="the database is damaged"), writing(engine) as session:
        session.add(rows.image())  # it might be lost with the file, though it was said to be stored
    records = GroupCommit(engine)
    assert isinstance(records.save([rows.image()]).exception(60), Unavailable)
    records.close()
    engine.dispose()


def test_a_file_that_is_no_database_while_it_is_served(used: Home) -> None:
    used.write(b"no database" * 1000)
    engine = connect(used.url)
    with pytest.raises(Unavailable) as refused, reading(engine) as session:
        session.exec(select(Image)).all()
    assert refused.value.code == "database_damaged"
    with pytest.raises(Unavailable, match="file is not a database"):
        ping(engine)
    engine.dispose()


def test_the_check_of_writes_writes(used: Home) -> None:
    engine = connect(used.url)
    before = _number(used.path)
    check_writes(engine)
    check_writes(engine)
    assert _number(used.path) == before + 2
    used.path.rename(used.path.with_name("elsewhere"))
    with pytest.raises(Unavailable, match="the file of the database is gone"):
        check_writes(engine)
    engine.dispose()


def test_the_check_of_writes_does_not_wait_for_another_writer(used: Home) -> None:
    """Another one that writes shows that it can be written."""
    engine = connect(used.url)
    other = sqlite3.connect(used.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    check_writes(engine)
    other.close()
    engine.dispose()


def _number(path: Path) -> int:
    connection = sqlite3.connect(path)
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return found
