"""A bound on the memory that images take at once in one process: requests wait for their share in turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ekiben.errors import DeadlineExceeded

_LARGE_SHARE: Final = 0.75


class MemoryBudget:
    """``max_bytes`` for all images at once. Large ones, more than a thirty-second of it, have three quarters of it and
    a queue of their own, so that no small one waits for a large one, and a stream of small ones delays no large one.

    Who takes more than its part has it alone. For one event loop.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._large = _Part(int(max_bytes * _LARGE_SHARE))
        self._small = _Part(max_bytes - self._large.max_bytes)

    @property
    def held(self) -> int:
        """Bytes that are taken now."""
        return self._large.held + self._small.held

    @asynccontextmanager
    async def lease(self, size: int, deadline: float) -> AsyncIterator[MemoryLease]:
        """The share of one image, from its turn to the end of the block, and of who has taken part in it.

        DeadlineExceeded where its turn does not come before ``deadline``, of ``time.monotonic``.
        """
        part = self._large if size > self.max_bytes // 32 else self._small
        await part.take(size, deadline)
        lease = MemoryLease(part, size)
        try:
            yield lease
        finally:
            lease.end()


class MemoryLease:
    """Bytes of a budget, given back when everybody who takes part in it has ended."""

    def __init__(self, part: _Part, size: int) -> None:
        self._part = part
        self._size = size
        self._users = 1

    def share(self) -> None:
        """Take part: work in a thread goes on when its caller has left, and its memory is held until it ends."""
        self._users += 1

    def end(self) -> None:
        """Take part no more."""
        self._users -= 1
        if self._users == 0:
            self._part.give_back(self._size)

    def shrink(self, size: int) -> None:
        """Keep ``size`` bytes at most."""
        if size < self._size:
            self._part.give_back(self._size - size)
            self._size = size


class _Part:
    """Bytes that are taken in order of arrival."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int, deadline: float) -> None:
        """Wait for the turn of ``size`` bytes, and take them."""
        if not self._waiting and self._fits(size):
            self.held += size
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append((size, turn))
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # its turn came as it left
                self.give_back(size)
            else:
                turn.cancel()
                self._admit()  # who waited behind it may be next
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    "the image waited for memory longer than its deadline", retry_after_s=1
                ) from None
            raise

    def give_back(self, size: int) -> None:
        """Free ``size`` bytes."""
        self.held -= size
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done() and not self._fits(size):
                return
            self._waiting.popleft()
            if not turn.done():
                self.held += size
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return self.held == 0 or self.held + size <= self.max_bytes
