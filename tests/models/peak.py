"""Peak memory of a call in this process: what Pillow and ONNX Runtime allocate is invisible to tracemalloc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")


def peak_growth_bytes(call: Callable[[], object]) -> int:
    """Resident bytes at the highest point of ``call()`` above those before it. Skips where Linux does not tell."""
    before = status_bytes("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    except OSError:
        pytest.skip("needs /proc/self/clear_refs to measure a peak")
    call()
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)
