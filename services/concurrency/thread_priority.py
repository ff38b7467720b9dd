"""Priority: which threads of a worker give way to interactive requests, and which must not.

On Linux niceness is a thread's own, and inherited from the thread that starts it. Threads that compute give way. One
that holds the database's write lock, or says that the worker lives, must not: others would wait for it.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor


def steady_threads(count: int) -> ThreadPoolExecutor:
    """``count`` threads that have the priority of the present thread, whatever becomes of that; all started now."""
    threads = ThreadPoolExecutor(count, thread_name_prefix="steady")
    all_there = threading.Barrier(count)
    for future in [threads.submit(all_there.wait) for _ in range(count)]:
        future.result()
    return threads


def be_nice(nice: int) -> None:
    """The present thread, and those that it starts from now on, take what others leave of the processor."""
    if nice and hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
