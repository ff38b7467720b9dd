"""A bound on the memory that images take at once in one process: requests wait for their share in turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from ekiben.errors import DeadlineExceeded

_LARGE_SHARE: Final = 0.75
_FREED_BYTES: Final = 256_000_000
"""Given back by large images, after which their pages are returned to the system."""


class MemoryBudget:
    """``max_bytes`` for all images at once. Large ones, more than a thirty-second of it, have three quarters of it and
    a queue of their own, so that no small one waits for a large one, and a stream of small ones delays no large one.

    Who takes more than its part has it alone. ``trim`` returns freed memory to the system: glibc keeps what the threads
    of large images have freed, up to all that they ever took at once. It is called in a thread, once the last large
    image has ended or many have. For one event loop.
    """

    def __init__(self, max_bytes: int, trim: Callable[[], object] = lambda: None) -> None:
        self.max_bytes = max_bytes
        self._large = _Part(int(max_bytes * _LARGE_SHARE), self._trim_once)
        self._small = _Part(max_bytes - self._large.max_bytes)
        self._trim = trim
        self._trimming: asyncio.Future[object] | None = None

    @property
    def held(self) -> int:
        """Bytes that are taken now."""
        return self._large.held + self._small.held

    def _trim_once(self) -> None:
        if self._trimming is None or self._trimming.done():
            self._trimming = asyncio.get_running_loop().run_in_executor(None, self._trim)

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
    """Bytes that are taken in order of arrival. ``freed`` is called once none are taken, or many were given back."""

    def __init__(self, max_bytes: int, freed: Callable[[], None] = lambda: None) -> None:
        self.max_bytes = max_bytes
        self.held = 0
        self._freed_bytes = 0
        self._freed = freed
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
        self._freed_bytes += size
        if self._freed_bytes >= _FREED_BYTES or (self.held == 0 and size):
            self._freed_bytes = 0
            self._freed()

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
