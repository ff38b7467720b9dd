"""The memory limit of a child process."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path


def limit_memory(megabytes: int) -> None:
    """Limit this process's data segment to ``megabytes`` MiB and make it the first to be killed without memory.

    What it asks for beyond that is refused by the system: Python raises MemoryError.
    """
    most = megabytes << 20
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")
