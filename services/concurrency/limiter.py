"""A limiter of concurrent items: many at once, or one alone that may kill the process."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Permit:
    """The right to run one item. ``leave`` may be called early, and more than once."""

    def __init__(self, limiter: ConcurrencyLimiter, *, heavy: bool, exclusive: bool) -> None:
        self._limiter: ConcurrencyLimiter | None = limiter
        self.heavy = heavy
        self.exclusive = exclusive

    def leave(self) -> None:
        """Give the permit back."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._left(self)


_Waiting = tuple[int, "asyncio.Future[Permit]"]


class ConcurrencyLimiter:
    """Bounds the items that run at once: ``max_items`` permits, of them ``max_heavy`` for heavy items. For one event
    loop."""

    def __init__(self, max_items: int, max_heavy: int) -> None:
        self.max_items = max_items
        self.max_heavy = max_heavy
        self._inside = 0
        self._heavy_inside = 0
        self._exclusive_inside = False
        self._numbers = itertools.count()
        self._exclusive: deque[_Waiting] = deque()
        self._waiting: dict[bool, deque[_Waiting]] = {False: deque(), True: deque()}  # by whether they are heavy

    @property
    def inside(self) -> int:
        """How many permits are held."""
        return self._inside

    @asynccontextmanager
    async def acquire(self, *, heavy: bool = False, exclusive: bool = False) -> AsyncIterator[Permit]:
        """Wait for a permit, and hold it within the block.

        An ``exclusive`` permit is held alone; while one is waited for, no other is given.
        """
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        (self._exclusive if exclusive else self._waiting[heavy]).append((next(self._numbers), future))
        self._admit_waiting()
        try:
            permit = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().leave()  # admitted and cancelled in one moment
            self._admit_waiting()
            raise
        try:
            yield permit
        finally:
            permit.leave()

    def _left(self, permit: Permit) -> None:
        self._inside -= 1
        self._heavy_inside -= permit.heavy
        if permit.exclusive:
            self._exclusive_inside = False
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        while not self._exclusive_inside:
            if _head(self._exclusive) is not None:
                if self._inside:
                    return
                self._admit(self._exclusive, heavy=False, exclusive=True)
                continue
            if self._inside >= self.max_items:
                return
            light, heavy = _head(self._waiting[False]), _head(self._waiting[True])
            if heavy is not None and self._heavy_inside >= self.max_heavy:
                heavy = None
            if light is None and heavy is None:
                return
            is_heavy = light is None or (heavy is not None and heavy < light)  # the earlier arrival
            self._admit(self._waiting[is_heavy], heavy=is_heavy, exclusive=False)

    def _admit(self, waiting: deque[_Waiting], *, heavy: bool, exclusive: bool) -> None:
        _, future = waiting.popleft()
        self._inside += 1
        self._heavy_inside += heavy
        self._exclusive_inside = exclusive
        future.set_result(Permit(self, heavy=heavy, exclusive=exclusive))


def _head(waiting: deque[_Waiting]) -> int | None:
    """The arrival number of the first that still waits; cancelled ones are dropped."""
    while waiting and waiting[0][1].done():
        waiting.popleft()
    return waiting[0][0] if waiting else None
