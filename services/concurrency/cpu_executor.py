"""Drawing: turning masks into answers on threads of its own, until it is done, late, or nobody waits for it."""

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
"""To be called between masks: raises DeadlineExceeded or CallerLeft where the rest would be in vain."""

# Apart from the threads of everything else: an image of many masks takes seconds, and is in no hurry.
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="draw")


async def run_cpu_bound(deadline: float, work: Callable[[CheckCancelled], T]) -> T:
    """The result of ``work(check)``; ``deadline`` is in ``time.monotonic()`` seconds."""
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
