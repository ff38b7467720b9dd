"""Patience: what is worth waiting for while the database or the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ekiben.errors import Unavailable

T = TypeVar("T")


async def retry_while_unavailable(work: Callable[[], Awaitable[T]]) -> T:
    """The result of ``work``; while what it needs is away it is tried again, for about a minute."""
    for wait_s in (0.5, 1, 2, 4, 8, 16, 32):
        try:
            return await work()
        except Unavailable:
            await asyncio.sleep(wait_s)
    return await work()
