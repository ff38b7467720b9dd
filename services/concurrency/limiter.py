"""The limiter of a worker: many items at once, or one that may kill the process and is let through exclusive."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Permit:
    """A place inside. ``leave`` may be called early, and more than once."""

    def __init__(self, limiter: ConcurrencyLimiter, *, heavy: bool, exclusive: bool) -> None:
        self._limiter: ConcurrencyLimiter | None = limiter
        self.heavy = heavy
        self.exclusive = exclusive

    def leave(self) -> None:
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._left(self)


_Waiting = tuple[int, "asyncio.Future[Permit]"]


class ConcurrencyLimiter:
    """Bounds the items at once: ``places``, and of ``heavy`` ones fewer. On one event loop."""

    def __init__(self, places: int, heavy_places: int) -> None:
        self.places = places
        self.heavy_places = heavy_places
        self._inside = 0
        self._heavy_inside = 0
        self._exclusive_inside = False
        self._numbers = itertools.count()
        self._exclusive: deque[_Waiting] = deque()
        self._waiting: dict[bool, deque[_Waiting]] = {False: deque(), True: deque()}  # by whether they are heavy

    @property
    def inside(self) -> int:
        """How many hold a place."""
        return self._inside

    @asynccontextmanager
    async def acquire(self, *, heavy: bool = False, exclusive: bool = False) -> AsyncIterator[Permit]:
        """Wait for a permit, and hold it. An ``exclusive`` one is held alone, and whoever waits for one is next."""
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        (self._exclusive if exclusive else self._waiting[heavy]).append((next(self._numbers), future))
        self._let_in()
        try:
            place = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().leave()  # let in and cancelled in the same moment
            self._let_in()
            raise
        try:
            yield place
        finally:
            place.leave()

    def _left(self, place: Permit) -> None:
        self._inside -= 1
        self._heavy_inside -= place.heavy
        if place.exclusive:
            self._exclusive_inside = False
        self._let_in()

    def _let_in(self) -> None:
        while not self._exclusive_inside:
            if _head(self._exclusive) is not None:
                if self._inside:
                    return
                self._admit(self._exclusive, heavy=False, exclusive=True)
                continue
            if self._inside >= self.places:
                return
            light, heavy = _head(self._waiting[False]), _head(self._waiting[True])
            if heavy is not None and self._heavy_inside >= self.heavy_places:
                heavy = None
            if light is None and heavy is None:
                return
            is_heavy = light is None or (heavy is not None and heavy < light)  # whoever came first
            self._admit(self._waiting[is_heavy], heavy=is_heavy, exclusive=False)

    def _admit(self, waiting: deque[_Waiting], *, heavy: bool, exclusive: bool) -> None:
        _, future = waiting.popleft()
        self._inside += 1
        self._heavy_inside += heavy
        self._exclusive_inside = exclusive
        future.set_result(Permit(self, heavy=heavy, exclusive=exclusive))


def _head(waiting: deque[_Waiting]) -> int | None:
    """The number of the first who still waits; those who went away are forgotten."""
    while waiting and waiting[0][1].done():
        waiting.popleft()
    return waiting[0][0] if waiting else None
