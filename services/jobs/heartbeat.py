"""The heartbeat of a worker: a thread that tells the database that it lives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from db.workers import Workers

log = logging.getLogger(__name__)

BEAT_S = 2.0


class Heartbeat:
    """A thread that says every BEAT_S that this worker lives. ``buried``: called when others took it for dead."""

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
        """Since then every beat was heard."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                alive = self._workers.beat(self._worker_id, self._running())
            except Exception as error:
                log.warning("not heard: %s", error)
                self.steady_since = time.monotonic()
                continue
            if not alive:
                log.error("others took this worker for dead, and its work over: it ends", extra={"id": self._worker_id})
                self._buried()
