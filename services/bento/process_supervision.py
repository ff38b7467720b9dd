"""How BentoML's supervising process watches the processes that serve: often, and without a crash loop.

BentoML has circus look every 10 s, and restart what has ended at every look. Here it looks every LOOK_S, and a process
that ends again and again waits longer each time (services/concurrency/restart_delay.py).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from bentoml._internal.utils import circus as bento_circus
from circus.process import DEAD_OR_ZOMBIE, UNEXISTING  # type: ignore[import-untyped]

from ekiben.parent_process import SUPERVISOR_PID
from services.concurrency.restart_delay import RestartDelay

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Seconds between looks; one takes less than a millisecond."""


class SupervisingArbiter(bento_circus.Arbiter):
    """circus' arbiter, which starts a process that ended within LOOK_S and the delay of its restart."""

    delay: RestartDelay
    _seen: frozenset[int] = frozenset()  # pids of dead processes whose end was logged

    def __init__(self, *args: Any, clock: Callable[[], float] = time.monotonic, **given: Any) -> None:
        super().__init__(*args, **{**given, "check_delay": LOOK_S})
        self.delay = RestartDelay(clock)

    def manage_watchers(self) -> Any:
        """Start again what has ended and is due. circus calls it every LOOK_S, and awaits what is not None."""
        if self._exclusive_running_command is not None or self._stopping:
            return None  # it starts, stops or restarts now, and would refuse this with an exception
        watchers = list(self.iter_watchers())
        dead = {
            process.pid: process
            for watcher in watchers
            for process in watcher.processes.values()
            if process.status in (DEAD_OR_ZOMBIE, UNEXISTING)
        }
        for pid in dead.keys() - self._seen:
            ran_s = dead[pid].age()
            log.warning(
                "a process that serves ended, and is started again",
                extra={"pid": pid, "ran_s": round(ran_s, 1), "in_s": self.delay.ended(ran_s)},
            )
        self._seen = frozenset(dead)
        short = dead or any(len(watcher.processes) < watcher.numprocesses for watcher in watchers)
        return super().manage_watchers() if short and self.delay.is_due() else None


def supervise_closely() -> None:
    """Have BentoML make its arbiter as this module says. To be called in its supervising process, before that."""
    os.environ[SUPERVISOR_PID] = str(os.getpid())  # inherited by the processes that serve
    bento_circus.Arbiter = SupervisingArbiter  # type: ignore[misc]
