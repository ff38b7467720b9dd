"""How long a process that ended waits before it is started again: at once, and longer when it ends again and again."""

from __future__ import annotations

import time
from collections.abc import Callable

DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before the first restart, the second one, ...; the last for all further ones."""

STEADY_S = 30.0
"""Seconds that a process has run after which its end is a first one again."""


class RestartDelay:
    """The delay of one process, or of several that do the same. ``clock``: seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._due = 0.0

    def ended(self, ran_s: float) -> float:
        """A process ended after ``ran_s`` seconds. Seconds until it is to be started again."""
        self._failures = 1 if ran_s > STEADY_S else self._failures + 1
        return self._wait()

    def not_started(self) -> None:
        """A start failed: the next attempt waits as long as this one did."""
        if self._failures:
            self._wait()

    def is_due(self) -> bool:
        """Whether a process that does not run is to be started now."""
        return self._clock() >= self._due

    def _wait(self) -> float:
        wait_s = DELAYS_S[min(self._failures, len(DELAYS_S)) - 1]
        self._due = self._clock() + wait_s
        return wait_s
