"""Standby: while no job is open, a worker does not poll the queue; it looks for an open job, which costs next to
nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ekiben.errors import Refusal

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""Seconds between looks for a job on standby: as often as the queue of requests is polled otherwise. A look costs
next to nothing while nobody writes (db/session.py)."""

IDLE_S = 60.0
"""Seconds without an open job after which a worker goes on standby. Polling the queues is three quarters of an idle
worker's processor time; to begin again takes about 30 ms of it, and a job that ends this pause waits so much longer."""

OPEN_LOOK_S = 5.0
"""Seconds between looks whether a job is still open."""

_STOP_S = 2.0  # for an entry that was taken in the last moment


class Consumer(Protocol):
    """What takes entries from the queue between ``start`` and ``stop``, any number of times (QueueConsumer)."""

    def start(self) -> None:
        """Take entries from now on."""

    def stop(self, patience_s: float) -> None:
        """Take no more entries; wait up to ``patience_s`` seconds for those that are worked on."""


class QueueStandby:
    """A thread that starts ``consumer`` when a job is open, and stops it IDLE_S seconds after the last one ended.

    ``any_open``: whether a job that this worker can work on is queued or running. ``changed``: whether that may have
    changed since it was last called. ``clock``: seconds that never go back.
    """

    def __init__(
        self,
        consumer: Consumer,
        any_open: Callable[[], bool],
        changed: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._consumer = consumer
        self._any_open = any_open
        self._changed = changed
        self._clock = clock
        self._consuming = False
        self._unseen = True  # a change was reported whose look failed, or nothing was looked at yet
        self._open_at = 0.0
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="queue-standby", daemon=True)

    @property
    def consuming(self) -> bool:
        """Whether entries are taken from the queue."""
        return self._consuming

    def start(self) -> None:
        """Look for the first time, and start the thread. Raises what starting the consumer raises."""
        self.look()
        self._thread.start()

    def stop(self, patience_s: float) -> None:
        """Take no more entries; wait up to ``patience_s`` seconds for those that are worked on.

        Not to be called in a coroutine.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._consuming:
            self._consuming = False
            self._consumer.stop(patience_s)

    def look(self) -> float:
        """Look for open jobs, and start or stop the consumer; the seconds until the next look. Blocks."""
        if self._consuming:
            if self._any_open():
                self._open_at = self._clock()
            elif self._clock() - self._open_at >= IDLE_S:
                # An entry that is taken at this moment is worked on all the same, and kept for the next start.
                self._unseen = True
                try:
                    self._consumer.stop(_STOP_S)
                finally:
                    self._consuming = False
                log.info("on standby: no job is open")
                return LOOK_S
            return OPEN_LOOK_S
        if self._changed():
            self._unseen = True
        if not self._unseen:
            return LOOK_S
        if self._any_open():
            self._consumer.start()
            self._consuming, self._open_at = True, self._clock()
            log.info("taking jobs from the queue")
            return OPEN_LOOK_S
        self._unseen = False
        return LOOK_S

    def _run(self) -> None:
        wait_s = LOOK_S
        while not self._stop.wait(wait_s):
            wait_s = LOOK_S
            try:
                wait_s = self.look()
                self._failing = False
            except Refusal as error:
                self._say_once("the queue is not looked at: %s", error)
            except Exception:
                self._say_once("the queue is not looked at", exc_info=True)

    def _say_once(self, message: str, *given: object, exc_info: bool = False) -> None:
        if not self._failing:
            log.warning(message, *given, exc_info=exc_info)
        self._failing = True
