"""Blocking calls from a coroutine, on a given executor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


async def run_in_executor(executor: Executor | None, work: Callable[..., T], *given: Any) -> T:
    """The result of ``work(*given)``, called in a thread of ``executor``; None: that of the running loop."""
    return await asyncio.get_running_loop().run_in_executor(executor, work, *given)
