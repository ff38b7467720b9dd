"""Connecting: what an engine is set to, what it refuses, and what its errors become."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlmodel import Session, select

from db import session as sessions
from db.session import check_writes, connect, parse_url, ping, reading, refusing, writing
from db.tables import Image, Prediction
from ekiben.errors import BadInput, Conflict, StorageFull, Unavailable
from tests.db import rows
from tests.servers import Server, free_port, postgres


def test_sqlite_is_set_to_be_safe(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'deep' / 'er' / 'ekiben.db'}")
    with engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_postgres_gives_up_on_slow_statements_and_silent_clients(postgres_server: Server) -> None:
    limits = {
        "statement_timeout": "15000",
        "lock_timeout": "5000",
        "idle_in_transaction_session_timeout": "20000",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "2",
    }
    engine = connect(postgres_server.url)
    with engine.connect() as connection:
        # Not what is in force: here the server is reached through a socket file, which needs no keepalives.
        shown = connection.exec_driver_sql("SELECT name, reset_val FROM pg_settings WHERE source = 'client'")
        found = {name: value for name, value in shown.tuples() if name in limits}
    assert found == limits
    engine.dispose()
    assert engine.dialect.driver == "psycopg2"


def test_a_process_that_was_stopped_in_a_transaction_holds_nothing_up(migrated_postgres: str) -> None:
    engine, other = connect(migrated_postgres), connect(migrated_postgres)
    with pytest.raises(Unavailable), writing(engine) as session:
        session.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 200"))
        session.execute(sa.text("UPDATE registry_revision SET revision = revision"))
        with writing(other) as waiting:  # until the server has ended the session
            waiting.execute(sa.text("UPDATE registry_revision SET revision = revision"))
        session.execute(sa.text("UPDATE registry_revision SET revision = revision + 1"))
    ping(engine)
    engine.dispose()
    other.dispose()


def test_a_database_in_which_another_writes_can_be_written(migrated_postgres: str) -> None:
    engine, other = connect(migrated_postgres), connect(migrated_postgres)
    with writing(other) as session:
        session.execute(sa.text("UPDATE registry_revision SET revision = revision"))
        check_writes(engine)
    engine.dispose()
    other.dispose()


@pytest.mark.parametrize("url", ["postgresql://u:p@h/d", "postgres://u:p@h/d", "postgresql+psycopg2://u:p@h/d"])
def test_postgres_means_psycopg2(url: str) -> None:
    assert parse_url(url).drivername == "postgresql+psycopg2"


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://u:p@h/d", "sqlite://", "sqlite:///:memory:"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(BadInput):
        connect(url)


def test_readers_that_then_write_wait_for_each_other(engine: sa.Engine) -> None:
    """On SQLite a transaction that begins by reading fails at once when another commits before it writes."""

    def read_then_write(n: int) -> int:
        for _ in range(10):
            with writing(engine) as session:
                seen = len(session.exec(select(Image.id)).all())
                session.add(rows.image(width=seen))
        return n

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(read_then_write, range(4))) == 6
    with reading(engine) as session:
        widths = sorted(session.exec(select(Image.width)))
    assert len(widths) == 40
    if engine.dialect.name == "sqlite":
        assert widths == list(range(40))  # one after the other: each saw all before it


def test_rows_stay_readable_and_exact(engine: sa.Engine) -> None:
    moment = datetime(2026, 11, 20, 1, 2, 3, 456789, tzinfo=timezone(timedelta(hours=9)))
    image = rows.image(created_at=moment, bytes=3 * 2**31, filename=None)
    with writing(engine) as session:
        session.add(image)
        session.flush()
        session.add(rows.prediction(image.id, id="p", result={"a": [1, 0.1, None, True, "🚋"], "b": {}}))
        session.add(rows.prediction(image.id, id="q", result=None, status="failed", error="deadline"))
    with reading(engine) as session:
        found = session.exec(select(Image)).one()
        predictions = {p.id: p for p in session.exec(select(Prediction))}
        nulls = session.exec(select(Prediction.id).where(sa.column("result").is_(None))).all()
    assert found.created_at == moment and found.created_at.tzinfo is UTC
    assert (found.bytes, found.filename, found.kept, found.owner) == (3 * 2**31, None, False, "local")
    assert predictions["p"].result == {"a": [1, 0.1, None, True, "🚋"], "b": {}}
    assert (predictions["q"].result, nulls) == (None, ["q"])


def test_integrity_becomes_a_conflict(engine: sa.Engine) -> None:
    with writing(engine) as session:
        session.add(rows.image(id="i"))
    with pytest.raises(Conflict, match="exist already"), writing(engine) as session:
        session.add(rows.image(id="i"))
    with pytest.raises(Conflict, match="is gone"), writing(engine) as session:
        session.add(rows.prediction("nowhere"))
    with writing(engine) as session:
        session.add(rows.prediction("i"))
    with pytest.raises(Conflict, match="still refers"), writing(engine) as session:
        session.execute(sa.delete(Image))
    # What only a fault of ours can cause is not dressed up.
    with pytest.raises(sa.exc.IntegrityError), writing(engine) as session:
        session.add(rows.prediction("i", status="perhaps"))
    with pytest.raises(sa.exc.StatementError), writing(engine) as session:
        session.add(rows.image(created_at=datetime(2026, 11, 20)))


def test_ping_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "ekiben.db"
    broken.write_bytes(b"this is not a database" * 100)
    for url, words in (
        (f"postgresql://somebody:hunter2@127.0.0.1:{free_port()}/d", "the database is unreachable"),
        (f"sqlite:///{broken}", "the database is damaged"),
    ):
        caplog.clear()
        monkeypatch.setattr(sessions._broken, "_at", -1e9)
        with caplog.at_level(logging.WARNING), pytest.raises(Unavailable) as refused:
            ping(connect(url))
        assert refused.value.message == words
        assert refused.value.__cause__ is None and refused.value.__suppress_context__
        (line,) = caplog.records
        cause = line.cause  # type: ignore[attr-defined]
        assert ("Connection refused" in cause or "not a database" in cause) and "hunter2" not in cause


def test_postgres_stopped_and_started(tmp_path: Path) -> None:
    with postgres() as server:
        if server.stop is None or server.start is None:
            pytest.skip("the PostgreSQL of EKIBEN_TEST_PG_URL is not ours to stop")
        engine = connect(server.url)
        ping(engine)
        server.stop()
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(Unavailable):
                ping(engine)
            with (
                pytest.raises(Unavailable, match=r"^the database is unreachable$"),
                refusing(),
                Session(engine) as session,
            ):
                session.exec(select(Image)).all()
        assert time.monotonic() - began < 5
        server.start()
        ping(engine)  # connections of before are not handed out again
        engine.dispose()


@pytest.mark.parametrize(
    ("code", "kind", "refused"),
    [
        ("53100", StorageFull, "storage_full"),
        ("XX001", Unavailable, "database_damaged"),
        ("XX002", Unavailable, "database_damaged"),
        ("25006", Unavailable, "unavailable"),
    ],
)
def test_what_postgres_says_of_space_and_damage(
    migrated_postgres: str, code: str, kind: type[Unavailable], refused: str
) -> None:
    engine = connect(migrated_postgres)
    with pytest.raises(kind) as told, writing(engine) as session:
        session.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{code}'; END $$"))
    assert told.value.code == refused
    assert isinstance(told.value, StorageFull) == (code == "53100")
    engine.dispose()
