"""The gate of a worker: many items at once, or one that may kill the process and is let through alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Bounds the items at once. ``light`` ones share the places; of ``heavy`` ones there are fewer."""

    def __init__(self, places: int, heavy_places: int) -> None:
        self.places = places
        self.heavy_places = heavy_places
        self._inside = 0
        self._heavy_inside = 0
        self._alone_waiting = 0
        self._alone_inside = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def pass_through(self, *, heavy: bool = False, alone: bool = False) -> AsyncIterator[None]:
        """Wait for a place, and hold it. Nobody is inside with one who is ``alone``, and who waits for that is next."""
        async with self._changed:
            if alone:
                self._alone_waiting += 1
                try:
                    await self._changed.wait_for(lambda: self._inside == 0)
                finally:
                    self._alone_waiting -= 1
                    self._changed.notify_all()
                self._alone_inside = True
            else:
                await self._changed.wait_for(lambda: self._has_place(heavy))
            self._inside += 1
            self._heavy_inside += heavy
        try:
            yield
        finally:
            # No lock: nothing here waits, so no other coroutine runs in between.
            self._inside -= 1
            self._heavy_inside -= heavy
            if alone:
                self._alone_inside = False
            await asyncio.shield(self._tell())

    def _has_place(self, heavy: bool) -> bool:
        if self._alone_waiting or self._alone_inside or self._inside >= self.places:
            return False
        return not heavy or self._heavy_inside < self.heavy_places

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
