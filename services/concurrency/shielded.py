"""Work that goes on when its waiter is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from ekiben.errors import Refusal

T = TypeVar("T")

log = logging.getLogger(__name__)


async def shielded(work: Awaitable[T]) -> T:
    """The result of ``work``, which is not cancelled when the waiter is: nor is its error lost.

    ``asyncio.shield`` forgets the work of a waiter that was cancelled, and asyncio logs its error as one that nobody
    retrieved. Here a refusal, which is for the waiter, ends silently then, and any other error is logged.
    """
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_ended)
        raise


def _ended(future: asyncio.Future[Any]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, Refusal):
        log.error("internal error; its caller had left", exc_info=error)
