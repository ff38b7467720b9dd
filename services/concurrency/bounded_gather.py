"""Concurrent calls with a bound: results in order, and the first error ends the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

P = TypeVar("P")
T = TypeVar("T")


async def gather_bounded(request: Callable[[P], Coroutine[Any, Any, T]], calls: Sequence[P], at_once: int) -> list[T]:
    """The results of ``request(call)`` in the order of ``calls``, at most ``at_once`` running.

    The first error, or a cancellation, cancels the others.
    """
    results: dict[int, T] = {}
    waiting = iter(enumerate(calls))

    async def worker() -> None:
        for number, call in waiting:
            results[number] = await request(call)

    workers = [asyncio.create_task(worker()) for _ in range(min(at_once, len(calls)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[number] for number in range(len(calls))]
