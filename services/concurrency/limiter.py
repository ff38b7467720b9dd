"""The gate of a worker: many items at once, or one that may kill the process and is let through alone."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Permit:
    """A place inside. ``leave`` may be called early, and more than once."""

    def __init__(self, gate: ConcurrencyLimiter, *, heavy: bool, alone: bool) -> None:
        self._gate: ConcurrencyLimiter | None = gate
        self.heavy = heavy
        self.alone = alone

    def leave(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate._left(self)


_Waiting = tuple[int, "asyncio.Future[Permit]"]


class ConcurrencyLimiter:
    """Bounds the items at once: ``places``, and of ``heavy`` ones fewer. On one event loop."""

    def __init__(self, places: int, heavy_places: int) -> None:
        self.places = places
        self.heavy_places = heavy_places
        self._inside = 0
        self._heavy_inside = 0
        self._alone_inside = False
        self._numbers = itertools.count()
        self._alone: deque[_Waiting] = deque()
        self._waiting: dict[bool, deque[_Waiting]] = {False: deque(), True: deque()}  # by whether they are heavy

    @property
    def inside(self) -> int:
        """How many hold a place."""
        return self._inside

    @asynccontextmanager
    async def pass_through(self, *, heavy: bool = False, alone: bool = False) -> AsyncIterator[Permit]:
        """Wait for a place, and hold it. Nobody is inside with one who is ``alone``, and who waits for that is next."""
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        (self._alone if alone else self._waiting[heavy]).append((next(self._numbers), future))
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
        if place.alone:
            self._alone_inside = False
        self._let_in()

    def _let_in(self) -> None:
        while not self._alone_inside:
            if _head(self._alone) is not None:
                if self._inside:
                    return
                self._admit(self._alone, heavy=False, alone=True)
                continue
            if self._inside >= self.places:
                return
            light, heavy = _head(self._waiting[False]), _head(self._waiting[True])
            if heavy is not None and self._heavy_inside >= self.heavy_places:
                heavy = None
            if light is None and heavy is None:
                return
            is_heavy = light is None or (heavy is not None and heavy < light)  # whoever came first
            self._admit(self._waiting[is_heavy], heavy=is_heavy, alone=False)

    def _admit(self, waiting: deque[_Waiting], *, heavy: bool, alone: bool) -> None:
        _, future = waiting.popleft()
        self._inside += 1
        self._heavy_inside += heavy
        self._alone_inside = alone
        future.set_result(Permit(self, heavy=heavy, alone=alone))


def _head(waiting: deque[_Waiting]) -> int | None:
    """The number of the first who still waits; those who went away are forgotten."""
    while waiting and waiting[0][1].done():
        waiting.popleft()
    return waiting[0][0] if waiting else None
