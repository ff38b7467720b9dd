"""Blocking work on slow images, in threads of its own: with a deadline, and memory that is held until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ekiben.errors import DeadlineExceeded
from services.concurrency.memory_budget import MemoryLease

T = TypeVar("T")


class SlowThreads:
    """At most ``count`` threads. Not the default executor, whose short reads of files would wait behind seconds."""

    def __init__(self, count: int, name: str = "slow-image") -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, work: Callable[[], T], deadline: float, memory: MemoryLease) -> T:
        """The result of ``work()`` in one of the threads. It takes part in ``memory`` until it ends.

        DeadlineExceeded at ``deadline``, in ``time.monotonic()`` seconds; work that waits for a thread is not begun
        then, nor after a cancellation.
        """
        loop = asyncio.get_running_loop()
        job = self._threads.submit(contextvars.copy_context().run, work)
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                return await asyncio.wrap_future(job)
        except TimeoutError:
            raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1) from None
        finally:
            if not job.done():
                memory.share()
                job.add_done_callback(lambda _: call_on_loop(loop, memory.end))

    def close(self) -> None:
        """Begin no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def call_on_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> None:
    """Call from any thread; not at all where the loop is closed, as the server stopped without this caller."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)
