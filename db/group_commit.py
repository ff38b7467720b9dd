"""Group commit: one thread stores all waiting rows in one transaction, as a commit costs more than rows."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, cast

import sqlalchemy as sa
from sqlmodel import SQLModel

from db.job_states import ItemResult, finish_items, lock_all
from db.session import as_refusal, ping, refuse_damaged
from db.tables import Row
from ekiben.errors import Overloaded, StorageFull, Unavailable

log = logging.getLogger(__name__)

MAX_BACKLOG = 10_000  # units that may wait
MAX_GROUP = 256  # units of one transaction: bounds how long other processes wait for SQLite's one writer
_LOOK_S = 0.02  # how often a delayed group checks whether more is to come
GROUP_AT = 64  # units that are stored without any delay
PATIENCE_S = 2.0  # a group that failed after this long is not tried again in parts

Values = tuple[type[SQLModel], dict[str, Any]]
"""A row as its table and all its columns by name: building a SQLModel object costs ten times as much."""

_Unit = tuple[Sequence[SQLModel | Values], "Future[None]", ItemResult | None]


class GroupCommit:
    """Stores units of rows, each as a whole or not at all. Its thread starts with the first unit."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay_s = 0.0
        self._more_to_come: Callable[[], bool] = bool
        self._engine = engine.execution_options(immediate=True)
        # Tables in the order of their foreign keys: rows that others refer to come first.
        self._inserts = {table: sa.insert(table) for table in Row.metadata.sorted_tables}
        self._columns = {table: tuple(table.columns.keys()) for table in self._inserts}
        self._waiting: deque[_Unit] = deque()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def save(self, rows: Sequence[SQLModel | Values], then: ItemResult | None = None) -> Future[None]:
        """A future that is done once the rows of this unit are on disk; ``then`` ends an item in their transaction.

        Does not block, so it may be called on an event loop. The rows must not be changed afterwards. A future that is
        cancelled before its turn is not stored. The future fails with Unavailable, or with Conflict when a row exists
        already, refers to one that is gone, or the item is not claimed by its worker any more. Raises Overloaded when
        10,000 units wait, Unavailable after ``close``.
        """
        future: Future[None] = Future()
        with self._change:
            if self._closed:
                raise Unavailable("the server is stopping")
            if len(self._waiting) >= MAX_BACKLOG:
                raise Overloaded("too many records wait to be stored", retry_after_s=1)
            self._waiting.append((rows, future, then))
            self._start()
            self._change.notify()
        return future

    def delay(self, seconds: float, more_to_come: Callable[[], bool]) -> None:
        """From now on let a unit wait up to ``seconds`` for others, where no request waits for its rows.

        It waits only while ``more_to_come()`` is true, which is called on the writer's thread.
        """
        self._delay_s, self._more_to_come = seconds, more_to_come

    def start(self) -> None:
        """Start the thread now: it gets the priority of the calling thread."""
        with self._change:
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="records-writer", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Store the waiting units and end the thread. Units not stored after ``timeout_s`` fail with Unavailable."""
        with self._change:
            self._closed = True
            self._change.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        _resolve(self._take(MAX_BACKLOG), Unavailable("the server is stopping"))

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                until = self._clock() + self._delay_s
                while self._clock() < until and len(self._waiting) < GROUP_AT and self._more_to_come():
                    if self._closed:
                        break
                    self._change.wait(min(_LOOK_S, until - self._clock()))
            units = self._take(MAX_GROUP)
            try:
                self._store(units, self._clock())
            except Exception as error:  # of any kind: no future may stay pending for ever
                log.exception("records could not be stored")
                _resolve(units, error)

    def _take(self, limit: int) -> list[_Unit]:
        with self._change:
            taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        return [unit for unit in taken if unit[1].set_running_or_notify_cancel()]

    def _store(self, units: list[_Unit], began_s: float) -> None:
        """One transaction for all; if it fails, one for each half: a bad unit fails alone after log2(n) rounds."""
        if not units:
            return
        try:
            self._insert(units)
        except Exception as error:
            refusal = as_refusal(error)
            if isinstance(refusal, StorageFull) or (isinstance(refusal, Unavailable) and self._is_down(began_s)):
                # All waiting units fail now: one after the other each would wait for a timeout of its own.
                _resolve([*units, *self._take(MAX_BACKLOG)], refusal)
            elif len(units) == 1:
                _resolve(units, refusal or error)
            else:
                half = len(units) // 2
                self._store(units[:half], began_s)
                self._store(units[half:], began_s)
        else:
            _resolve(units, None)

    def _insert(self, units: list[_Unit]) -> None:
        # Core's executemany with plain dicts: an ORM session costs several times as much.
        values: dict[sa.Table, list[dict[str, Any]]] = {}
        for rows, _, _ in units:
            for row in rows:
                kind, given = row if isinstance(row, tuple) else (type(row), row.__dict__)
                table = cast(sa.Table, kind.__table__)  # type: ignore[attr-defined]
                values.setdefault(table, []).append({name: given.get(name) for name in self._columns[table]})
        refuse_damaged(self._engine)
        with self._engine.begin() as connection:
            # Jobs before anything else: the removal of a job locks it first, and then its images.
            results = [then for _, _, then in units if then is not None]
            lock_all(connection, [result.job_id for result in results])
            for table, statement in self._inserts.items():
                if table in values:
                    connection.execute(statement, values[table])
            if results:
                finish_items(connection, results)

    def _is_down(self, began_s: float) -> bool:
        if self._clock() - began_s > PATIENCE_S:
            return True
        try:
            ping(self._engine)
        except Unavailable:
            return True
        return False


def _resolve(units: Sequence[_Unit], error: Exception | None) -> None:
    for _, future, _ in units:
        # A unit that close() gave up may have been resolved already.
        with contextlib.suppress(InvalidStateError):
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
