"""CPU-bound work, such as rendering masks, on two threads of its own, with deadline and cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ekiben.errors import CallerLeft, DeadlineExceeded

T = TypeVar("T")

CheckCancelled = Callable[[], None]
"""To be called between masks: raises DeadlineExceeded or CallerLeft once the result is no longer wanted."""

# Not the default executor: an image of many masks takes seconds, and would delay short file reads.
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="draw")


async def run_cpu_bound(deadline: float, work: Callable[[CheckCancelled], T]) -> T:
    """The result of ``work(check)``; ``deadline`` is in ``time.monotonic()`` seconds.

    ``work`` has to call ``check`` between its steps: it raises once the deadline has passed or the call is cancelled.
    """
    gone = threading.Event()

    def check() -> None:
        if gone.is_set():
            raise CallerLeft("the caller left")
        if time.monotonic() > deadline:
            raise DeadlineExceeded("the masks could not be drawn before the deadline", retry_after_s=1)

    try:
        context = contextvars.copy_context()  # the request's id, and the names of the files that are made
        return await asyncio.get_running_loop().run_in_executor(_THREADS, context.run, work, check)
    finally:
        gone.set()
