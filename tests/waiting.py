"""Waiting for something that another thread or process does, with a limit that only a fault reaches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 60.0
EVERY_S = 0.005


def eventually(condition: Callable[[], Any], what: str = "it", limit_s: float = LIMIT_S) -> Any:
    """The first true value of ``condition``; an AssertionError when there is none in ``limit_s``."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen in {limit_s:g} s"
        time.sleep(EVERY_S)
    return value


async def async_eventually(condition: Callable[[], Any], what: str = "it", limit_s: float = LIMIT_S) -> Any:
    """``eventually`` for a coroutine: other tasks run between two calls of ``condition``."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen in {limit_s:g} s"
        await asyncio.sleep(EVERY_S)
    return value
