"""A blocking iterator, read from a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from services.concurrency.shielded import shielded


async def iterate_in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a blocking generator, each made in a thread, empty ones left out. The generator is closed when the
    iteration ends, early or not."""
    making: asyncio.Future[bytes | None] | None = None

    async def close() -> None:
        # The generator cannot be closed while it makes a piece.
        if making is not None:
            await asyncio.wait([making])
        if (end := getattr(pieces, "close", None)) is not None:
            await asyncio.to_thread(end)

    try:
        while True:
            making = asyncio.ensure_future(asyncio.to_thread(next, pieces, None))
            piece = await shielded(making)
            if piece is None:
                return
            if piece:
                yield piece
    finally:
        await shielded(close())
