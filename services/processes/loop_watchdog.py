"""Watches an event loop: what holds it up, and with it all clients of the process, is logged while it does."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from services import metrics

log = logging.getLogger(__name__)

LIMIT_S = 0.25
"""Seconds that a callback of the loop may take."""

EVERY_S = 0.05
"""Seconds between two beats of the loop, and between two looks of the thread."""

_LOG_EVERY_S = 10.0  # between two stacks in the log; what comes between is counted
_FRAMES = 30
_ALSO_EVERY_S = 5.0


class LoopWatchdog:
    """Counts and logs callbacks of the running loop that take longer than ``limit_s``, to within ``every_s``.

    The loop notes the time every ``every_s`` seconds, less than ``limit_s``; a thread looks whether it has, and else
    logs the stack of the loop's thread. At 50 ms each takes about 0.15 % of a core. A call into C that keeps the
    interpreter locked keeps the thread from looking, too: the stack is then that of the moment when the call returns.
    Of a process that was itself kept from running (stopped, or starved of processor time) nothing is said.

    Each of ``also`` is called in the thread every five seconds. ``start`` and ``stop`` are for the loop's thread.
    """

    def __init__(
        self, limit_s: float = LIMIT_S, also: Sequence[Callable[[], None]] = (), *, every_s: float = EVERY_S
    ) -> None:
        self._limit_s = limit_s
        self._every_s = every_s
        self._also = also
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)
        self._timer: asyncio.TimerHandle | None = None
        self._beat = (0.0, 0.0)
        self._reported = 0.0  # the beat after which the loop was held up
        self._said = False
        self._log_from = 0.0
        self._unlogged = 0

    def start(self) -> None:
        """Watch the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._loop_thread)
        self._note()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopping.set()
        if self._timer is not None:
            self._timer.cancel()
        self._thread.join()

    def _note(self) -> None:
        now = time.monotonic()
        if self._reported and self._reported == self._beat[0]:
            seconds = now - self._reported
            metrics.loop_blocked_seconds.inc(seconds)
            if self._said:
                log.warning("the event loop goes on", extra={"seconds": round(seconds, 2)})
            self._said = False
        self._beat = (now, time.thread_time())
        self._timer = self._loop.call_later(self._every_s, self._note)

    def _watch(self) -> None:
        also_at = before = time.monotonic()
        while not self._stopping.wait(self._every_s):
            now = time.monotonic()
            beat, cpu = self._beat
            if beat != self._reported and is_held_up(
                now - beat, time.clock_gettime(self._clock) - cpu, now - before, self._limit_s, self._every_s
            ):
                self._reported = beat
                self._report(now - beat)
            if now >= also_at:
                also_at = now + _ALSO_EVERY_S
                for each in self._also:
                    each()
            before = time.monotonic()

    def _report(self, seconds: float) -> None:
        metrics.loop_blocked.inc()
        now = time.monotonic()
        frame = sys._current_frames().get(self._loop_thread)
        if now < self._log_from or frame is None:
            self._unlogged += 1
            return
        frames = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=_FRAMES, lookup_lines=False)
        stack = [f"{each.filename}:{each.lineno} {each.name}" for each in frames]
        extra = {"ms": round(seconds * 1e3), "stack": stack, "unlogged": self._unlogged}
        self._said, self._unlogged, self._log_from = True, 0, now + _LOG_EVERY_S
        log.warning("the event loop is held up", extra=extra)


def is_held_up(since_s: float, cpu_s: float, slept_s: float, limit_s: float, every_s: float = EVERY_S) -> bool:
    """Whether a callback has taken longer than ``limit_s``.

    ``since_s``: since the loop's last beat; ``cpu_s``: the processor time of its thread since then; ``slept_s``: how
    long the watching thread slept. If that was kept from running too, only processor time tells work from a pause.
    """
    if since_s < limit_s + every_s:
        return False
    return slept_s < limit_s or cpu_s >= limit_s
