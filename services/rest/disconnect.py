"""Cancels the computation for a caller who disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from ekiben.errors import CallerLeft
from services.bento.hosting import Receive


async def cancel_on_disconnect(receive: Receive, work: Awaitable[Any]) -> Any:
    """The result of ``work``. When the caller disconnects first, ``work`` is cancelled and CallerLeft raised.

    To be called when the body has been read: the next ASGI message can only be the disconnect.
    """
    current = asyncio.current_task()
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        if current is not None:
            current.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if left and current is not None and current.uncancel() == 0:
            raise CallerLeft("the caller left") from None
        raise
    finally:
        watcher.cancel()
