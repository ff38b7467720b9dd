"""Single flight: concurrent requests for one key share one computation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Call(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Runs at most one coroutine per key at a time. It is cancelled when its last waiter is, unless ``keep``: where it
    waits for a thread that goes on, later callers join it instead of waiting on threads of their own."""

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._calls: dict[Hashable, _Call[T]] = {}

    def running(self, key: Hashable) -> bool:
        """Whether a computation for ``key`` is running."""
        return key in self._calls

    async def do(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``start()``, which only the first caller begins. An error is raised to all callers."""
        call = self._calls.get(key)
        if call is None or call.task.done():  # done, and forgotten in the next round of the loop: it is over
            call = _Call(asyncio.create_task(start()))
            self._calls[key] = call
            call.task.add_done_callback(lambda task: self._finished(key, task))
        call.waiting += 1
        try:
            return await asyncio.shield(call.task)
        finally:
            call.waiting -= 1
            if call.waiting == 0 and not self._keep and not call.task.done():
                # Later callers must not join a computation that is being cancelled.
                self._calls.pop(key, None)
                call.task.cancel()

    def _finished(self, key: Hashable, task: asyncio.Task[T]) -> None:
        known = self._calls.get(key)
        if known is not None and known.task is task:
            del self._calls[key]
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it: the waiters had it raised
