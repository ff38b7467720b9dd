"""Work that ends when the process stops: what is under way then gets some time, and is refused after it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ekiben.errors import Unavailable


class UntilStop:
    """For one event loop. Blocks within ``scope`` are cancelled at the time that ``end_within`` sets."""

    def __init__(self) -> None:
        self._end_at: float | None = None
        self._open: set[asyncio.Timeout] = set()

    def end_within(self, seconds: float) -> None:
        """Let every block end ``seconds`` from now, also those that begin later. On the event loop."""
        self._end_at = asyncio.get_running_loop().time() + seconds
        for scope in self._open:
            scope.reschedule(self._end_at)

    @contextlib.asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """Unavailable once the time is over."""
        scope = asyncio.timeout_at(self._end_at)
        try:
            async with scope:
                self._open.add(scope)
                try:
                    yield
                finally:
                    self._open.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            raise Unavailable("the server is stopping", code="stopping", retry_after_s=5) from None
