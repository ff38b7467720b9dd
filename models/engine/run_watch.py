"""Watches runs of users' graphs: one that takes too long is stopped, and does not hold up the others meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger(__name__)

LOOK_S = 0.1
_CPU_SHARE = 0.1  # of the limit, that the thread has to have computed: else the machine is busy, and not the graph slow
_HOPELESS = 10.0  # times the limit, after which that does not matter


@dataclass(slots=True, eq=False)
class WatchedRun:
    """One run. ``spent_s``: seconds so far, without those in which this process was kept from running.

    ``exceeded``: it was stopped because it took longer than ``limit_s``; ``stopped``: for whatever reason.
    ``alone``: no other was under way since it began.
    """

    limit_s: float
    overdue_s: float
    stop: Callable[[WatchedRun], None]
    thread: int
    clock: int
    cpu_before_s: float
    spent_s: float = 0.0
    overdue: bool = False
    exceeded: bool = False
    stopped: bool = False
    alone: bool = True


class RunWatch:
    """A thread that looks at the runs under way ten times a second; it sleeps while there are none.

    ``on_overdue`` is called once with the id of the thread whose run takes longer than expected.
    """

    def __init__(self, on_overdue: Callable[[int], None] = lambda _: None, look_s: float = LOOK_S) -> None:
        self._on_overdue = on_overdue
        self._look_s = look_s
        self._runs: set[WatchedRun] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def under_way(self) -> int:
        """Runs that are watched now."""
        return len(self._runs)

    @contextmanager
    def watching(self, limit_s: float, overdue_s: float, stop: Callable[[WatchedRun], None]) -> Iterator[WatchedRun]:
        """Watch the block, which runs on this thread. After ``limit_s`` another one calls ``stop``, once."""
        thread = threading.get_ident()
        run = WatchedRun(limit_s, overdue_s, stop, thread, time.pthread_getcpuclockid(thread), time.thread_time())
        with self._changed:
            self._runs.add(run)
            if len(self._runs) > 1:
                for one in self._runs:
                    one.alone = False
            closed = self._closed
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="run-watch", daemon=True)
                self._thread.start()
            elif len(self._runs) == 1:
                self._changed.notify()
        try:
            if closed:
                _stop([run])
            yield run
        finally:
            with self._changed:  # the clock of a thread that has ended must not be read
                self._runs.discard(run)

    def close(self) -> None:
        """Stop the runs under way, and every later one at once."""
        with self._changed:
            self._closed = True
            runs = list(self._runs)
        _stop(runs)

    def _look(self) -> None:
        while True:
            with self._changed:
                while not self._runs:
                    self._changed.wait()
            before = time.monotonic()
            time.sleep(self._look_s)
            # Where this thread was kept from running longer, the runs were too: the process was stopped, or starved.
            passed = min(time.monotonic() - before, 5 * self._look_s)
            with self._changed:
                for run in self._runs:
                    run.spent_s += passed
                overdue = [run for run in self._runs if not run.overdue and run.spent_s >= run.overdue_s]
                exceeded = [run for run in self._runs if not run.exceeded and _is_exceeded(run)]
            for run in overdue:
                run.overdue = True
                try:
                    self._on_overdue(run.thread)
                except Exception:
                    log.exception("nobody could be told of an overdue run")
            for run in exceeded:
                run.exceeded = True
            _stop(exceeded)


def _is_exceeded(run: WatchedRun) -> bool:
    if run.spent_s < run.limit_s:
        return False
    computed = time.clock_gettime(run.clock) - run.cpu_before_s
    return computed >= _CPU_SHARE * run.limit_s or run.spent_s >= _HOPELESS * run.limit_s


def _stop(runs: list[WatchedRun]) -> None:
    for run in runs:
        run.stopped = True
        try:
            run.stop(run)
        except Exception:
            log.exception("a run could not be stopped")
