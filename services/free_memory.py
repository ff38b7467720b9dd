"""How much memory this machine, or this container, has left."""

from __future__ import annotations

import contextlib
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def free_mb() -> int:
    """Megabytes that can be used without swapping, in the tighter of machine and control group; 0 where unknown."""
    free: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max": no limit of its own
        limit = int((_GROUP / "memory.max").read_text())
        free.append(limit - int((_GROUP / "memory.current").read_text()))
    return max(0, min(free)) // 1_000_000 if free else 0
