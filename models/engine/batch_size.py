"""The batch size of a queue, learned from the times of its runs."""

from __future__ import annotations

from collections import deque
from statistics import median

# A larger batch is adopted when the time per item falls to this share or below; else the longer wait is not worth it.
_GAIN = 0.9
# A smaller batch is adopted when the time per item grows to this share at most: its results come sooner.
_LOSS = 1.02
_SAMPLES = 3
_FIRST_RETRY, _LAST_RETRY = 32, 2048


class BatchSizer:
    """The batch size with the least time per item, a power of two up to ``limit``, found by doubling and halving.

    A trial of twice the size happens only when that many items wait anyway, so no item waits for it. A trial without
    success is repeated after 32, 64, ... 2048 runs: machines and loads change. Not thread-safe; the batcher calls it
    under its lock.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 1
        self._seconds: dict[int, deque[float]] = {}
        self._runs = 0
        self._next_up = 0
        self._next_down = _FIRST_RETRY
        self._up_retry = self._down_retry = _FIRST_RETRY
        self._trial: int | None = None

    def take(self, waiting: int) -> int:
        """How many of the ``waiting`` items (at least 1) the next batch should hold."""
        if waiting <= 1:
            return 1
        # A larger trial may have begun when more items waited: it must not prevent a smaller one now.
        if self._trial is None or self._trial > max(waiting, self.size):
            if self._runs >= self._next_up and self.size * 2 <= min(self.limit, waiting) and self._known(self.size):
                self._begin(self.size * 2)
            elif self.size > 1 and self._runs >= self._next_down and self._known(self.size):
                self._begin(self.size // 2)
        if self._trial is not None and waiting >= self._trial:
            return self._trial
        return min(waiting, self.size)

    def observe(self, count: int, seconds: float) -> None:
        """Note that a batch of ``count`` items took ``seconds``, from the first preparation to the last result."""
        self._runs += 1
        self._seconds.setdefault(count, deque(maxlen=2 * _SAMPLES + 1)).append(seconds)
        if count == self._trial and len(self._seconds[count]) >= _SAMPLES:
            self._conclude(count)

    def per_item_s(self) -> float | None:
        """Median seconds per item at the current size (else at the largest one measured); None before the first run."""
        for count in (self.size, *sorted(self._seconds, reverse=True)):
            if self._seconds.get(count):
                return self._cost(count)
        return None

    def _begin(self, count: int) -> None:
        self._trial = count
        self._seconds.pop(count, None)

    def _conclude(self, count: int) -> None:
        self._trial = None
        if count > self.size:
            if self._cost(count) < _GAIN * self._cost(self.size):
                self.size, self._next_up, self._up_retry = count, self._runs, _FIRST_RETRY
                self._next_down = self._runs + self._down_retry
            else:
                self._next_up = self._runs + self._up_retry
                self._up_retry = min(2 * self._up_retry, _LAST_RETRY)
        elif self._cost(count) <= _LOSS * self._cost(self.size):
            self.size, self._next_down, self._down_retry = count, self._runs, _FIRST_RETRY
            self._next_up = self._runs + self._up_retry
        else:
            self._next_down = self._runs + self._down_retry
            self._down_retry = min(2 * self._down_retry, _LAST_RETRY)

    def _known(self, count: int) -> bool:
        return len(self._seconds.get(count, ())) >= _SAMPLES

    def _cost(self, count: int) -> float:
        return median(self._seconds[count]) / count
