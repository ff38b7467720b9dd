"""Whether anybody has written into the database since the last look."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import sqlalchemy as sa
from sqlalchemy import exc

_SNAPSHOT = "SELECT txid_current_snapshot()::text"


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
