"""Images that are decoded outside a model: in threads of their own, within the memory of the process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from services.concurrency.memory_budget import MemoryBudget, MemoryLease
from services.concurrency.slow_threads import SlowThreads
from services.runners.image_cost import cost_of

T = TypeVar("T")


class DecodeThreads:
    """``memory``: what the images of this process may take together, those of its models included."""

    def __init__(self, memory: MemoryBudget, count: int) -> None:
        self._memory = memory
        self._threads = SlowThreads(count, "decode")

    async def run(self, work: Callable[[], T], image: bytes | int, deadline: float) -> T:
        """The result of ``work()``, which decodes ``image`` or takes so many bytes.

        Its memory is held until it ends, also when the caller has left. DeadlineExceeded at ``deadline``, in
        ``time.monotonic()`` seconds.
        """
        async with self.lease(image, deadline) as memory:
            return await self._threads.run(work, deadline, memory)

    @contextlib.asynccontextmanager
    async def lease(self, image: bytes | int, deadline: float) -> AsyncIterator[MemoryLease]:
        """The memory of ``image``, or so many bytes, for the block. DeadlineExceeded."""
        size = image if isinstance(image, int) else (await cost_of(image)).bytes
        async with self._memory.lease(size, deadline) as memory:
            yield memory

    def close(self) -> None:
        """Begin no more work."""
        self._threads.close()
