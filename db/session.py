"""Access to the database: the engine of a process, transactions, and errors of the driver as refusals."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import orjson
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlmodel import Session

from ekiben.disk_full import is_disk_full
from ekiben.errors import BadInput, Conflict, Refusal, StorageFull, Unavailable
from ekiben.logs import SeldomLine

log = logging.getLogger(__name__)

UNREACHABLE = "the database is unreachable"
FULL = "the database has no space left"
READ_ONLY = "the database can be read, but not written"
DAMAGED = "the database is damaged"
DATABASE_DAMAGED = "database_damaged"
"""Code of the refusal."""

BUSY_MS = 10_000
_full = SeldomLine(log, logging.WARNING, FULL)
_broken = SeldomLine(log, logging.ERROR, DAMAGED)
# 23001 and TRIGGER: what ON DELETE RESTRICT raises.
_FOREIGN = {"23503", "23001", "SQLITE_CONSTRAINT_FOREIGNKEY", "SQLITE_CONSTRAINT_TRIGGER"}
# 53100: disk_full. SHMSIZE: the index of the write-ahead log cannot grow.
_NO_SPACE = {"53100", "SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"}
_NOT_WRITABLE = ("25006", "SQLITE_READONLY")  # 25006: read_only_sql_transaction, as of a standby
_BROKEN = ("XX001", "XX002", "SQLITE_CORRUPT", "SQLITE_NOTADB")  # XX: data and index of PostgreSQL
# Of damaged values and names, which SQLite does not look at: text that is not UTF-8, JSON that is none.
_GARBLED = (UnicodeDecodeError, orjson.JSONDecodeError)
_UNIQUE = {"23505", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"}


_LIMITS = (
    "-c statement_timeout=15000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=20000 "
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=2"
)


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
        event.listen(engine, "handle_error", _note_damage)
        return engine
    arguments = postgres_arguments(limits="options" not in parsed.query)  # options in the URL replace these
    engine = sa.create_engine(
        parsed, pool_size=8, max_overflow=16, pool_pre_ping=True, connect_args=arguments, **common
    )
    event.listen(engine, "handle_error", _note_damage)
    return engine


def make_folder(url: sa.URL) -> None:
    """Make the folder of a SQLite file. Unavailable when that is not possible."""
    try:
        Path(url.database or "").absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull(FULL) from None
        raise Unavailable(f"the folder of the database cannot be made: {error}") from None


def postgres_arguments(*, limits: bool = True) -> dict[str, Any]:
    """Arguments of libpq: connections to a silent host end within 8 s.

    With ``limits`` the server ends statements after 15 s, and sessions that are silent in a transaction for 20 s, or
    whose machine is for 9 s: they would hold their locks.
    """
    arguments: dict[str, Any] = {
        "connect_timeout": 3,
        "application_name": "ekiben",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "tcp_user_timeout": 8_000,
    }
    if limits:
        arguments["options"] = _LIMITS
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
    refuse_damaged(engine)
    immediate = engine.execution_options(immediate=True)
    with refusing(), Session(immediate, expire_on_commit=False) as session, session.begin():
        yield session


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn the driver's errors into refusals (``as_refusal``) and log their cause."""
    try:
        yield
    except (exc.SQLAlchemyError, *_GARBLED) as error:
        refusal = as_refusal(error)
        if refusal is None:
            raise
        raise refusal from None


def as_refusal(error: Exception) -> Refusal | None:
    """The refusal for a database error, without the driver's message; None for an error of this code.

    StorageFull: out of space. Unavailable: unreachable, out of time, read-only, or damaged (code DATABASE_DAMAGED).
    Conflict: a row is referred to, is gone, or exists already.
    """
    if isinstance(error, _GARBLED):
        log.error(DAMAGED, exc_info=error)
        return Unavailable(DAMAGED, code=DATABASE_DAMAGED, retry_after_s=60)
    code = error_code(error)
    if isinstance(error, exc.IntegrityError):
        if code in _FOREIGN:
            return Conflict("something these records refer to is gone, or something still refers to them")
        return Conflict("these records exist already") if code in _UNIQUE else None
    if is_broken(code):
        _broken.write(cause=_cause(error))
        return Unavailable(DAMAGED, code=DATABASE_DAMAGED, retry_after_s=60)
    if is_out_of_space(code):
        _full.write(cause=_cause(error))
        return StorageFull(FULL)
    if code.startswith(_NOT_WRITABLE):
        log.warning(READ_ONLY, extra={"cause": _cause(error)})
        return Unavailable(READ_ONLY)
    lost = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    if lost or isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError):
        return _unreachable(error)
    return None


