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


class Heartbeat:
    """A thread that records every BEAT_S seconds that this worker is alive, and how many items it has claimed.

    ``running``: counts them. ``buried``: called when another process has declared this worker dead.
    """

    def __init__(
        self, workers: Workers, worker_id: str, running: Callable[[], int], buried: Callable[[], object]
    ) -> None:
        self._workers = workers
        self._worker_id = worker_id
        self._running = running
        self._buried = buried
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.steady_since = time.monotonic()
        """By ``time.monotonic()``: since then every beat was recorded."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; waits up to 5 s for it."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                alive = self._workers.beat(self._worker_id, self._running())
            except Exception as error:
                log.warning("heartbeat not recorded: %s", error)
                self.steady_since = time.monotonic()
                continue
            if not alive:
                log.error(
                    "this worker was declared dead and its work taken over: it ends", extra={"id": self._worker_id}
                )
                self._buried()
