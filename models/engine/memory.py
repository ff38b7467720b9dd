"""Memory: of this process, of the machine, and how freed memory returns to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path


def resident_bytes() -> int:
    """Resident set size of this process in bytes; 0 on systems without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def believable_bytes(grown: int, file_bytes: int) -> int:
    """Bytes that a model counts as: ``grown``, kept between one and four times its files (plus 64 MB).

    Other threads allocate and free while it loads, so the growth of the process alone may be far off.
    """
    return min(max(grown, file_bytes), 4 * file_bytes + 64_000_000)


def reclaim_memory() -> None:
    """Collect garbage and return freed memory to the system: glibc would keep the pages of a closed session."""
    gc.collect()
    trim()


def trim() -> None:
    """Return the free pages of the heap to the system, without collecting garbage first."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim and needs none
            ctypes.CDLL("libc.so.6").malloc_trim(0)


_GROUP = Path("/sys/fs/cgroup")


def free_mb() -> int:
    """Megabytes that can be used without swapping: the lesser of machine and control group; 0 where unknown."""
    free: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max": no limit of its own
        limit = int((_GROUP / "memory.max").read_text())
        free.append(limit - int((_GROUP / "memory.current").read_text()))
    return max(0, min(free)) // 1_000_000 if free else 0
