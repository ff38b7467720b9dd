"""Flights: one computation for all who ask for the same thing at the same time."""

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
    """Runs at most one coroutine per key. It is cancelled when the last who waits for it has left."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, _Call[T]] = {}

    def get(self, key: Hashable) -> bool:
        """Whether somebody is at it."""
        return key in self._calls

    async def do(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``start()``, begun by whoever came first. Its error is raised to all."""
        call = self._calls.get(key)
        if call is None:
            call = _Call(asyncio.create_task(start()))
            self._calls[key] = call
            call.task.add_done_callback(lambda task: self._landed(key, task))
        call.waiting += 1
        try:
            return await asyncio.shield(call.task)
        finally:
            call.waiting -= 1
            if call.waiting == 0 and not call.task.done():
                # Nobody may join what is being cancelled.
                self._calls.pop(key, None)
                call.task.cancel()

    def _landed(self, key: Hashable, task: asyncio.Task[T]) -> None:
        known = self._calls.get(key)
        if known is not None and known.task is task:
            del self._calls[key]
        if not task.cancelled():
            task.exception()  # it was raised to those who waited; nobody else is to hear of it
