"""Options of sessions: device, threads and runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """``device``: auto, cpu or cuda. ``threads``: of one run (intra-op); 0: all cores. ``runtime``: see RUNTIMES."""

    device: str = "auto"
    threads: int = 1
    runtime: str = "onnx"


def cores() -> int:
    """Cores that this process may use, by its CPU affinity and, in a container, the quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count