def error_code(error: BaseException) -> str:
    """The SQLSTATE of PostgreSQL or the name of SQLite's result code; empty where there is none."""
    cause = getattr(error, "orig", None) or error
    return str(getattr(cause, "pgcode", None) or getattr(cause, "sqlite_errorname", None) or "")


def is_broken(code: str) -> bool:
    """Whether an error code says that the database is damaged."""
    # SQLite's extended codes begin with those that they extend: SQLITE_CORRUPT_INDEX.
    return code.startswith(_BROKEN)


def is_out_of_space(code: str) -> bool:
    """Whether an error code says that the database has no space left."""
    return code in _NO_SPACE


def _cause(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip()


def _unreachable(error: Exception) -> Unavailable:
    log.warning(UNREACHABLE, extra={"cause": _cause(error)})
    return Unavailable(UNREACHABLE)


_damaged: WeakKeyDictionary[sa.Dialect, str] = WeakKeyDictionary()
"""The driver's words by dialect, which an engine shares with those made of it."""


def _note_damage(context: sa.ExceptionContext) -> None:
    if is_broken(error_code(context.original_exception)):
        _damaged.setdefault(context.dialect, _cause(context.original_exception))


def refuse_damaged(engine: sa.Engine) -> None:
    """Unavailable after this process has met damage: what is written into such a file may be lost with it."""
    if (damage := _damaged.get(engine.dialect)) is not None:
        raise Unavailable(f"{DAMAGED}: {damage}", code=DATABASE_DAMAGED, retry_after_s=60)


def ping(engine: sa.Engine) -> None:
    """Run a query that the database has to look up. Unavailable when it fails, and for ever after a query of this
    process has met damage: most of a damaged database may still be read."""
    refuse_damaged(engine)
    # SELECT 1 does not touch a SQLite file; the schema's version does.
    query = "PRAGMA schema_version" if engine.dialect.name == "sqlite" else "SELECT 1"
    with _any_failure(), engine.connect() as connection:
        connection.exec_driver_sql(query).scalar_one()


def check_writes(engine: sa.Engine) -> None:
    """Write something small. Unavailable when that fails, StorageFull for want of space; raises as ``ping``, too."""
    ping(engine)
    if engine.dialect.name != "sqlite":
        with _any_failure():
            try:
                with engine.begin() as connection:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = 1000")
                    connection.exec_driver_sql("UPDATE registry_revision SET revision = revision")
            except exc.DBAPIError as error:
                if error_code(error) != "55P03":  # locked: another process writes, so it can be written
                    raise
        return
    path = engine.url.database
    if path is None or not Path(path).is_file():
        raise Unavailable(f"the file of the database is gone: {path}", code=DATABASE_DAMAGED, retry_after_s=60)
    with _any_failure(), engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA busy_timeout=1000")
        try:
            # A number in the file's header that neither SQLite nor Ekiben reads.
            number = driver.execute("PRAGMA user_version").fetchone()[0]
            driver.execute(f"PRAGMA user_version={(number + 1) % 2**30}")
        except sqlite3.Error as error:
            if error_code(error) != "SQLITE_BUSY":  # another process writes: so it can be written
                raise exc.OperationalError(None, None, error) from error
        finally:
            driver.execute(f"PRAGMA busy_timeout={BUSY_MS}")


@contextlib.contextmanager
def _any_failure() -> Iterator[None]:
    try:
        yield
    except (exc.SQLAlchemyError, *_GARBLED) as error:
        raise as_refusal(error) or _unreachable(error) from None
