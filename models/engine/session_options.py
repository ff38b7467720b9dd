"""How a graph is run: its device, its threads, its runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """``threads``: threads one run may use (intra-op). ``device``: auto | cpu | cuda."""

    device: str = "auto"
    threads: int = 1
    runtime: str = "onnx"


def cores() -> int:
    """Cores this process may use: the CPU affinity and, in a container, the cgroup's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count
