"""The heartbeat of a worker: a thread that records in the database that it is alive."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from db.workers import Workers

log = logging.getLogger(__name__)

BEAT_S = 2.0

DEAD_S = 8.0
"""Seconds without a heartbeat after which a worker is dead."""


PAUSE_S = DEAD_S - 2 * BEAT_S
"""Seconds between two looks at the clocks after which this machine, or its processes, stood still meanwhile: the beats
of other workers are as old then, and no worse sign than this worker's own."""


def clocks() -> tuple[float, ...]:
    """Clocks in seconds: one or the other stands still with the machine, is set forward, or runs on."""
    # Monotonic time leaves out the sleep of the machine; the time of the day is that of the heartbeats in SQLite.
    asleep = (time.clock_gettime(time.CLOCK_BOOTTIME),) if hasattr(time, "CLOCK_BOOTTIME") else ()
    return (time.monotonic(), time.time(), *asleep)


class Heartbeat:
    """A thread that records every BEAT_S seconds that this worker is alive, and how many items it has claimed.

    ``running``: counts them. ``buried``: called when another process has declared this worker dead.
    """

    def __init__(
        self,
        workers: Workers,
        worker_id: str,
        running: Callable[[], int],
        buried: Callable[[], object],
        clocks: Callable[[], tuple[float, ...]] = clocks,
    ) -> None:
        self._workers = workers
        self._worker_id = worker_id
        self._running = running
        self._buried = buried
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.steady_since = time.monotonic()
        """By ``time.monotonic()``: since then every beat was recorded."""
        self._clocks = clocks
        self._looked = clocks()
        self._looking = threading.Lock()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; waits up to 5 s for it."""
        self._stop.set()
        self._thread.join(5)

    def steady_s(self) -> float:
        """Seconds for which every beat was recorded, and nothing stood still. Thread-safe."""
        with self._looking:
            before, self._looked = self._looked, self._clocks()
            pause_s = max(now - then for then, now in zip(before, self._looked, strict=True))
            if pause_s > PAUSE_S:
                log.warning(
                    "this worker stood still, waited for the database, or its clock was set: it declares nobody dead "
                    "for a while",
                    extra={"seconds": round(pause_s, 1)},
                )
                self.steady_since = time.monotonic()
            return time.monotonic() - self.steady_since

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            self.steady_s()
            try:
                alive = self._workers.beat(self._worker_id, self._running())
            except Exception as error:
                log.warning("heartbeat not recorded: %s", error)
                with self._looking:
                    self._looked, self.steady_since = self._clocks(), time.monotonic()
                continue
            if not alive:
                log.error(
                    "this worker was declared dead and its work taken over: it ends", extra={"id": self._worker_id}
                )
                self._buried()
