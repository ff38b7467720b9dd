"""Access to the database: the engine of a process, transactions, errors of the driver as refusals, and whether anybody
has written."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlmodel import Session

from ekiben.errors import BadInput, Conflict, Refusal, Unavailable

log = logging.getLogger(__name__)

UNREACHABLE = "the database is unreachable"
BUSY_MS = 10_000
_SNAPSHOT = "SELECT txid_current_snapshot()::text"
# 23001 and TRIGGER: what ON DELETE RESTRICT raises.
_FOREIGN = {"23503", "23001", "SQLITE_CONSTRAINT_FOREIGNKEY", "SQLITE_CONSTRAINT_TRIGGER"}
_UNIQUE = {"23505", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"}


def parse_url(url: str) -> sa.URL:
    """The URL with the driver that Ekiben uses. BadInput for anything but a SQLite file or PostgreSQL."""
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise BadInput("the database URL is none: sqlite:///file or postgresql://user:password@host/name") from None
    match parsed.get_backend_name():
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
                raise BadInput("the SQLite database must be a file: every process has to see the same rows")
            return parsed.set(drivername="sqlite")
        case "postgresql" | "postgres":
            # SQLAlchemy 2.1 would use psycopg 3 when no driver is named.
            return parsed.set(drivername="postgresql+psycopg2")
        case other:
            raise BadInput(f"the database must be SQLite or PostgreSQL, not {other}")


def connect(url: str) -> sa.Engine:
    """The engine of this process; nothing is connected yet. Call it once per process, and never before a fork.

    BadInput for a URL that cannot be used; Unavailable when the folder of a SQLite file cannot be made.
    """
    parsed = parse_url(url)
    common: dict[str, Any] = {
        "json_serializer": lambda value: orjson.dumps(value).decode(),
        "json_deserializer": orjson.loads,
        "hide_parameters": True,  # errors are logged, users' data must not be
        "pool_timeout": 5,
    }
    if parsed.get_backend_name() == "sqlite":
        make_folder(parsed)
        engine = sa.create_engine(
            parsed, pool_size=8, max_overflow=32, connect_args={"check_same_thread": False}, **common
        )
        event.listen(engine, "connect", _open_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    arguments = postgres_arguments(limits="options" not in parsed.query)  # options in the URL replace these
    return sa.create_engine(parsed, pool_size=8, max_overflow=16, pool_pre_ping=True, connect_args=arguments, **common)


def make_folder(url: sa.URL) -> None:
    """Make the folder of a SQLite file. Unavailable when that is not possible."""
    try:
        Path(url.database or "").absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("the folder of the database cannot be made", extra={"cause": str(error)})
        raise Unavailable(UNREACHABLE) from None


def postgres_arguments(*, limits: bool = True) -> dict[str, Any]:
    """Arguments of libpq: connections to a silent host end within 8 s, and with ``limits`` statements after 15 s."""
    arguments: dict[str, Any] = {
        "connect_timeout": 3,
        "application_name": "ekiben",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "tcp_user_timeout": 8_000,
    }
    if limits:
        arguments["options"] = "-c statement_timeout=15000 -c lock_timeout=5000"
    return arguments


def _open_sqlite(connection: sqlite3.Connection, record: object) -> None:
    # The driver would begin a transaction at its first write, after its reads: _begin_sqlite begins it instead.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    set_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")  # a response is sent only once its row survives a power cut
    connection.execute("PRAGMA foreign_keys=ON")


def set_wal(connection: sqlite3.Connection) -> None:
    """Put a SQLite file into WAL mode, which is stored in the file."""
    deadline = time.monotonic() + BUSY_MS / 1000
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            # When two processes switch at once, SQLite does not wait here, whatever busy_timeout says.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and then writes fails at once when another wrote in between, without waiting
    # for busy_timeout. So a transaction that is going to write is begun as immediate.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[Session]:
    """A transaction that only reads. Its objects stay readable afterwards. Raises the refusals of ``as_refusal``."""
    with refusing(), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[Session]:
    """A transaction that writes, committed at the end; on SQLite no other writes meanwhile. Raises as ``reading``."""
    immediate = engine.execution_options(immediate=True)
    with refusing(), Session(immediate, expire_on_commit=False) as session, session.begin():
        yield session


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn the driver's errors into refusals (``as_refusal``) and log their cause."""
    try:
        yield
    except exc.SQLAlchemyError as error:
        refusal = as_refusal(error)
        if refusal is None:
            raise
        raise refusal from None


def as_refusal(error: Exception) -> Refusal | None:
    """The refusal for a database error, without the driver's message; None for an error of this code.

    Unavailable: unreachable, out of time or space. Conflict: a row is referred to, is gone, or exists already.
    """
    if isinstance(error, exc.IntegrityError):
        code = getattr(error.orig, "pgcode", None) or getattr(error.orig, "sqlite_errorname", None)
        if code in _FOREIGN:
            return Conflict("something these records refer to is gone, or something still refers to them")
        return Conflict("these records exist already") if code in _UNIQUE else None
    lost = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    if lost or isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError):
        return _unreachable(error)
    return None


def _unreachable(error: Exception) -> Unavailable:
    log.warning(UNREACHABLE, extra={"cause": str(getattr(error, "orig", None) or error).strip()})
    return Unavailable(UNREACHABLE)


def ping(engine: sa.Engine) -> None:
    """Run a query that the database has to look up. Unavailable when it fails."""
    # SELECT 1 does not touch a SQLite file; the schema's version does.
    query = "PRAGMA schema_version" if engine.dialect.name == "sqlite" else "SELECT 1"
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(query).scalar_one()
    except exc.SQLAlchemyError as error:  # of any kind, also for a file that is no database
        raise _unreachable(error) from None


class DatabaseChanges:
    """Tells a periodic reader when its query can be left out. Thread-safe; opens nothing before the first look.

    It holds a connection of its own. On SQLite ``PRAGMA data_version`` changes with every commit of another connection,
    of any process, and takes some microseconds. On PostgreSQL a snapshot changes with the begin and the end of every
    transaction that writes, in any database of the server: equal snapshots see equal rows.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: sqlite3.Connection | sa.Connection | None = None
        self._version: object = None
        self._lock = threading.Lock()

    def look(self) -> bool:
        """Whether there was a commit since the last look, or may have been; True for the first look.

        Look before the query: what is written between the two is found at the next look too.
        """
        with self._lock:
            try:
                version = self._read()
            except (sqlite3.Error, exc.SQLAlchemyError):  # the query itself will say what is wrong
                self._close()
                return True
            changed = version != self._version
            self._version = version
            return changed

    def close(self) -> None:
        """Close the connection; a later look opens another."""
        with self._lock:
            self._close()

    def _read(self) -> object:
        if self._engine.dialect.name == "sqlite":
            if not isinstance(self._connection, sqlite3.Connection):
                self._connection = sqlite3.connect(self._engine.url.database or "", check_same_thread=False)
            return self._connection.execute("PRAGMA data_version").fetchone()[0]
        if not isinstance(self._connection, sa.Connection):
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._connection.detach()  # the pool keeps its number
        return self._connection.exec_driver_sql(_SNAPSHOT).scalar_one()

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error, exc.SQLAlchemyError):
                self._connection.close()
        self._connection = self._version = None
