"""Priority of a worker's threads: those that compute give way to interactive requests, the others do not.

On Linux niceness is a property of a thread, inherited from the thread that starts it. A thread that holds the write
lock of the database, or sends heartbeats, must not be nice: other processes would wait for it.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor


def steady_threads(count: int) -> ThreadPoolExecutor:
    """An executor of ``count`` threads, all started now: they keep the priority that the calling thread has now."""
    threads = ThreadPoolExecutor(count, thread_name_prefix="steady")
    all_there = threading.Barrier(count)
    for future in [threads.submit(all_there.wait) for _ in range(count)]:
        future.result()
    return threads


def be_nice(nice: int) -> None:
    """Set the niceness of the calling thread, and of the threads that it starts from now on, to ``nice`` (0-19)."""
    if nice and hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
