"""Retries while the database or the store is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ekiben.errors import Unavailable

T = TypeVar("T")


async def retry_while_unavailable(
    work: Callable[[], Awaitable[T]], sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> T:
    """The result of ``work``, which is repeated while it raises Unavailable: 7 times, with waits of 63.5 s in all.

    Then its error is raised.
    """
    for wait_s in (0.5, 1, 2, 4, 8, 16, 32):
        try:
            return await work()
        except Unavailable:
            await sleep(wait_s)
    return await work()
