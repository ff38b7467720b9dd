"""Which batch size pays: learned from what runs took, per model and device."""

from __future__ import annotations

from collections import deque
from statistics import median

# A larger batch is adopted only when an item gets this much cheaper; below it the longer wait is not worth it.
_GAIN = 0.9
# A smaller batch is taken back when an item costs at most this much more in it: it answers sooner.
_LOSS = 1.02
_SAMPLES = 3
_FIRST_RETRY, _LAST_RETRY = 32, 2048


class BatchSizer:
    """The size that makes an item cheapest, found by doubling and halving; sizes are powers of two.

    A trial of twice the size happens only when that many items wait anyway, so trying costs nobody a wait. A
    trial that did not pay is repeated after 32, 64, ... 2048 runs: machines and loads change. Not thread-safe;
    the batcher calls it under its lock.
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
        # A trial of twice the size may have begun before fewer waited: it must not keep the smaller one from its turn.
        if self._trial is None or self._trial > max(waiting, self.size):
            if self._runs >= self._next_up and self.size * 2 <= min(self.limit, waiting) and self._known(self.size):
                self._begin(self.size * 2)
            elif self.size > 1 and self._runs >= self._next_down and self._known(self.size):
                self._begin(self.size // 2)
        if self._trial is not None and waiting >= self._trial:
            return self._trial
        return min(waiting, self.size)

    def observe(self, count: int, seconds: float) -> None:
        """A batch of ``count`` items took ``seconds`` from the first preparation to the last answer."""
        self._runs += 1
        self._seconds.setdefault(count, deque(maxlen=2 * _SAMPLES + 1)).append(seconds)
        if count == self._trial and len(self._seconds[count]) >= _SAMPLES:
            self._conclude(count)

    def per_item_s(self) -> float | None:
        """Seconds one item takes in the sizes in use, or None before the first run."""
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
